"""Shared memory is believed only after it was checked, and let go of afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fakes.shared_memory import NAME, clip, in_memory
from safelight.errors import GenerationFailed
from safelight.output.frames import open_frames


def mapped() -> bool:
    return NAME in Path("/proc/self/maps").read_text()


def test_the_pixels_are_a_read_only_view_of_the_memory() -> None:
    pixels = clip(3, 4, 5)
    with in_memory(pixels) as memory, open_frames(memory, (3, 4, 5, 3)) as frames:
        view = frames.pixels()
        assert np.array_equal(view, pixels)
        assert not view.flags.writeable
        assert mapped()
        del view
        assert not mapped()


def test_a_plain_file_works_too(tmp_path: Path) -> None:
    path = tmp_path / "frames"
    path.write_bytes(clip(1, 2, 2).tobytes())
    with open_frames(str(path), (1, 2, 2, 3)) as frames:
        assert frames.pixels().shape == (1, 2, 2, 3)


def test_open_frames_outlive_the_rank() -> None:
    pixels = clip(1, 2, 2)
    with in_memory(pixels) as memory:
        frames = open_frames(memory, (1, 2, 2, 3))
    with frames:
        assert np.array_equal(frames.pixels(), pixels)


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 4, 5, 3), (1, 4, 3, 3)])
def test_a_size_that_lies_is_refused_before_mapping(shape: tuple[int, int, int, int]) -> None:
    with in_memory(clip(1, 4, 4)) as memory:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(GenerationFailed, match="bytes, the memory has 48") as failure:
            open_frames(memory, shape)
        assert failure.value.code == "bad_frames"
        assert not mapped()
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "shape", [(0, 4, 4, 3), (1, 4, 4, 4), (1, 8193, 1, 3), (4097, 1, 1, 3), (-1, -4, 4, 3)]
)
def test_a_shape_out_of_bounds_is_refused(shape: tuple[int, int, int, int]) -> None:
    with pytest.raises(GenerationFailed, match="is needed") as failure:
        open_frames("/nowhere", shape)
    assert failure.value.code == "bad_frames"


def test_memory_that_is_gone_says_so() -> None:
    with pytest.raises(GenerationFailed, match="No such file") as failure:
        open_frames("/proc/self/fd/9999", (1, 1, 1, 3))
    assert failure.value.code == "frames_lost"


def test_a_fifo_neither_blocks_nor_passes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(GenerationFailed, match="not in shared memory"):
        open_frames(str(tmp_path / "fifo"), (1, 1, 1, 3))


def test_a_nul_in_the_path_is_refused() -> None:
    with pytest.raises(GenerationFailed, match="NUL"):
        open_frames("/proc/\0", (1, 1, 1, 3))
