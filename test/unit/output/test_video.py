"""Clips are probed and decoded again with ffmpeg."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fakes import probe
from fakes.shared_memory import clip, in_memory
from safelight.errors import GenerationFailed
from safelight.output import video
from safelight.output.frames import open_frames


def encode(shape: tuple[int, int, int], target: Path, fps: int = 8) -> None:
    with in_memory(clip(*shape)) as memory, open_frames(memory, (*shape, 3)) as frames:
        video.Encoder().encode(frames, target, fps=fps)


@pytest.mark.parametrize(
    ("shape", "size", "fps"),
    [
        ((9, 64, 64), (64, 64), 8),
        ((5, 34, 50), (50, 34), 24),  # even, though no multiple of 16
        ((3, 33, 47), (48, 34), 30),
        ((4, 32, 47), (48, 32), 12),
        ((1, 64, 96), (96, 64), 16),
        ((2, 16, 16), (16, 16), 1),
        ((13, 16, 16), (16, 16), 240),
    ],
)
def test_a_clip_is_what_was_asked_for(
    shape: tuple[int, int, int], size: tuple[int, int], fps: int, tmp_path: Path
) -> None:
    target = tmp_path / "clip.part"
    encode(shape, target, fps)
    stream = probe.video(target)
    assert (stream.codec, stream.pixel_format) == ("h264", "yuv420p")
    assert (stream.width, stream.height) == size
    assert stream.fps == fps
    assert stream.colour.startswith("tv, bt709, ")  # matrix, primaries and curve alike
    boxes = probe.boxes(target)
    assert boxes.index("moov") < boxes.index("mdat")

    frames, height, width = shape
    again = probe.decode(target)
    assert again.shape == (frames, size[1], size[0], 3)
    difference = np.abs(again[:, :height, :width].astype(int) - clip(*shape).astype(int))
    # yuv420p halves colour, so a gradient over few pixels is only nearly kept.
    assert difference.mean() < 4


def test_colours_survive(tmp_path: Path) -> None:
    """In the middle of a plain area nothing but rounding is left of the conversion to YUV."""
    colours = [(200, 30, 60), (20, 220, 40), (30, 40, 230), (250, 250, 0)]
    pixels = np.repeat(np.array(colours, np.uint8), 16, axis=0)[None, None].repeat(32, axis=1)
    with in_memory(pixels) as memory, open_frames(memory, (1, 32, 64, 3)) as frames:
        video.Encoder().encode(frames, tmp_path / "clip", fps=8)
    again = probe.decode(tmp_path / "clip")[0, 16, 8::16].astype(int)
    assert np.abs(again - np.array(colours)).max() <= 2


def test_an_odd_side_is_completed_with_its_last_pixels(tmp_path: Path) -> None:
    target = tmp_path / "clip.part"
    encode((2, 33, 47), target)
    again = probe.decode(target).astype(int)
    assert np.abs(again[:, :, 47] - again[:, :, 46]).mean() < 6
    assert np.abs(again[:, 33] - again[:, 32]).mean() < 6


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    encode((5, 32, 32), tmp_path / "a")
    encode((5, 32, 32), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_failures_carry_the_last_words_of_ffmpeg(tmp_path: Path) -> None:
    with pytest.raises(GenerationFailed, match=r"ffmpeg failed with status \d+: .*") as failure:
        encode((1, 16, 16), tmp_path / "missing" / "clip.part")
    assert "opening output" in failure.value.message
    assert failure.value.code == "encode_failed"


def test_a_full_disk_is_named() -> None:
    with pytest.raises(GenerationFailed, match="the disk is full") as failure:
        encode((1, 16, 16), Path("/dev/full"))
    assert failure.value.code == "disk_full"


def test_a_stopped_encoder_starts_nothing(tmp_path: Path) -> None:
    encoder = video.Encoder()
    encoder.stop()
    with (
        in_memory(clip(1, 16, 16)) as memory,
        open_frames(memory, (1, 16, 16, 3)) as frames,
        pytest.raises(GenerationFailed, match="stopping"),
    ):
        encoder.encode(frames, tmp_path / "clip", fps=8)
    assert list(tmp_path.iterdir()) == []
