"""What Stable Diffusion XL's card says, and refuses."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import (
    EulerAncestralDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from fakes import cases, zoo_sdxl
from fakes.cases import Checkpoints
from safelight import config as configuration
from safelight.errors import ConfigError, InvalidRequest
from safelight.models.footprint import footprint
from safelight.models.registry import load_capabilities
from safelight.parallel.layout import Layout
from safelight.request import Inputs, Picture, Task


@pytest.fixture(scope="module")
def directory(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.copied(zoo_sdxl.tiny_sdxl, tmp_path_factory.mktemp("sdxl") / "model")


def changed(directory: Path, component: str, **values: Any) -> Path:
    """The directory with other values in a component's configuration."""
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    path = directory / component / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return directory


def given(width: int, height: int, *, mask: bool = False) -> Inputs:
    """Pictures that nobody opens."""
    picture = Picture(path="", width=width, height=height, digest="")
    black = Picture(path="", width=width, height=height, digest="", mode="L")
    return Inputs(images=(picture,), mask=black if mask else None)


INPUTS: dict[Task, Inputs] = {
    "text-to-image": Inputs(),
    "image-to-image": given(64, 64),
    "inpainting": given(64, 64, mask=True),
}


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("text-to-image", StableDiffusionXLPipeline),
        ("image-to-image", StableDiffusionXLImg2ImgPipeline),
        ("inpainting", StableDiffusionXLInpaintPipeline),
    ],
)
def test_the_defaults_are_the_pipelines(directory: Path, task: Task, kind: Any) -> None:
    signature = inspect.signature(kind.__call__).parameters
    sampling = cases.card_of(directory).resolve({}, inputs=INPUTS[task])
    for name in ("num_inference_steps", "guidance_scale", "strength"):
        default = signature[name].default if name in signature else None
        assert getattr(sampling, name) == default, name
    assert (sampling.width, sampling.height) == (64, 64)


def test_sizes_come_from_the_picture_where_the_pipeline_takes_them(directory: Path) -> None:
    """A picture that is to be changed keeps its size; one that is repainted gets the default."""
    card = cases.card_of(directory)
    changed = card.resolve({}, inputs=given(107, 90))
    assert (changed.width, changed.height) == (104, 88)
    repainted = card.resolve({}, inputs=given(107, 90, mask=True))
    assert (repainted.width, repainted.height) == (64, 64)


def test_tokens_are_counted_where_attention_is_widest(directory: Path) -> None:
    card = cases.card_of(directory)
    assert card.patch == (1, 16, 16)
    assert card.tokens(card.resolve({"width": 1024, "height": 1024})) == 4096
    assert card.tokens(card.resolve({"width": 8, "height": 24})) == 2


@pytest.mark.parametrize(
    ("task", "values", "words"),
    [
        ("text-to-image", {"width": 68}, ["'width' is 68", "in steps of 8", "64 or 72"]),
        ("text-to-image", {"height": 4104}, ["'height' is 4104", "Nearest: 4096"]),
        ("text-to-image", {"num_frames": 9}, ["'num_frames' is 9"]),
        (
            "text-to-image",
            {"strength": 0.5},
            ["has no effect on text-to-image", "how far an input image is changed"],
        ),
        ("text-to-image", {"max_sequence_length": 77}, ["'max_sequence_length' has no effect"]),
        ("text-to-image", {"flow_shift": 3.0}, ["'flow_shift' has no effect"]),
        (
            "image-to-image",
            {"strength": 0.3, "num_inference_steps": 3},
            ["leaves none of the 3 steps", "at least 0.334, or 4 steps"],
        ),
    ],
)
def test_the_card_refuses_what_the_pipelines_cannot_make(
    directory: Path, task: Task, values: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        cases.card_of(directory).resolve(values, inputs=INPUTS[task])
    assert refused.value.param == next(iter(values))
    for word in words:
        assert word in str(refused.value)


def test_tasks_are_those_of_the_unet(
    checkpoints: Checkpoints, tmp_path: Path, directory: Path
) -> None:
    all_tasks = ("text-to-image", "image-to-image", "inpainting")
    assert cases.card_of(directory).tasks == all_tasks
    refiner = zoo_sdxl.tiny_sdxl(tmp_path / "refiner", refiner=True)
    assert cases.card_of(refiner).tasks == all_tasks[1:]
    inpainter = checkpoints.copied(zoo_sdxl.tiny_inpainter, tmp_path / "inpainter")
    assert cases.card_of(inpainter).tasks == all_tasks[2:]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_turbo_takes_few_steps_without_guidance(tmp_path: Path) -> None:
    sampler = EulerAncestralDiscreteScheduler(
        **{**zoo_sdxl.SAMPLER, "timestep_spacing": "trailing"}
    )
    path = zoo_sdxl.tiny_sdxl(tmp_path / "model", scheduler=sampler, sample_size=64)
    card = cases.card_of(path)
    fast = card.resolve({})
    assert (fast.num_inference_steps, fast.guidance_scale, fast.width) == (1, 0.0, 512)
    for task in ("image-to-image", "inpainting"):
        made = card.resolve({}, inputs=INPUTS[task])
        assert (made.num_inference_steps, made.guidance_scale, made.strength) == (2, 0.0, 0.5)


def test_embedded_guidance_has_no_other_half(tmp_path: Path) -> None:
    path = zoo_sdxl.tiny_sdxl(tmp_path / "model", time_cond_proj_dim=8)
    assert cases.card_of(path).resolve({}).num_inference_steps == 4
    with pytest.raises(InvalidRequest, match="'negative_prompt' has no effect"):
        cases.card_of(path).resolve({"negative_prompt": "ugly"})
    with pytest.raises(ConfigError, match="runs no unconditional forward"):
        cases.card_of(path, cfg_parallel_size=2)


@pytest.mark.parametrize(
    ("component", "values", "words"),
    [
        ("unet", {"in_channels": 8}, "takes 8 channels .* UNets of 4, and of 9 for inpainting"),
        ("vae", {"latent_channels": 16}, "latents have 16"),
        ("unet", {"addition_embed_type": None}, "addition_embed_type None"),
        ("scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "Karras schedulers"),
    ],
)
def test_other_models_are_refused(
    checkpoints: Checkpoints, tmp_path: Path, component: str, values: dict[str, Any], words: str
) -> None:
    path = changed(checkpoints.copied(zoo_sdxl.tiny_sdxl, tmp_path / "model"), component, **values)
    with pytest.raises(ConfigError, match=words):
        cases.card_of(path)


# ----------------------------------------------------------------------------------- several ranks


@pytest.mark.parametrize("degree", ["ulysses_degree", "ring_degree"])
def test_a_unet_has_no_sequence_to_share(directory: Path, degree: str) -> None:
    with pytest.raises(ConfigError) as refused:
        cases.card_of(directory, **{degree: 2})
    text = str(refused.value)
    assert text.startswith("UNet2DConditionModel has no plan for sequence parallelism")
    assert "attention heads" not in text
    assert "--num-gpus 2 --cfg-parallel-size 2" in text


def test_the_encoders_are_left_whole(directory: Path) -> None:
    with pytest.raises(ConfigError, match="no text encoder can be shared out"):
        cases.card_of(directory, tp_size=2)


def test_heads_and_widths_are_those_of_levels_with_attention(directory: Path) -> None:
    config = configuration.build({"model_path": str(directory), "device": "cpu"})
    found = load_capabilities(config)
    # Four heads of 16 channels, below a level whose 8 channels stand four to a token.
    assert (found.heads, found.width, found.feed_forward) == (4, 32, 64)
    need = footprint(config, Layout(), cuda=False)
    assert set(need.weights) == {"text_encoder", "text_encoder_2", "unet", "vae"}
    assert need.activations == 16 * (10 * 32 + 2 * 64) * 4
