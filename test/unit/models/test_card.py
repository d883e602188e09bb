"""Model cards: what fits, and what the refusal says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from safelight import config as configuration
from safelight.errors import ConfigError, InvalidRequest, UnknownField
from safelight.models.card import ModelCard, Range
from safelight.models.registry import load_card
from safelight.request import Sampling


def test_a_range_knows_what_is_near() -> None:
    legal = Range(32, 128, 16)
    assert 48 in legal
    assert 50 not in legal
    assert legal.nearest(50) == (48, 64)
    assert legal.nearest(5) == (32,) or legal.nearest(5) == (32, 48)
    assert legal.nearest(1000) == (128,)
    assert legal.nearest(64) == (64,)
    assert Range(1, 1001, 4).narrowed(3, 13) == Range(5, 13, 4)


def test_the_builtin_card_is_read_from_its_files() -> None:
    card = load_card(configuration.build({}))
    assert (card.name, card.family) == ("shapes", "wan")
    assert card.tasks == ("text-to-video", "text-to-image")
    sampling = card.resolve({})
    assert isinstance(sampling, Sampling)
    assert (sampling.width, sampling.height, sampling.num_frames) == (64, 64, 9)
    assert card.tokens(sampling) == 5 * 4 * 4
    assert card.tokens(card.resolve({"num_frames": 1})) == 16


def test_wans_defaults_are_the_pipelines(tiny_wan_directory: Path) -> None:
    import inspect

    from diffusers import WanPipeline

    card = load_card(configuration.build({"model_path": str(tiny_wan_directory)}))
    signature = inspect.signature(WanPipeline.__call__).parameters
    for name, value in card.defaults.items():
        if name in signature:
            assert value == signature[name].default, name


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 70}, ["'width' is 70", "32 to 128 in steps of 16", "64 or 80"]),
        ({"num_frames": 10}, ["num_frames", "9 or 11"]),
        ({"height": 4096}, ["height", "Nearest: 128"]),
        ({"num_inference_steps": 0}, ["num_inference_steps", ">= 1", "got 0"]),
        ({"guidance_scale": "x"}, ["guidance_scale", "float"]),
        ({"seed": -1}, ["seed"]),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    values: dict[str, object], words: list[str]
) -> None:
    card = load_card(configuration.build({}))
    with pytest.raises(InvalidRequest) as failure:
        card.resolve(values)
    assert all(word in str(failure.value) for word in words), failure.value
    assert failure.value.param == next(iter(values))


def test_unknown_parameters_are_refused() -> None:
    with pytest.raises(UnknownField, match="num_inference_steps"):
        load_card(configuration.build({})).resolve({"num_inference_step": 3})


def test_none_means_the_default() -> None:
    card = load_card(configuration.build({}))
    assert card.resolve({"width": None}) == card.resolve({})


def test_batch_keys_differ_where_a_forward_cannot_be_shared() -> None:
    card = load_card(configuration.build({}))
    base = card.resolve({})
    same = card.resolve({"num_inference_steps": 3, "guidance_scale": 1.0, "seed": 9})
    assert card.batch_key(base, "text-to-video") == card.batch_key(same, "text-to-video")
    for values in ({"width": 96}, {"num_frames": 5}, {"max_sequence_length": 48}):
        assert card.batch_key(base, "text-to-video") != card.batch_key(
            card.resolve(values), "text-to-video"
        )


def test_models_that_cannot_run_are_refused_in_a_sentence(
    tmp_path: Path, tiny_wan_directory: Path
) -> None:
    def refused(words: str, **values: str) -> None:
        with pytest.raises(ConfigError, match=words):
            load_card(configuration.build(values))

    refused("no model_index.json", model_path=str(tmp_path))
    refused("builtin", model_path="builtin:nothing")
    for change, words in [
        ({"_class_name": "NoSuchPipeline"}, "NoSuchPipeline"),
        ({"transformer_2": ["diffusers", "X"]}, "boundary_ratio"),
    ]:
        copy = tmp_path / words.split()[0]
        shutil.copytree(tiny_wan_directory, copy)
        index = json.loads((copy / "model_index.json").read_text())
        (copy / "model_index.json").write_text(json.dumps(index | change))
        refused(words, model_path=str(copy))


def test_a_broken_override_file_is_named(tmp_path: Path, tiny_wan_directory: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(tiny_wan_directory, copy)
    (copy / "safelight.json").write_text('{"limit": 3}')
    with pytest.raises(ConfigError, match=r"safelight\.json is not valid"):
        load_card(configuration.build({"model_path": str(copy)}))


def parallel_card(**degrees: int) -> ModelCard:
    return load_card(configuration.build({"device": "cpu", **degrees}))


def test_a_size_whose_tokens_ranks_cannot_share_names_those_that_fit() -> None:
    card = parallel_card(ulysses_degree=2, ring_degree=2)
    assert card.resolve({"width": 64, "height": 48, "num_frames": 1})  # 12 tokens
    with pytest.raises(InvalidRequest, match="4 ranks") as refused:
        card.resolve({"width": 48, "height": 48, "num_frames": 1})
    assert "9 tokens" in str(refused.value)
    for size in ("48x64", "64x48", "32x32"):
        assert size in str(refused.value)
        width, height = map(int, size.split("x"))
        assert card.resolve({"width": width, "height": height, "num_frames": 1})


def test_ulysses_or_ring_alone_take_what_does_not_divide_but_not_too_little() -> None:
    for degrees in ({"ulysses_degree": 2}, {"ring_degree": 2}):
        assert parallel_card(**degrees).resolve({"width": 48, "height": 48, "num_frames": 1})
    with pytest.raises(InvalidRequest, match="16 ranks"):
        parallel_card(ring_degree=16).resolve({"width": 32, "height": 48, "num_frames": 1})


def test_sizes_are_proposed_that_do_not_divide_where_they_need_not() -> None:
    card = parallel_card(ring_degree=5)
    with pytest.raises(InvalidRequest, match="32x32 with 1 frame is 4 tokens") as refused:
        card.resolve({"width": 32, "height": 32, "num_frames": 1})
    assert "Nearest sizes that fit: 32x48 or 48x32" in str(refused.value)
    assert card.resolve({"width": 32, "height": 48, "num_frames": 1})


def test_a_card_in_a_layout_the_model_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="4 attention heads"):
        parallel_card(ulysses_degree=3)
    with pytest.raises(ConfigError, match="text_encoder"):
        parallel_card(num_gpus=8, ring_degree=8, tp_size=8)


def test_a_vae_that_cannot_be_split_is_refused_when_that_was_asked(
    tiny_wan_directory: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_wan_directory, directory)
    path = directory / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "Other"}))
    settings = {"model_path": str(directory), "num_gpus": 2}
    assert load_card(configuration.build(settings))
    with pytest.raises(ConfigError, match="--vae-parallel on"):
        load_card(configuration.build({**settings, "vae_parallel": "on"}))
