"""HunyuanVideo 1.5's card: its sizes, what it takes, and what it refuses."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import HunyuanVideo15Pipeline
from diffusers.pipelines.hunyuan_video1_5.image_processor import HunyuanVideo15ImageProcessor

from fakes import cases, zoo_hunyuan15
from fakes.cases import card_of
from safelight.errors import ConfigError, InvalidRequest
from safelight.models.hunyuan_video15 import sizes
from safelight.request import Inputs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo_hunyuan15.tiny_hunyuan(tmp_path_factory.mktemp("hunyuan") / "model")


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo_hunyuan15.tiny_hunyuan_pictured(tmp_path_factory.mktemp("pictured") / "model")


@pytest.mark.parametrize("target", [64, 640, 960])
@pytest.mark.parametrize(
    "size", [(16, 9), (9, 16), (1, 1), (1920, 1080), (333, 777), (4000, 400), (400, 4000), (90, 60)]
)
def test_sizes_are_those_of_diffusers(target: int, size: tuple[int, int]) -> None:
    processor = HunyuanVideo15ImageProcessor(vae_scale_factor=16)
    width, height = size
    expected = processor.calculate_default_height_width(height, width, target)
    assert sizes.closest(size, target, 16) == expected[::-1]


def test_the_defaults_are_the_pipelines_and_the_guiders(model: Path) -> None:
    card = card_of(model)
    signature = inspect.signature(HunyuanVideo15Pipeline.__call__).parameters
    for name in ("num_frames", "num_inference_steps"):
        assert card.defaults[name] == signature[name].default, name
    assert card.defaults["guidance_scale"] == 6.0
    assert (card.defaults["width"], card.defaults["height"]) == (80, 48)
    assert card.tasks == ("text-to-video",)
    assert card.tokens(card.resolve({})) == 31 * 5 * 3
    assert card.resolve({"flow_shift": 7.0}).flow_shift == 7.0


def test_a_picture_decides_the_size(pictured: Path) -> None:
    card = card_of(pictured)
    assert card.tasks == ("image-to-video",)
    tall = cases.picture(pictured.parent, (60, 90), seed=1)
    inputs = Inputs(images=(tall,))
    found = card.resolve({}, task="image-to-video", inputs=inputs)
    assert (found.width, found.height) == (48, 64)
    wide = Inputs(images=(cases.picture(pictured.parent, (100, 120), seed=2),))
    keys = {card.batch_key(found, "image-to-video", given) for given in (inputs, wide)}
    assert len(keys) == 1, "pictures of other sizes are cut to that of the video"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 72}, ["'width' is 72", "in steps of 16", "64 or 80"]),
        ({"num_frames": 6}, ["'num_frames' is 6", "5 or 9"]),
        ({"max_sequence_length": 64}, ["'max_sequence_length' has no effect"]),
        ({"strength": 0.5}, ["'strength' has no effect"]),
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


def test_pictures_want_the_other_checkpoint(model: Path) -> None:
    inputs = Inputs(images=(cases.picture(model.parent, (60, 90), seed=1),))
    with pytest.raises(InvalidRequest, match=r"cannot make .* it does text-to-video"):
        card_of(model).resolve({}, inputs=inputs)


def test_another_guider_is_refused(tmp_path: Path) -> None:
    directory = zoo_hunyuan15.tiny_hunyuan(tmp_path / "model")
    path = directory / "guider" / "guider_config.json"
    other = {**json.loads(path.read_text()), "_class_name": "AdaptiveProjectedGuidance"}
    path.write_text(json.dumps(other))
    with pytest.raises(ConfigError, match="AdaptiveProjectedGuidance; ClassifierFreeGuidance runs"):
        card_of(directory)


def test_ranks_share_the_halves_of_guidance_not_the_sequence(model: Path) -> None:
    card_of(model, cfg_parallel_size=2)
    with pytest.raises(ConfigError, match="HunyuanVideo15Transformer3DModel"):
        card_of(model, ulysses_degree=2)
