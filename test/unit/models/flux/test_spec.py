"""FLUX.1's cards."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers import (
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
)
from diffusers.pipelines.flux import pipeline_flux_kontext

from fakes import zoo_flux
from fakes.cases import Checkpoints, card_of, picture
from safelight.errors import ConfigError, InvalidRequest
from safelight.models.card import ModelCard
from safelight.models.flux.spec import PREFERRED, preferred
from safelight.request import Inputs, Task

MAKERS = {
    "dev": zoo_flux.tiny_flux,
    "schnell": zoo_flux.tiny_schnell,
    "fill": zoo_flux.tiny_fill,
    "kontext": zoo_flux.tiny_kontext,
}
PIPELINES: dict[tuple[str, Task], Any] = {
    ("dev", "text-to-image"): FluxPipeline,
    ("dev", "image-to-image"): FluxImg2ImgPipeline,
    ("dev", "inpainting"): FluxInpaintPipeline,
    ("fill", "inpainting"): FluxFillPipeline,
    ("kontext", "text-to-image"): FluxKontextPipeline,
    ("kontext", "image-to-image"): FluxKontextPipeline,
    ("kontext", "inpainting"): FluxKontextInpaintPipeline,
}


@pytest.fixture(scope="module")
def directories(
    checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("flux")
    return {name: checkpoints.copied(make, folder / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def cards(directories: dict[str, Path]) -> dict[str, ModelCard]:
    return {name: card_of(directory) for name, directory in directories.items()}


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(
        images=(picture(tmp_path, (640, 448), 0),), mask=picture(tmp_path, (640, 448), 0, "L")
    )


@pytest.mark.parametrize(("model", "task"), PIPELINES)
def test_the_defaults_are_the_pipelines(
    cards: dict[str, ModelCard], model: str, task: Task
) -> None:
    signature = inspect.signature(PIPELINES[model, task].__call__).parameters
    defaults = {**cards[model].defaults, **cards[model].task_defaults.get(task, {})}
    for name in ("num_inference_steps", "guidance_scale", "max_sequence_length", "strength"):
        default = signature[name].default if name in signature else None
        assert defaults.get(name) == default, name
    assert (defaults["width"], defaults["height"]) == (1024, 1024)


def test_schnell_takes_few_steps_and_no_guidance(cards: dict[str, ModelCard]) -> None:
    fast = cards["schnell"].resolve({})
    assert (fast.num_inference_steps, fast.guidance_scale) == (4, 0.0)
    assert cards["schnell"].resolve({"flow_shift": 3.0}).flow_shift == 3.0


def test_the_sizes_that_kontext_knows_are_the_pipelines() -> None:
    assert PREFERRED == pipeline_flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((1024, 1024), (1024, 1024)),
        ((640, 448), (1248, 832)),
        ((1600, 900), (1392, 752)),
        ((900, 1600), (752, 1392)),
        ((4000, 100), (1568, 672)),
    ],
)
def test_kontext_sees_a_picture_in_the_nearest_shape(
    size: tuple[int, int], seen: tuple[int, int]
) -> None:
    assert preferred(size, 16) == seen


def test_tokens_of_what_the_transformer_sees(cards: dict[str, ModelCard], inputs: Inputs) -> None:
    dev, kontext = cards["dev"], cards["kontext"]
    image = Inputs(images=inputs.images)
    sampling = dev.resolve({}, task="image-to-image", inputs=image)
    assert dev.tokens(sampling, image) == dev.tokens(sampling) == 64 * 64
    sampling = kontext.resolve({}, task="image-to-image", inputs=image)
    assert kontext.tokens(sampling) == 16 * 16
    assert kontext.tokens(sampling, image) == 16 * 16 + 19 * 13


def test_who_may_share_a_forward(
    cards: dict[str, ModelCard], inputs: Inputs, tmp_path: Path
) -> None:
    image = Inputs(images=inputs.images)
    similar = Inputs(images=(picture(tmp_path, (1280, 896), 1),))
    upright = Inputs(images=(picture(tmp_path, (448, 640), 1),))

    def keys(card: ModelCard) -> list[str]:
        sampling = card.resolve({})
        return [
            card.batch_key(sampling, "text-to-image"),
            *(card.batch_key(sampling, "image-to-image", i) for i in (image, similar, upright)),
        ]

    assert len(set(keys(cards["dev"]))) == 1, "a forward looks alike, whatever the task"
    text, first, alike, other = keys(cards["kontext"])
    assert first == alike
    assert len({text, first, other}) == 3


def test_kontext_paints_at_the_size_at_which_it_sees(
    cards: dict[str, ModelCard], inputs: Inputs
) -> None:
    made = cards["kontext"].resolve({}, task="inpainting", inputs=inputs)
    assert (made.width, made.height) == (1216, 832)
    with pytest.raises(InvalidRequest, match=r"at 1216x832.*not at 1024x1024\. Leave"):
        cards["kontext"].resolve({"width": 1024, "height": 1024}, task="inpainting", inputs=inputs)
    edited = cards["kontext"].resolve({}, task="image-to-image", inputs=inputs)
    assert (edited.width, edited.height) == (1024, 1024)


@pytest.mark.parametrize(
    ("model", "task", "values", "words"),
    [
        ("dev", "text-to-image", {"width": 72}, ["'width' is 72", "steps of 16", "64 or 80"]),
        ("dev", "text-to-image", {"height": 8}, ["'height' is 8", "Nearest: 16"]),
        ("dev", "text-to-image", {"width": 8192}, ["'width' is 8192", "Nearest: 4096"]),
        ("dev", "text-to-image", {"num_frames": 9}, ["'num_frames' is 9", "an image has 1"]),
        ("dev", "text-to-image", {"max_sequence_length": 513}, ["is 513", "at most 512"]),
        ("dev", "text-to-image", {"flow_shift": 2.0}, ["'flow_shift' has no effect"]),
        ("dev", "text-to-image", {"negative_prompt": "ugly"}, ["if 'true_cfg_scale' is above 1"]),
        ("dev", "text-to-image", {"true_cfg_scale": 2.0}, ["needs a 'negative_prompt'"]),
        ("dev", "text-to-image", {"strength": 0.5}, ["'strength' has no effect on text-to-image"]),
        ("dev", "inpainting", {"strength": 1e-17}, ["leaves none of the 28 steps"]),
        ("kontext", "image-to-image", {"strength": 0.5}, ["has no effect on image-to-image"]),
        ("schnell", "text-to-image", {"guidance_scale": 3.5}, ["has no effect", "Leave it out"]),
        ("fill", "inpainting", {"negative_prompt": "ugly"}, ["has no effect", "Leave it out"]),
    ],
)
def test_the_cards_refuse_what_the_pipelines_cannot_make(
    cards: dict[str, ModelCard],
    inputs: Inputs,
    model: str,
    task: Task,
    values: dict[str, Any],
    words: list[str],
) -> None:
    given = inputs if task == "inpainting" else Inputs(images=inputs.images)
    with pytest.raises(InvalidRequest) as refused:
        cards[model].resolve(values, task=task, inputs=given)
    assert refused.value.param == next(iter(values))
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("task", ["image-to-image", "inpainting"])
def test_a_picture_smaller_than_a_token_is_refused(
    cards: dict[str, ModelCard], tmp_path: Path, task: Task
) -> None:
    size = (200, 40)
    small = Inputs(images=(picture(tmp_path, size, 0),), mask=picture(tmp_path, size, 0, "L"))
    with pytest.raises(InvalidRequest, match=r"image is 200x40; .* takes sides of at least 64"):
        cards["kontext"].resolve({}, task=task, inputs=small)


def test_fill_makes_nothing_from_text(cards: dict[str, ModelCard]) -> None:
    with pytest.raises(InvalidRequest, match="it does inpainting"):
        cards["fill"].resolve({})


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        ("fill", "FluxPipeline", "takes 288 channels, where FluxPipeline has 16"),
        ("dev", "FluxFillPipeline", "takes 16 channels, where FluxFillPipeline has 288"),
    ],
)
def test_a_transformer_of_another_pipeline_is_refused(
    directories: dict[str, Path], tmp_path: Path, model: str, kind: str, words: str
) -> None:
    path = tmp_path / "model"
    shutil.copytree(directories[model], path)
    index = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps({**index, "_class_name": kind}))
    with pytest.raises(ConfigError, match=words):
        card_of(path)


def test_ranks_that_cannot_share_words_or_tokens_say_so(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    card = card_of(directories["kontext"], ulysses_degree=2, ring_degree=2)
    with pytest.raises(InvalidRequest, match=r"'max_sequence_length' is 33.*evenly.*Nearest: 36\."):
        card.resolve({"max_sequence_length": 33})
    seen = Inputs(images=(picture(tmp_path, (640, 448), 0),))
    with pytest.raises(
        InvalidRequest, match="1024x1024 with 1 frame and these input images is 503 tokens"
    ):
        card.resolve({}, task="image-to-image", inputs=seen)
    square = Inputs(images=(picture(tmp_path, (256, 256), 0),))
    card.resolve({}, task="image-to-image", inputs=square)


def test_only_fill_has_no_halves_for_guidance_to_share_out(
    directories: dict[str, Path],
) -> None:
    for model in ("dev", "kontext"):
        card_of(directories[model], cfg_parallel_size=2)
    with pytest.raises(ConfigError, match="runs no unconditional forward"):
        card_of(directories["fill"], cfg_parallel_size=2)
