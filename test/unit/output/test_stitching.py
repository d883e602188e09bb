"""A clip that goes on from another, decoded again."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fakes import probe
from fakes.shared_memory import clip, in_memory
from fakes.sound import audio, heard, level, pitch, sounding, tone
from safelight.errors import GenerationFailed
from safelight.output import stitching, video
from safelight.output.frames import open_frames, open_sound
from safelight.output.stitching import has_sound
from safelight.request import Clip


def encode(
    pixels: NDArray[np.uint8], target: Path, after: Clip | None = None, hz: float | None = None
) -> None:
    """At 8 frames a second; with a tone of `hz` as its sound."""
    count, height, width, channels = pixels.shape
    with contextlib.ExitStack() as stack:
        memory = stack.enter_context(in_memory(pixels))
        frames = stack.enter_context(open_frames(memory, (count, height, width, channels)))
        sound = None
        if hz is not None:
            message = stack.enter_context(sounding(tone(count / 8, hz=(hz, hz))))
            sound = stack.enter_context(open_sound(message))
        video.Encoder().encode(frames, target, fps=8, sound=sound, after=after)


@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
def test_the_new_frames_follow_without_their_first(tmp_path: Path, size: tuple[int, int]) -> None:
    whole = clip(16, *size)
    first, both = tmp_path / "first.mp4", tmp_path / "both.mp4"
    encode(whole[:8], first)
    encode(whole[7:], both, after=Clip(path=str(first), num_frames=8))
    stream = probe.video(both)
    assert (stream.codec, stream.pixel_format, stream.fps) == ("h264", "yuv420p", 8.0)
    assert stream.colour.startswith("tv, bt709, ")
    frames = probe.decode(both)[:, : size[0], : size[1]]
    assert frames.shape == whole.shape
    # Blue changes by 20 a frame: each is where it belongs, none is there twice.
    assert np.abs(frames.astype(int) - whole).mean((1, 2, 3)).max() < 4
    before = probe.decode(first)[:, : size[0], : size[1]]
    assert np.abs(frames[:8].astype(int) - before).mean() < 2
    again = tmp_path / "again.mp4"
    encode(whole[7:], again, after=Clip(path=str(first), num_frames=8))
    assert again.read_bytes() == both.read_bytes()


@pytest.mark.parametrize(
    ("before", "after"), [(440.0, 880.0), (440.0, None), (None, 880.0), (None, None)]
)
def test_sound_stays_with_its_frames(
    tmp_path: Path, before: float | None, after: float | None
) -> None:
    whole = clip(31, 32, 32)
    first, both = tmp_path / "first.mp4", tmp_path / "both.mp4"
    encode(whole[:16], first, hz=before)
    assert has_sound(video.executable(), first) is (before is not None)
    encode(whole[15:], both, after=Clip(path=str(first), num_frames=16), hz=after)
    assert probe.decode(both).shape[0] == 31
    stream = audio(both)
    if before is None and after is None:
        assert stream is None
        return
    assert stream is not None
    rate = stream.sample_rate
    samples = heard(both)[:, 0]
    assert abs(len(samples) / rate - 31 / 8) < 0.06  # AAC comes in frames of 1024
    parts = (samples[rate // 4 : 7 * rate // 4], samples[9 * rate // 4 : 15 * rate // 4])
    for part, hz in zip(parts, (before, after), strict=True):
        if hz is None:
            assert level(part) < 0.01
        else:
            assert abs(pitch(part, rate) - hz) < 3


def test_the_sound_of_the_dropped_frame_is_dropped(tmp_path: Path) -> None:
    first, both = tmp_path / "first.mp4", tmp_path / "both.mp4"
    whole = clip(23, 32, 32)
    encode(whole[:8], first)
    samples = np.zeros((16 * 3000, 2), np.float32)
    samples[:3000] = tone(1 / 8)  # while its first frame is shown
    with (
        in_memory(whole[7:]) as memory,
        open_frames(memory, (16, 32, 32, 3)) as frames,
        sounding(samples) as message,
        open_sound(message) as sound,
    ):
        after = Clip(path=str(first), num_frames=8)
        video.Encoder().encode(frames, both, fps=8, sound=sound, after=after)
    assert level(heard(both)[:, 0]) < 0.01


def test_a_clip_that_is_gone_is_a_clear_failure(tmp_path: Path) -> None:
    with pytest.raises(GenerationFailed) as caught:
        encode(clip(3, 32, 32), tmp_path / "x.mp4", after=Clip(path="/nowhere.mp4", num_frames=2))
    assert caught.value.code == "content_gone"


def test_a_clip_that_takes_too_long_to_read_fails_its_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stitching, "PATIENCE_S", 0.05)
    slow, other = tmp_path / "ffmpeg", tmp_path / "clip.mp4"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    other.touch()
    with pytest.raises(GenerationFailed, match="takes too long") as failure:
        has_sound(str(slow), other)
    assert failure.value.code == "bad_frames"
