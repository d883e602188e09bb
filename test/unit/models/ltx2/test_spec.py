"""LTX-2's card: what it takes, and what it refuses."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import LTX2Pipeline

from fakes import zoo_ltx2
from fakes.cases import card_of
from safelight.errors import ConfigError, InvalidRequest
from safelight.models.ltx2 import spec as ltx2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo_ltx2.tiny_ltx2(tmp_path_factory.mktemp("ltx2") / "model")


def test_the_defaults_are_the_pipelines(model: Path) -> None:
    card = card_of(model)
    signature = inspect.signature(LTX2Pipeline.__call__).parameters
    defaults = {name: parameter.default for name, parameter in signature.items()}
    for name in ("width", "height", "num_inference_steps", "guidance_scale", "max_sequence_length"):
        assert card.defaults[name] == defaults[name], name
    assert card.defaults["fps"] == defaults["frame_rate"]
    assert card.defaults["num_frames"] == 121  # of a pipeline that guesses no durations
    assert card.tasks == ("text-to-video", "image-to-video")
    assert card.tokens(card.resolve({})) == 16 * 16 * 24


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 80}, ["'width' is 80", "in steps of 32", "64 or 96"]),
        ({"height": 32}, ["'height' is 32", "Nearest: 64"]),
        ({"num_frames": 10}, ["'num_frames' is 10", "9 or 17"]),
        ({"max_sequence_length": 33}, ["is 33", "multiples of 8", "32 or 40"]),
        ({"fps": 60, "num_frames": 1}, ["1 frames at 60 a second", "too short for any sound"]),
        ({"num_inference_steps": 1}, ["stretches its noise levels and needs 2"]),
        ({"strength": 0.5}, ["'strength' has no effect"]),
        ({"flow_shift": 3.0}, ["'flow_shift' has no effect"]),
    ],
)
def test_the_card_refuses_what_the_pipeline_cannot_make(
    model: Path, values: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        card_of(model).resolve(values)
    assert refused.value.param == next(iter(values))
    for word in words:
        assert word in str(refused.value)


def test_the_rate_it_names_is_the_highest_with_sound(model: Path) -> None:
    card = card_of(model)
    card.resolve({"fps": 49, "num_frames": 1})
    with pytest.raises(InvalidRequest, match="'fps' of at most 49"):
        card.resolve({"fps": 50, "num_frames": 1})


def test_samples_share_a_forward_when_their_sound_is_as_long(model: Path) -> None:
    card = card_of(model)
    keys = [
        card.batch_key(card.resolve(values), "text-to-video")
        for values in ({}, {"guidance_scale": 1.0, "negative_prompt": "dull"}, {"fps": 25})
    ]
    assert keys[0] == keys[1] != keys[2]


def test_a_fixed_shift_may_be_another(model: Path, tmp_path: Path) -> None:
    directory = zoo_ltx2.tiny_ltx2(tmp_path / "model")
    path = directory / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_dynamic_shifting": False}))
    assert card_of(directory).resolve({"flow_shift": 3.0}).flow_shift == 3.0


def test_tokens_of_several_frames_are_refused(tmp_path: Path) -> None:
    directory = zoo_ltx2.tiny_ltx2(tmp_path / "model")
    path = directory / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "patch_size_t": 2}))
    with pytest.raises(ConfigError, match="tokens of several latent frames"):
        card_of(directory)


@pytest.mark.parametrize(
    ("vae", "expected"),
    [
        ({}, (64, 16)),
        ({"spatial_compression_ratio": 32, "temporal_compression_ratio": 8}, (32, 8)),
        ({"spatio_temporal_scaling": [True, True, True, False]}, (32, 8)),
        ({"spatio_temporal_scaling": True, "layers_per_block": [1, 1, 1]}, (16, 4)),
    ],
)
def test_the_compression_is_read_from_the_vae(
    vae: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert ltx2._compression(vae) == expected


# ----------------------------------------------------------------------------------- several ranks


def test_ranks_share_tokens_and_words_evenly_or_not_at_all(model: Path) -> None:
    """A mask goes with the words."""
    card = card_of(model, ulysses_degree=2)
    card.resolve({"width": 64, "height": 64, "num_frames": 1, "max_sequence_length": 24})
    with pytest.raises(InvalidRequest, match="27 tokens, which 2 ranks"):
        card.resolve({"width": 96, "height": 96, "num_frames": 17})


def test_ring_attention_is_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match="takes an attention mask"):
        card_of(model, ring_degree=2)
