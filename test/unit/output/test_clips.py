"""Pictures of clips, and quality that is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakes import probe
from fakes.shared_memory import clip, in_memory
from safelight.errors import GenerationFailed
from safelight.output import clips, video
from safelight.output.frames import open_frames


def encode(path: Path, frames: int, height: int, width: int, compression: int = 50) -> Path:
    pixels = clip(frames, height, width)
    with in_memory(pixels) as memory, open_frames(memory, (frames, height, width, 3)) as opened:
        video.Encoder().encode(opened, path, fps=8, compression=compression)
    return path


@pytest.mark.parametrize(("height", "width"), [(64, 96), (33, 47)])
def test_a_frame_is_the_one_that_was_asked_for(tmp_path: Path, height: int, width: int) -> None:
    path = encode(tmp_path / "clip.mp4", 9, height, width)
    for number in (0, 5, 8):
        pixels = np.frombuffer(clips.frame(path, number, (width, height)), np.uint8)
        seen = pixels.reshape(height, width, 3).astype(int)
        assert np.abs(seen - clip(9, height, width)[number]).mean() < 4
    with pytest.raises(GenerationFailed, match="no frame 9"):
        clips.frame(path, 9, (width, height))


def test_a_thumbnail_is_a_small_first_frame(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", 3, 400, 800)
    clips.thumbnail(path, tmp_path / "out", size=(800, 400))
    with Image.open(tmp_path / "out") as picture:
        assert (picture.format, picture.size) == ("WEBP", (512, 256))
        expected = Image.fromarray(clip(3, 400, 800)[0]).resize((512, 256))
        seen = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(seen - np.asarray(expected)).mean() < 5


@pytest.mark.parametrize(
    ("frames", "size", "shown"), [(9, (96, 96), 9), (1, (32, 32), 1), (40, (128, 128), 16)]
)
def test_a_spritesheet_has_the_frames_in_order(
    tmp_path: Path, frames: int, size: tuple[int, int], shown: int
) -> None:
    path = encode(tmp_path / "clip.mp4", frames, 32, 32)
    clips.spritesheet(path, tmp_path / "out", frames=frames, size=(32, 32))
    with Image.open(tmp_path / "out") as picture:
        assert (picture.format, picture.size) == ("JPEG", size)
        sheet = np.asarray(picture).astype(int)
    numbers = clips.picked(frames)
    assert (len(numbers), numbers[0], numbers[-1]) == (shown, 0, frames - 1)
    columns = size[0] // 32
    for place, number in enumerate(numbers):
        y, x = 32 * (place // columns), 32 * (place % columns)
        tile = sheet[y + 8 : y + 24, x + 8 : x + 24]
        assert np.abs(tile - clip(frames, 32, 32)[number, 8:24, 8:24]).mean() < 8


def test_what_is_no_video_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(GenerationFailed):
        clips.thumbnail(tmp_path / "clip.mp4", tmp_path / "out", size=(64, 64))


def test_compression_is_the_quality_of_the_file(tmp_path: Path) -> None:
    sizes, errors = [], []
    for compression in (0, 35, 50, 90, 100):
        path = encode(tmp_path / f"{compression}.mp4", 9, 128, 128, compression)
        sizes.append(path.stat().st_size)
        seen = probe.decode(path).astype(int)
        errors.append(float(np.abs(seen - clip(9, 128, 128)).mean()))
        assert probe.video(path).pixel_format == "yuv420p"
    assert sizes == sorted(sizes) and len(set(sizes)) == 5
    assert errors[0] > errors[1] > errors[2] >= errors[4]
    assert [video.crf(value) for value in (-1, 0, 50, 100, 101)] == [51, 51, 17, 1, 1]
