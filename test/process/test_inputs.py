"""Input pictures through the command line and all processes: edited, animated, repainted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakes import probe
from fakes.cases import Case, Checkpoints
from fakes.pipelines import CASES
from safelight.cli.app import run

SIZE = (64, 64)
pytestmark = pytest.mark.timeout(400)


def case(name: str, task: str) -> Case:
    return next(one for one in CASES if (one.name, one.task) == (name, task))


def photograph(path: Path, seed: int) -> np.ndarray:
    """A smooth picture of its own; uint8 [H, W, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    picture = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
    picture.save(path)
    return np.asarray(picture)


def generate(model: Path, output: Path, *flags: str) -> None:
    status = run(
        [
            *("generate", "a red circle", "--model-path", str(model), "--device", "cpu"),
            *("--cpu-threads", "1", "--seed", "7", "--num-inference-steps", "3"),
            *("--output-path", str(output.parent), "--output-file-name", output.name, *flags),
        ]
    )
    assert status == 0


def test_a_picture_is_edited(tmp_path: Path, checkpoints: Checkpoints) -> None:
    model = checkpoints.of(case("FLUX.1 dev", "image-to-image"))
    source = tmp_path / "in.png"
    original = photograph(source, 1)
    flags = ("--image-path", str(source), "--width", "64", "--height", "64")
    generate(model, tmp_path / "little.png", *flags, "--strength", "0.4")
    made = np.asarray(Image.open(tmp_path / "little.png"))
    assert made.shape == (64, 64, 3)
    assert not np.array_equal(made, original)


def test_a_picture_is_animated(tmp_path: Path, checkpoints: Checkpoints) -> None:
    model = checkpoints.of(case("Wan 2.1 I2V", "image-to-video"))
    source = tmp_path / "in.png"
    photograph(source, 2)
    size = ("--width", "64", "--height", "64", "--num-frames", "5")
    generate(model, tmp_path / "clip.mp4", "--image-path", str(source), *size)
    video = probe.video(tmp_path / "clip.mp4")
    assert (video.codec, video.width, video.height) == ("h264", 64, 64)


def test_a_mask_changes_only_what_it_covers(tmp_path: Path, checkpoints: Checkpoints) -> None:
    model = checkpoints.of(case("SDXL", "inpainting"))
    source, cover = tmp_path / "in.png", tmp_path / "mask.png"
    original = photograph(source, 3)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 24:56] = 255
    Image.fromarray(mask).save(cover)
    size = ("--width", "64", "--height", "64")
    flags = ("--image-path", str(source), "--mask-path", str(cover), *size)
    generate(model, tmp_path / "out.png", *flags)
    made = np.asarray(Image.open(tmp_path / "out.png"))
    assert np.array_equal(made[mask == 0], original[mask == 0])
    assert (made[mask == 255] != original[mask == 255]).mean() > 0.5
