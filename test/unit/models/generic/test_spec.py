"""The generic card: what is read off the pipelines and their parts, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import zoo_generic_unet, zoo_generic_video
from fakes.cases import card_of, picture
from safelight.errors import InvalidRequest
from safelight.models.card import ModelCard, Range
from safelight.request import Inputs


def pretend(directory: Path, pipeline: str, **parts: dict[str, Any]) -> Path:
    """A checkpoint of which only the JSON files are there."""
    directory.mkdir(exist_ok=True)
    index = {"_class_name": pipeline, **{name: ["diffusers", "X"] for name in parts}}
    (directory / "model_index.json").write_text(json.dumps(index))
    for name, config in parts.items():
        (directory / name).mkdir()
        (directory / name / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    return card_of(zoo_generic_unet.tiny_stable_diffusion(tmp_path_factory.mktemp("sd") / "model"))


def test_defaults_and_grids_of_the_parts(tmp_path: Path) -> None:
    card = card_of(zoo_generic_video.tiny_mochi(tmp_path / "mochi"))
    assert card.tasks == ("text-to-video",)
    assert card.num_frames == Range(1, 151, 6)
    assert (card.width.step, card.patch) == (16, (6, 16, 16))
    wanted = {"width": 848, "height": 480, "num_frames": 19, "num_inference_steps": 64}
    assert wanted.items() <= card.defaults.items()
    assert card.defaults["guidance_scale"] == 4.5


@pytest.mark.parametrize(
    ("pipeline", "parts", "expected"),
    [
        (
            "CogVideoXPipeline",
            {
                "vae": {"block_out_channels": [1] * 4, "temporal_compression_ratio": 4},
                "transformer": {"sample_width": 90, "sample_height": 60, "sample_frames": 49},
            },
            {"width": 720, "height": 480, "num_frames": 49},
        ),
        (
            "AllegroPipeline",  # its frames are latents, its grid has no first frame
            {
                "vae": {"block_out_channels": [1] * 4, "temporal_compression_ratio": 4},
                "transformer": {"sample_width": 160, "sample_height": 90, "sample_frames": 22},
            },
            {"width": 1280, "height": 720, "num_frames": 88},
        ),
        (
            "SanaPipeline",
            {"vae": {"encoder_block_out_channels": [1] * 6}, "transformer": {"sample_size": 32}},
            {"width": 1024, "height": 1024},
        ),
        (
            "LattePipeline",
            {"vae": {"block_out_channels": [1] * 4}, "transformer": {"patch_size": 2}},
            {"width": 512, "height": 512, "num_frames": 16},
        ),
        (
            "LTXPipeline",
            {
                "vae": {"spatio_temporal_scaling": [True, True, True, False], "patch_size": 4},
                "transformer": {"patch_size": 1},
            },
            {"width": 704, "height": 512, "num_frames": 161, "fps": 25},
        ),
        ("IFPipeline", {"unet": {"sample_size": 64}}, {"width": 64, "height": 64}),
    ],
)
def test_sizes_of_real_configurations(
    pipeline: str, parts: dict[str, Any], expected: dict[str, int], tmp_path: Path
) -> None:
    card = card_of(pretend(tmp_path / "model", pipeline, **parts))
    assert expected.items() <= card.defaults.items()
    for name in ("width", "height", "num_frames"):
        assert card.defaults[name] in getattr(card, name)
    card.check(card.fill({}), card.tasks[0], Inputs())


def test_tasks_have_their_own_parameters(stable_diffusion: ModelCard, tmp_path: Path) -> None:
    card = stable_diffusion
    assert card.tasks == ("text-to-image", "image-to-image", "inpainting")
    with pytest.raises(InvalidRequest, match="'strength' has no effect"):
        card.resolve({"strength": 0.5})
    pictures = Inputs(images=(picture(tmp_path, (64, 64), 0),))
    sampling = card.resolve({"strength": 0.5}, inputs=pictures)
    assert sampling.strength == 0.5
    assert card.resolve({}, inputs=pictures).strength == 0.8
    with pytest.raises(InvalidRequest, match="'true_cfg_scale' has no effect"):
        card.resolve({"true_cfg_scale": 4.0})


def test_a_pipeline_without_a_size_takes_its_pictures(
    stable_diffusion: ModelCard, tmp_path: Path
) -> None:
    size: Callable[..., Any] = stable_diffusion.size_for
    inputs = Inputs(images=(picture(tmp_path, (85, 100), 0),))
    assert size("image-to-image", inputs) == (80, 96)
    assert size("inpainting", inputs) is None
    assert size("text-to-image", Inputs()) is None


def test_what_it_cannot_do_is_said(stable_diffusion: ModelCard) -> None:
    assert set(stable_diffusion.limits) == {"batching", "parallelism"}


def test_a_size_off_the_grid_is_refused_with_the_nearest(stable_diffusion: ModelCard) -> None:
    with pytest.raises(InvalidRequest, match="Nearest: 64 or 80"):
        stable_diffusion.resolve({"width": 70})
