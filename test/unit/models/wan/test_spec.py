"""Wan's card: defaults, sizes and refusals of every variant. Needs no torch but to write models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import zoo, zoo_wan
from fakes.cases import Checkpoints, card_of
from safelight.errors import ConfigError, InvalidRequest
from safelight.models.card import ModelCard
from safelight.request import Inputs, Picture, Task

MAKE: dict[str, Callable[[Path], Path]] = {
    "2.1": zoo.tiny_wan,
    "2.1 I2V": zoo_wan.tiny_image_to_video,
    "2.1 FLF2V": zoo_wan.tiny_first_and_last,
    "2.2 T2V": zoo_wan.tiny_a14b,
    "2.2 I2V": zoo_wan.tiny_a14b_from_pictures,
    "2.2 TI2V": zoo_wan.tiny_ti2v,
}
VIDEO: Task = "text-to-video"
PICTURED: Task = "image-to-video"


@pytest.fixture(scope="module")
def directories(
    checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wan")
    return {
        name: checkpoints.copied(make, folder / name.replace(" ", "-"))
        for name, make in MAKE.items()
    }


@pytest.fixture(scope="module")
def cards(directories: dict[str, Path]) -> dict[str, ModelCard]:
    return {name: card_of(path) for name, path in directories.items()}


def pictures(*sizes: tuple[int, int]) -> Inputs:
    return Inputs(
        images=tuple(
            Picture(path="", width=width, height=height, digest=f"{index}")
            for index, (width, height) in enumerate(sizes)
        )
    )


def test_what_each_can_make(cards: dict[str, ModelCard]) -> None:
    text = ("text-to-video", "text-to-image")
    able = {name: (card.tasks, card.max_images) for name, card in cards.items()}
    assert able == {
        "2.1": (text, 0),
        "2.1 I2V": ((PICTURED,), 1),
        "2.1 FLF2V": ((PICTURED,), 2),
        "2.2 T2V": (text, 0),
        "2.2 I2V": ((PICTURED,), 2),
        "2.2 TI2V": ((*text, PICTURED), 1),
    }
    ours = {name for name, card in cards.items() if "guidance_scale_2" in card.parameters}
    assert ours == {"2.2 T2V", "2.2 I2V"}
    assert all("flow_shift" in card.parameters for card in cards.values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("2.1", (832, 480, 81, 16, 50, 5.0, None)),
        ("2.1 I2V", (832, 480, 81, 16, 50, 5.0, None)),
        ("2.2 T2V", (1280, 720, 81, 16, 40, 4.0, 3.0)),
        ("2.2 I2V", (1280, 720, 81, 16, 40, 3.5, 3.5)),
        ("2.2 TI2V", (1280, 704, 121, 24, 50, 5.0, None)),
    ],
)
def test_the_defaults(
    cards: dict[str, ModelCard], name: str, expected: tuple[float | None, ...]
) -> None:
    s = cards[name].fill({})
    sizes = (s.width, s.height, s.num_frames, s.fps, s.num_inference_steps)
    assert (*sizes, s.guidance_scale, s.guidance_scale_2) == expected
    cards[name].check(s, cards[name].tasks[0], pictures(*[(64, 64)] * cards[name].max_images))


def test_tokens_are_those_of_the_video(cards: dict[str, ModelCard]) -> None:
    """Known frames are channels or tokens of it, not tokens beside it."""
    given = pictures((64, 64))
    for name, count in (("2.1 I2V", 21 * 30 * 52), ("2.2 TI2V", 31 * 22 * 40)):
        card = cards[name]
        sampling = card.resolve({"width": card.defaults["width"]}, task=PICTURED, inputs=given)
        assert card.tokens(sampling, given) == count


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("2.1 I2V", (832, 480), (832, 480)),
        ("2.1 I2V", (1080, 1920), (464, 832)),
        ("2.1 I2V", (300, 300), (624, 624)),
        ("2.1 I2V", (100, 20_000), (32, 4096)),
        ("2.2 I2V", (1000, 1000), (960, 960)),
        ("2.2 TI2V", (1920, 1080), (1248, 704)),
        ("2.2 TI2V", (20_000, 20), (4096, 32)),
    ],
)
def test_a_video_has_the_shape_of_its_first_picture(
    cards: dict[str, ModelCard],
    name: str,
    size: tuple[int, int],
    expected: tuple[int, int],
) -> None:
    card, given = cards[name], pictures(size)
    sampling = card.resolve({}, task=PICTURED, inputs=given)
    assert (sampling.width, sampling.height) == expected
    asked = card.resolve({"width": 320, "height": 320}, task=PICTURED, inputs=given)
    assert (asked.width, asked.height) == (320, 320)


def test_text_alone_has_the_default_size(cards: dict[str, ModelCard]) -> None:
    sampling = cards["2.2 TI2V"].resolve({}, task=VIDEO)
    assert (sampling.width, sampling.height) == (1280, 704)


@pytest.mark.parametrize(
    ("values", "scales"),
    [
        ({}, (4.0, 3.0)),
        ({"guidance_scale": 6.0}, (6.0, 6.0)),
        ({"guidance_scale_2": 6.0}, (4.0, 6.0)),
        ({"guidance_scale": 6.0, "guidance_scale_2": 2.0}, (6.0, 2.0)),
        ({"guidance_scale": 1.0}, (1.0, 1.0)),
        ({"guidance_scale": None, "guidance_scale_2": None}, (4.0, 3.0)),
    ],
)
def test_one_scale_given_is_that_of_both_experts(
    cards: dict[str, ModelCard], values: dict[str, Any], scales: tuple[float, float]
) -> None:
    sampling = cards["2.2 T2V"].resolve(values)
    assert (sampling.guidance_scale, sampling.guidance_scale_2) == scales


@pytest.mark.parametrize(
    ("name", "values", "count", "words"),
    [
        ("2.1", {"guidance_scale_2": 3.0}, 0, ["'guidance_scale_2' has no effect"]),
        (
            "2.2 T2V",
            {"guidance_scale": 1.0, "guidance_scale_2": 3.0},
            0,
            ["'guidance_scale_2' is 3", "turns the guidance of both experts off"],
        ),
        ("2.2 TI2V", {"width": 1296}, 1, ["'width' is 1296", "1280 or 1312"]),
        ("2.2 TI2V", {"height": 720}, 0, ["'height' is 720", "704 or 736"]),
        ("2.2 TI2V", {}, 2, ["2 input images", "at most 1"]),
        ("2.2 I2V", {}, 0, ["'image' is missing"]),
        ("2.2 I2V", {}, 3, ["3 input images", "at most 2"]),
        ("2.2 I2V", {"num_frames": 1}, 2, ["'num_frames' is 1", "at least 5"]),
        ("2.1 I2V", {}, 2, ["2 input images", "at most 1"]),
        ("2.1 FLF2V", {}, 1, ["1 input image", "takes 2, the first frame and the last"]),
        ("2.1 I2V", {"max_sequence_length": 256}, 1, ["is 256", "takes 512 alone"]),
        ("2.1 I2V", {"strength": 0.5}, 1, ["'strength' has no effect"]),
    ],
)
def test_what_is_refused(
    cards: dict[str, ModelCard],
    name: str,
    values: dict[str, Any],
    count: int,
    words: list[str],
) -> None:
    card = cards[name]
    task = VIDEO if VIDEO in card.tasks and not count else PICTURED
    with pytest.raises(InvalidRequest) as refused:
        card.resolve(values, task=task, inputs=pictures(*[(64, 64)] * count))
    for word in words:
        assert word in str(refused.value)


def test_samples_share_forwards_whatever_their_pictures(cards: dict[str, ModelCard]) -> None:
    card, size = cards["2.2 TI2V"], {"width": 64, "height": 64}
    given = [pictures((64, 64)), pictures((300, 20))]
    keys = {
        card.batch_key(card.resolve(size, task=PICTURED, inputs=one), PICTURED, one)
        for one in given
    }
    keys.add(card.batch_key(card.resolve(size, task=VIDEO), VIDEO))
    assert len(keys) == 1
    other = card.resolve({**size, "num_frames": 5}, task=VIDEO)
    assert card.batch_key(other, VIDEO) not in keys


@pytest.mark.parametrize(
    ("name", "file", "change", "words"),
    [
        ("2.2 T2V", "model_index", {"boundary_ratio": None}, "two transformers, but .* 0.875"),
        ("2.2 T2V", "model_index", {"transformer_2": [None, None]}, "no transformer_2 that takes"),
        ("2.2 T2V", "model_index", {"transformer": [None, None]}, "no transformer for high noise"),
        (
            "2.1 I2V",
            "model_index",
            {"image_encoder": [None, None]},
            "the pipeline has no image_enc",
        ),
        ("2.1", "transformer/config", {"in_channels": 36}, "takes 36 channels, where WanPipeline"),
        ("2.2 I2V", "transformer/config", {"in_channels": 8}, "takes 8 channels, .* gives it 20"),
    ],
)
def test_variants_that_could_not_run_are_refused(
    tmp_path: Path, name: str, file: str, change: dict[str, Any], words: str
) -> None:
    directory = MAKE[name](tmp_path / "model")
    path = directory / f"{file}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=words):
        card_of(directory)
