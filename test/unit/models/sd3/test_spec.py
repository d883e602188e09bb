"""Stable Diffusion 3's card."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers import (
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)

from fakes import zoo_sd3
from fakes.cases import Checkpoints, card_of, picture
from safelight.errors import ConfigError, InvalidRequest
from safelight.models.sd3.spec import SD3Card
from safelight.request import Inputs, Task

PIPELINES: dict[Task, Any] = {
    "text-to-image": StableDiffusion3Pipeline,
    "image-to-image": StableDiffusion3Img2ImgPipeline,
    "inpainting": StableDiffusion3InpaintPipeline,
}


@pytest.fixture(scope="module")
def directory(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.copied(zoo_sd3.tiny_sd3, tmp_path_factory.mktemp("sd3") / "sd3")


@pytest.fixture(scope="module")
def card(directory: Path) -> SD3Card:
    card = card_of(directory)
    assert isinstance(card, SD3Card)
    return card


def rewritten(directory: Path, to: Path, file: str, **values: Any) -> Path:
    """A copy in which values of a JSON file are others."""
    shutil.copytree(directory, to)
    path = to / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return to


@pytest.mark.parametrize("task", PIPELINES)
def test_the_defaults_are_the_pipelines(card: SD3Card, task: Task) -> None:
    signature = inspect.signature(PIPELINES[task].__call__).parameters
    defaults = {**card.defaults, **card.task_defaults.get(task, {})}
    for name in ("num_inference_steps", "guidance_scale", "max_sequence_length", "strength"):
        default = signature[name].default if name in signature else None
        assert defaults.get(name) == default, name


def test_sizes_of_the_real_models(directory: Path, tmp_path: Path) -> None:
    """Medium has positions for 1536 pixels a side, and a megapixel by default."""
    own = rewritten(
        directory,
        tmp_path / "medium",
        "transformer/config.json",
        sample_size=128,
        pos_embed_max_size=96,
    )
    card = card_of(own)
    default = card.resolve({})
    assert (default.width, default.height, card.tokens(default)) == (1024, 1024, 64 * 64)
    assert card.width.max == card.height.max == 1536


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 72}, ["'width' is 72", "in steps of 16", "64 or 80"]),
        ({"height": 208}, ["'height' is 208", "16 to 192", "Nearest: 192"]),
        ({"num_frames": 5}, ["'num_frames' is 5", "an image has 1"]),
        ({"max_sequence_length": 513}, ["is 513", "at most 512"]),
        ({"true_cfg_scale": 4.0}, ["'true_cfg_scale' has no effect"]),
        ({"strength": 0.5}, ["'strength' has no effect on text-to-image", "Leave it out"]),
    ],
)
def test_the_card_refuses(card: SD3Card, values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        card.resolve(values)
    assert refused.value.param == next(iter(values))
    for word in words:
        assert word in str(refused.value)


def test_what_shares_a_forward(card: SD3Card, tmp_path: Path) -> None:
    one = picture(tmp_path, (64, 48), 0)
    mask = picture(tmp_path, (64, 48), 0, "L")
    of: dict[Task, Inputs] = {
        "text-to-image": Inputs(),
        "image-to-image": Inputs(images=(one,)),
        "inpainting": Inputs(images=(one,), mask=mask),
    }
    size = {"width": 64, "height": 96}
    keys = {card.batch_key(card.resolve(size, inputs=given), t, given) for t, given in of.items()}
    assert len(keys) == 1
    for values in ({"width": 96, "height": 64}, {**size, "max_sequence_length": 77}):
        assert card.batch_key(card.resolve(values), "text-to-image") not in keys


def test_a_mask_of_another_size(card: SD3Card, tmp_path: Path) -> None:
    one, mask = picture(tmp_path, (64, 48), 0), picture(tmp_path, (64, 64), 0, "L")
    with pytest.raises(InvalidRequest, match="'mask' is 64x64, its image 64x48"):
        card.resolve({}, inputs=Inputs(images=(one,), mask=mask))


def test_a_model_trained_for_inpainting_alone(directory: Path, tmp_path: Path) -> None:
    own = rewritten(directory, tmp_path / "own", "transformer/config.json", in_channels=33)
    with pytest.raises(ConfigError, match="takes 33 channels, where latents have 16"):
        card_of(own)


def test_other_latents_cannot_be_inpainted(directory: Path, tmp_path: Path) -> None:
    own = rewritten(directory, tmp_path / "own", "transformer/config.json", in_channels=8)
    own = rewritten(own, tmp_path / "eight", "vae/config.json", latent_channels=8)
    assert card_of(own).tasks == ("text-to-image", "image-to-image")


def test_only_t5_may_be_missing(directory: Path, tmp_path: Path) -> None:
    nothing = [None, None]
    own = rewritten(directory, tmp_path / "own", "model_index.json", text_encoder_2=nothing)
    with pytest.raises(ConfigError, match=r"has no text_encoder_2\. Of the three only"):
        card_of(own)
    own = rewritten(
        directory,
        tmp_path / "small",
        "model_index.json",
        text_encoder_3=nothing,
        tokenizer_3=nothing,
    )
    assert card_of(own).tasks
    with pytest.raises(ConfigError, match="no text encoder can be shared out"):
        card_of(own, cfg_parallel_size=2, tp_size=2)


def test_layouts(directory: Path) -> None:
    card_of(directory, cfg_parallel_size=2, tp_size=2, vae_parallel="on")
    with pytest.raises(ConfigError, match=r"no plan for sequence parallelism.*cfg-parallel-size"):
        card_of(directory, ulysses_degree=2)
