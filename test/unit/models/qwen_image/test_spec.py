"""Qwen-Image's cards: tasks, defaults, sizes and refusals. Needs no torch but to write models."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import (
    CONDITION_IMAGE_SIZE,
    VAE_IMAGE_SIZE,
    calculate_dimensions,
)

from fakes import zoo_qwen
from fakes.cases import Checkpoints, card_of
from safelight.errors import ConfigError, InvalidRequest
from safelight.models.card import ModelCard
from safelight.models.qwen_image import spec
from safelight.request import Inputs, Picture, Task

MAKE: dict[str, Callable[[Path], Path]] = {
    "plain": zoo_qwen.tiny_qwen,
    "edit": zoo_qwen.tiny_edit,
    "plus": zoo_qwen.tiny_edit_plus,
}
PIPELINES: dict[tuple[str, Task], str] = {
    ("plain", "text-to-image"): "QwenImagePipeline",
    ("plain", "image-to-image"): "QwenImageImg2ImgPipeline",
    ("plain", "inpainting"): "QwenImageInpaintPipeline",
    ("edit", "image-to-image"): "QwenImageEditPipeline",
    ("edit", "inpainting"): "QwenImageEditInpaintPipeline",
    ("plus", "image-to-image"): "QwenImageEditPlusPipeline",
}


@pytest.fixture(scope="module")
def directories(
    checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("qwen")
    return {name: checkpoints.copied(make, folder / name) for name, make in MAKE.items()}


@pytest.fixture(scope="module")
def cards(directories: dict[str, Path]) -> dict[str, ModelCard]:
    return {name: card_of(path) for name, path in directories.items()}


def pictures(*sizes: tuple[int, int], mask: bool = False) -> Inputs:
    images = tuple(
        Picture(path="", width=width, height=height, digest=f"{index}")
        for index, (width, height) in enumerate(sizes)
    )
    width, height = sizes[0] if sizes else (8, 8)
    masks = Picture(path="", width=width, height=height, mode="L", digest="mask")
    return Inputs(images=images, mask=masks if mask else None)


def inputs_of(task: Task) -> Inputs:
    return Inputs() if task == "text-to-image" else pictures((64, 64), mask=task == "inpainting")


def test_what_each_can_make(cards: dict[str, ModelCard]) -> None:
    able = {name: (card.tasks, card.max_images) for name, card in cards.items()}
    assert able == {
        "plain": (("text-to-image", "image-to-image", "inpainting"), 1),
        "edit": (("image-to-image", "inpainting"), 1),
        "plus": (("image-to-image",), 16),
    }


@pytest.mark.parametrize(("model", "task"), list(PIPELINES))
def test_the_defaults_are_the_pipelines(
    cards: dict[str, ModelCard], model: str, task: Task
) -> None:
    call = getattr(diffusers, PIPELINES[model, task]).__call__
    signature = inspect.signature(call).parameters
    sampling = cards[model].resolve({}, task=task, inputs=inputs_of(task))
    for name in ("num_inference_steps", "true_cfg_scale", "max_sequence_length"):
        assert getattr(sampling, name) == signature[name].default, name
    strength = signature["strength"].default if "strength" in signature else None
    assert sampling.strength == strength
    assert (sampling.width, sampling.height) == (1024, 1024)


@pytest.mark.parametrize("size", [(640, 480), (33, 97), (3000, 200), (1, 16), (1024, 1024)])
@pytest.mark.parametrize("area", [spec.AREA, spec.CONDITION_AREA])
def test_pictures_are_scaled_as_diffusers_scales_them(size: tuple[int, int], area: int) -> None:
    (picture,) = pictures(size).images
    assert (spec.AREA, spec.CONDITION_AREA) == (VAE_IMAGE_SIZE, CONDITION_IMAGE_SIZE)
    assert spec.scaled(picture, area) == calculate_dimensions(area, size[0] / size[1])


def test_the_output_has_the_shape_of_the_last_picture(cards: dict[str, ModelCard]) -> None:
    """At a megapixel, rounded down to the VAE's multiple, here 128."""
    edited = cards["edit"].resolve({}, task="image-to-image", inputs=pictures((96, 64)))
    assert (edited.width, edited.height) == (1152, 768)
    several = pictures((96, 64), (64, 96))
    last = cards["plus"].resolve({}, task="image-to-image", inputs=several)
    assert (last.width, last.height) == (768, 1152)
    plain = cards["plain"].resolve({}, task="image-to-image", inputs=pictures((96, 64)))
    assert (plain.width, plain.height) == (1024, 1024)


def test_tokens_of_pictures_that_are_seen_count(cards: dict[str, ModelCard]) -> None:
    size = {"width": 256, "height": 384}
    inputs = pictures((96, 64), (64, 64))
    sampling = cards["plus"].resolve(size, task="image-to-image", inputs=inputs)
    assert cards["plus"].tokens(sampling, inputs) == 2 * 3 + 9 * 6 + 8 * 8
    start = cards["plain"].resolve(size, task="image-to-image", inputs=pictures((96, 64)))
    assert cards["plain"].tokens(start, pictures((96, 64))) == 16 * 24


def test_what_may_share_a_forward(cards: dict[str, ModelCard]) -> None:
    """Tasks and prompts mix; pictures that are seen must have as many rows and columns."""

    def key(model: str, task: Task, inputs: Inputs, **values: Any) -> str:
        card = cards[model]
        return card.batch_key(card.resolve(values, task=task, inputs=inputs), task, inputs)

    plain = {key("plain", task, inputs_of(task)) for task in cards["plain"].tasks}
    plain.add(key("plain", "text-to-image", Inputs(), max_sequence_length=99))
    plain.add(key("plain", "image-to-image", pictures((20, 90))))
    assert len(plain) == 1
    assert key("plain", "text-to-image", Inputs(), width=512) not in plain
    editing: Task = "image-to-image"
    edits = [
        key("edit", editing, pictures(one), width=256, height=256)
        for one in ((96, 64), (192, 128), (64, 96))
    ]
    assert edits[0] == edits[1] != edits[2]
    same = key("edit", editing, pictures((64, 64)))
    assert same == key("edit", "inpainting", pictures((32, 32), mask=True))
    several = [
        key("plus", editing, pictures(*sizes), width=256, height=256)
        for sizes in ([(96, 64)], [(96, 64), (64, 64)], [(64, 64), (96, 64)])
    ]
    assert len(set(several)) == 3


REFUSED: list[tuple[str, Task, Inputs, dict[str, Any], str, list[str]]] = [
    ("plain", "text-to-image", Inputs(), {"width": 72}, "width", ["'width' is 72", "64 or 80"]),
    ("plain", "text-to-image", Inputs(), {"height": 8192}, "height", ["Nearest: 4096"]),
    ("plain", "text-to-image", Inputs(), {"num_frames": 9}, "num_frames", ["an image has 1"]),
    ("plain", "text-to-image", Inputs(), {"guidance_scale": 5.0}, "guidance_scale", ["no effect"]),
    ("plain", "text-to-image", Inputs(), {"flow_shift": 3.0}, "flow_shift", ["no effect"]),
    ("plain", "text-to-image", Inputs(), {"strength": 0.5}, "strength", ["Leave it out"]),
    (
        "plain",
        "text-to-image",
        Inputs(),
        {"max_sequence_length": 1025},
        "max_sequence_length",
        ["is 1025", "takes at most 1024"],
    ),
    (
        "plain",
        "image-to-image",
        pictures((64, 64)),
        {"strength": 1e-17},
        "strength",
        ["none of the 50 steps"],
    ),
    ("plain", "image-to-image", pictures((8, 8), (8, 8)), {}, "image", ["2 input", "at most 1"]),
    ("edit", "image-to-image", pictures((64, 64)), {"strength": 0.5}, "strength", ["from noise"]),
    (
        "edit",
        "image-to-image",
        pictures((64, 64)),
        {"max_sequence_length": 64},
        "max_sequence_length",
        ["no effect"],
    ),
    ("edit", "image-to-image", pictures((3400, 200)), {}, "image", ["3400x200", "to 16 times"]),
    ("edit", "image-to-image", pictures((1, 4000)), {}, "image", ["1x4000", "to 16 times"]),
    (
        "edit",
        "inpainting",
        pictures((96, 64), mask=True),
        {"width": 512, "height": 512},
        "size",
        ["'size' is 512x512", "here 1152x768"],
    ),
    ("plus", "image-to-image", pictures(*[(64, 64)] * 17), {}, "image", ["17", "at most 16"]),
    ("plus", "image-to-image", Inputs(), {}, "image", ["'image' is missing"]),
]


@pytest.mark.parametrize(("model", "task", "inputs", "values", "param", "words"), REFUSED)
def test_the_card_refuses_what_the_pipeline_cannot_make(
    cards: dict[str, ModelCard],
    model: str,
    task: Task,
    inputs: Inputs,
    values: dict[str, Any],
    param: str,
    words: list[str],
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        cards[model].resolve(values, task=task, inputs=inputs)
    assert refused.value.param == param
    for word in words:
        assert word in str(refused.value)


def test_several_ranks_need_a_word_each(directories: dict[str, Path]) -> None:
    card = card_of(directories["plain"], ulysses_degree=4)
    with pytest.raises(InvalidRequest, match=r"is 3; .* takes 4 to 1024, as 4 ranks share"):
        card.resolve({"max_sequence_length": 3})


def test_ring_attention_is_refused(directories: dict[str, Path]) -> None:
    """Prompts of different lengths take a mask."""
    with pytest.raises(ConfigError, match="mask"):
        card_of(directories["plain"], ring_degree=2)


def test_a_fixed_shift_can_be_changed(checkpoints: Checkpoints, tmp_path: Path) -> None:
    directory = checkpoints.copied(zoo_qwen.tiny_qwen, tmp_path / "model")
    _set(directory / "scheduler" / "scheduler_config.json", use_dynamic_shifting=False)
    assert card_of(directory).resolve({"flow_shift": 3.0}).flow_shift == 3.0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"guidance_embeds": True}, "embedded guidance"),
        ({"use_additional_t_cond": True}, "Qwen-Image-Layered"),
        ({"use_layer3d_rope": True}, "Qwen-Image-Layered"),
    ],
)
def test_transformers_that_cannot_be_run_are_refused(
    checkpoints: Checkpoints, tmp_path: Path, values: dict[str, bool], words: str
) -> None:
    directory = checkpoints.copied(zoo_qwen.tiny_qwen, tmp_path / "model")
    _set(directory / "transformer" / "config.json", **values)
    with pytest.raises(ConfigError, match=words):
        card_of(directory)


def test_the_processor_of_pictures_needs_torchvision(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = checkpoints.copied(zoo_qwen.tiny_edit, tmp_path / "model")
    _set(directory / "model_index.json", processor=["transformers", "Qwen2VLProcessor"])
    monkeypatch.setattr(spec.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs torchvision"):
        card_of(directory)
    monkeypatch.setattr(spec.importlib.util, "find_spec", lambda name: object())
    assert card_of(directory).tasks == ("image-to-image", "inpainting")


@pytest.mark.parametrize("name", ["QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"])
def test_a_sibling_of_the_same_components_does_all_tasks(
    checkpoints: Checkpoints, tmp_path: Path, name: str
) -> None:
    directory = checkpoints.copied(zoo_qwen.tiny_qwen, tmp_path / "model")
    _set(directory / "model_index.json", _class_name=name)
    assert card_of(directory).tasks == ("text-to-image", "image-to-image", "inpainting")


def _set(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
