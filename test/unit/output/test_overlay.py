"""Outside the mask, the original's own pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safelight.errors import GenerationFailed
from safelight.output.overlay import restore
from safelight.request import Inputs, Picture

SIZE = (32, 24)


def kept(directory: Path, pixels: np.ndarray) -> Picture:
    path = directory / f"{pixels.shape}.raw"
    path.write_bytes(pixels.tobytes())
    mode = "RGB" if pixels.ndim == 3 else "L"
    height, width = pixels.shape[:2]
    return Picture(path=str(path), width=width, height=height, mode=mode, digest="")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def test_only_what_the_mask_covers_is_new(tmp_path: Path) -> None:
    original, made = noise(24, 32, 3), noise(24, 32, 3)[::-1]
    mask = np.zeros((24, 32), np.uint8)
    mask[5:9, 10:20] = 255
    inputs = Inputs(images=(kept(tmp_path, original),), mask=kept(tmp_path, mask))
    found = restore(made, inputs)
    inside = mask == 255
    assert (found[inside] == made[inside]).all()
    assert (found[~inside] == original[~inside]).all()


def test_of_another_size_the_original_is_resized(tmp_path: Path) -> None:
    image, mask = np.full((48, 64, 3), 200, np.uint8), np.zeros((48, 64), np.uint8)
    inputs = Inputs(images=(kept(tmp_path, image),), mask=kept(tmp_path, mask))
    found = restore(noise(24, 32, 3), inputs)
    assert found.shape == (24, 32, 3)
    assert (found == 200).all()


def test_without_a_mask_nothing_is_touched() -> None:
    made = noise(24, 32, 3)
    assert restore(made, Inputs()) is made


def test_an_input_that_is_gone_is_said(tmp_path: Path) -> None:
    inputs = Inputs(images=(kept(tmp_path, noise(4, 4, 3)),), mask=kept(tmp_path, noise(4, 4)))
    (tmp_path / "(4, 4, 3).raw").unlink()
    with pytest.raises(GenerationFailed) as failure:
        restore(noise(4, 4, 3), inputs)
    assert failure.value.code == "input_lost"
