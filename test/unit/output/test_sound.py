"""Sound in shared memory is checked as frames are, and heard in the file again."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from fakes import probe
from fakes.shared_memory import clip, frames_message, in_memory
from fakes.sound import Audio, audio, heard, level, pitch, sounding, tone
from safelight.errors import GenerationFailed
from safelight.output import video
from safelight.output.delivery import deliver, open_material
from safelight.output.frames import open_sound
from safelight.wire.messages import FRAMES_LOST, MediaReady, Sound

RATE = 24_000
FPS = 8


def write(target: Path, samples: NDArray[np.float32], frames: int = 16, rate: int = RATE) -> None:
    """A clip of `frames` frames, 1/8 s each, with sound."""
    pixels = clip(frames, 32, 32)
    format = "mp4" if target.suffix == ".mp4" else "png"
    with in_memory(pixels) as memory, sounding(samples, rate) as sound:
        message = frames_message(memory, pixels, target, format)
        message = msgspec.structs.replace(message, sound=sound)
        answer = deliver(message, open_material(message), video.Encoder())
    assert isinstance(answer, MediaReady), answer


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_tone_is_heard_again(tmp_path: Path) -> None:
    """Two channels, each with its pitch and level, beside a video that is as it was without."""
    target = tmp_path / "clip.mp4"
    loud = tone(2.0, hz=(440.0, 880.0)) * np.array([1.0, 0.25], np.float32)
    before = descriptors()
    write(target, loud)
    assert descriptors() == before
    assert audio(target) == Audio("aac", RATE, "stereo")
    stream = probe.video(target)
    assert (stream.codec, stream.fps) == ("h264", FPS)
    assert len(probe.decode(target)) == 16
    boxes = probe.boxes(target)
    assert boxes.index("moov") < boxes.index("mdat")
    again = heard(target)
    assert [round(pitch(again[:, channel])) for channel in (0, 1)] == [440, 880]
    assert level(again[:, 0]) == pytest.approx(level(loud[:, 0]), rel=0.02)
    assert level(again[:, 1]) == pytest.approx(level(loud[:, 1]), rel=0.02)
    # In step with the frames: what the encoder needs to start is not heard.
    middle = slice(RATE // 2, RATE)
    assert np.abs(again[middle] - loud[middle]).max() < 0.02


@pytest.mark.parametrize(("seconds", "frames"), [(3.0, 16), (0.5, 16), (2.0, 16), (1.0, 5)])
def test_sound_is_as_long_as_the_video(seconds: float, frames: int, tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    write(target, tone(seconds), frames=frames)
    again = heard(target)
    assert len(again) == frames * RATE // FPS
    spoken = round(min(seconds, frames / FPS) * RATE)
    assert level(again[:spoken]) == pytest.approx(0.5 / 2**0.5, rel=0.03)
    assert len(again) <= spoken + 2048 or level(again[spoken + 2048 :]) < 1e-3


@pytest.mark.parametrize(
    ("rate", "channels", "stored"), [(16_000, 1, 16_000), (44_100, 2, 44_100), (50_000, 1, 48_000)]
)
def test_other_rates_and_one_channel(rate: int, channels: int, stored: int, tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    write(target, tone(2.0, rate, hz=(440.0,) * channels), rate=rate)
    assert audio(target) == Audio("aac", stored, "mono" if channels == 1 else "stereo")
    again = heard(target, channels)
    assert round(pitch(again[:, 0], stored)) == 440
    assert len(again) == pytest.approx(2 * stored, abs=1)


def test_the_same_sound_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write(tmp_path / name, tone(1.0), frames=8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_still_picture_ignores_it(tmp_path: Path) -> None:
    before = descriptors()
    write(tmp_path / "still.png", tone(0.1), frames=1)
    assert descriptors() == before
    assert (tmp_path / "still.png").read_bytes().startswith(b"\x89PNG")


def test_samples_that_are_no_numbers_fail_their_clip(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="code='encode_failed'"):
        write(tmp_path / "clip.mp4", tone(1.0) * np.float32("nan"))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- descriptors


@pytest.mark.parametrize("shape", [(100, 2), (49, 2), (51, 2), (50, 1)])
def test_a_size_that_lies_is_refused(shape: tuple[int, int]) -> None:
    with sounding(np.zeros((50, 2), np.float32)) as sound:
        before = descriptors()
        lies = msgspec.structs.replace(sound, shape=shape)
        with pytest.raises(GenerationFailed, match="bytes, the memory has 400") as failure:
            open_sound(lies)
        assert failure.value.code == "bad_frames"
        assert descriptors() == before


@pytest.mark.parametrize(
    ("shape", "rate"),
    [
        ((0, 2), RATE),
        ((-1, -2), RATE),
        ((50, 0), RATE),
        ((50, 3), RATE),
        ((50, 2), 0),
        ((50, 2), 7_999),
        ((50, 2), 96_001),
        ((4096 * RATE + 1, 2), RATE),
    ],
)
def test_what_is_out_of_bounds_is_refused(shape: tuple[int, int], rate: int) -> None:
    with pytest.raises(GenerationFailed, match="is needed") as failure:
        open_sound(Sound(memory="/nowhere", shape=shape, sample_rate=rate))
    assert failure.value.code == "bad_frames"


def test_sound_that_is_gone_leaves_no_frames_open(tmp_path: Path) -> None:
    pixels = clip(1, 16, 16)
    with in_memory(pixels) as memory:
        message = msgspec.structs.replace(
            frames_message(memory, pixels, tmp_path / "x.mp4", "mp4"),
            sound=Sound(memory="/proc/self/fd/9999", shape=(50, 2), sample_rate=RATE),
        )
        before = descriptors()
        with pytest.raises(GenerationFailed, match="No such file") as failure:
            open_material(message)
        assert failure.value.code == FRAMES_LOST
        assert descriptors() == before
