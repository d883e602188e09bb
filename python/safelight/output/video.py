"""Frames to MP4: H.264, yuv420p, playable while it loads, through imageio-ffmpeg's ffmpeg; sound
becomes its AAC track.

ffmpeg reads the shared memory itself, frames as its standard input and sound from a descriptor it
inherits: no pixel passes through Python.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import subprocess
import threading
from pathlib import Path

import imageio_ffmpeg

from safelight.errors import GenerationFailed
from safelight.output import stitching, writing
from safelight.output.frames import SharedFrames, SharedSound
from safelight.output.stitching import Seam
from safelight.request import Clip

MEDIA_TYPE = "video/mp4"

# By `compression`: 50, the default, is visually lossless; 0 is the least x264 can do. 100 stops
# short of its lossless mode, which is of a profile that most players do not have.
_WORST, _USUAL, _BEST = 51, 17, 1
# 17 frames of 832x480 on one core: ultrafast 0.06 s, veryfast 0.14 s, medium 0.29 s; the files of
# veryfast are 1.1 times, of ultrafast 3.6 times as large as medium's.
_PRESET = "veryfast"
_PIXELS_PER_THREAD = 10_000_000  # below it, a second encoder thread costs more than it saves
_MAX_THREADS = 8
# RGB says nothing about YUV: name matrix, range and curve, or players guess by the picture's size.
_TO_YUV = (
    "scale=in_range=pc:out_range=tv:out_color_matrix=bt709"
    ":flags=bicubic+accurate_rnd+full_chroma_int,format=yuv420p"
    ",setparams=color_primaries=bt709:color_trc=bt709"
)
_AUDIO_BIT_RATE = "192k"
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")


class Encoder:
    """Runs ffmpeg; `stop` ends what runs, from any thread."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def encode(
        self,
        frames: SharedFrames,
        target: Path,
        *,
        fps: int,
        sound: SharedSound | None = None,
        compression: int = 50,
        after: Clip | None = None,
    ) -> None:
        """Write `frames` to `target`, a video of `even_size(frames)`.

        Every frame is kept and lasts 1/fps seconds. yuv420p needs even sides: an odd one is made
        even by repeating its last row or column. `sound` is cut, or goes on in silence, to the
        length of the video. `compression`, 0 to 100, is the quality. `after` is a clip that the
        frames go on from: see `stitching`. Raises `GenerationFailed` with ffmpeg's last words.
        """
        inherited = () if sound is None else (sound.fd,)
        for fd in (frames.fd, *inherited):
            os.lseek(fd, 0, os.SEEK_SET)
        seam = None if after is None else _seam(after, frames, fps, sound)
        arguments = command(frames, target, fps, sound, compression, seam)
        status, words = self._run(arguments, frames.fd, inherited)
        if status != 0:
            raise _failure(status, words, target)

    def stop(self) -> None:
        """Kill every ffmpeg and start no more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.kill()

    def _run(self, arguments: list[str], stdin: int, inherited: tuple[int, ...]) -> tuple[int, str]:
        """Exit status and standard error."""
        with self._lock:
            if self._stopped:
                raise GenerationFailed("The output manager is stopping.", code="stopping")
            process = subprocess.Popen(
                arguments,
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=inherited,
            )
            self._running.add(process)
        try:
            _, errors = process.communicate()
        finally:
            with self._lock:
                self._running.discard(process)
        return process.returncode, errors.decode("utf-8", "replace")


def even_size(frames: SharedFrames) -> tuple[int, int]:
    """Width and height rounded up to even numbers."""
    _, height, width, _ = frames.shape
    return width + width % 2, height + height % 2


def crf(compression: int) -> int:
    """x264's constant rate factor for a quality of 0 to 100: less is better."""
    if compression <= 50:
        return round(_WORST + (_USUAL - _WORST) * max(0, compression) / 50)
    return round(_USUAL + (_BEST - _USUAL) * (min(100, compression) - 50) / 50)


def _seam(after: Clip, frames: SharedFrames, fps: int, sound: SharedSound | None) -> Seam:
    heard = stitching.has_sound(executable(), Path(after.path))
    return Seam(after, frames.shape[0], fps, sound, heard)


def command(
    frames: SharedFrames,
    target: Path,
    fps: int,
    sound: SharedSound | None = None,
    compression: int = 50,
    seam: Seam | None = None,
) -> list[str]:
    """The ffmpeg command line."""
    count, height, width, _ = frames.shape
    total = count if seam is None else seam.total
    threads = min(_MAX_THREADS, 1 + total * height * width // _PIXELS_PER_THREAD)
    if seam is None:
        made = ["-vf", _filters(frames), "-frames:v", str(count), *_audio(sound, count, fps)]
    else:
        made = seam.arguments(_filters(frames), _AUDIO_BIT_RATE)
    return [
        executable(), "-hide_banner", "-loglevel", "error", "-nostats", "-y",
        "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}",
        "-framerate", str(fps), "-i", "pipe:0", *_heard(sound), *made,
        "-fps_mode", "passthrough", "-c:v", "libx264", "-preset", _PRESET,
        "-crf", str(crf(compression)), "-threads", str(threads),
        "-movflags", "+faststart", "-fflags", "+bitexact", "-flags:v", "+bitexact",
        "-f", "mp4", str(target),
    ]  # fmt: skip


def _heard(sound: SharedSound | None) -> list[str]:
    """The input that sound is."""
    if sound is None:
        return []
    layout = "mono" if sound.channels == 1 else "stereo"
    return [
        *("-f", "f32le", "-ar", str(sound.sample_rate), "-ch_layout", layout),
        *("-i", f"pipe:{sound.fd}"),
    ]


def _audio(sound: SharedSound | None, frames: int, fps: int) -> list[str]:
    """What becomes of it: AAC, as many samples as the video is long."""
    if sound is None:
        return ["-an"]
    samples = round(frames * sound.sample_rate / max(1, fps))  # ffmpeg refuses a rate of 0 itself
    length = f"apad=whole_len={samples},atrim=end_sample={samples}"
    return [
        *("-map", "0:v", "-map", "1:a", "-af", length),
        *("-c:a", "aac", "-b:a", _AUDIO_BIT_RATE, "-flags:a", "+bitexact"),
    ]


def _filters(frames: SharedFrames) -> str:
    _, height, width, _ = frames.shape
    even_width, even_height = even_size(frames)
    if (even_width, even_height) == (width, height):
        return _TO_YUV
    pad = f"pad={even_width}:{even_height}"
    smear = f"fillborders=right={even_width - width}:bottom={even_height - height}:mode=smear"
    # The padding is repeated as RGB (planar, which fillborders needs), before colour is halved.
    return f"format=gbrp,{pad},{smear},{_TO_YUV}"


@functools.cache
def executable() -> str:
    """imageio-ffmpeg's ffmpeg. Raises `GenerationFailed` if there is none."""
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as failure:
        raise GenerationFailed(
            "ffmpeg was not found: install imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to one.",
            code="encode_failed",
        ) from failure


def _failure(status: int, words: str, target: Path) -> GenerationFailed:
    if status < 0:
        return GenerationFailed(f"ffmpeg was ended by signal {-status}.", code="encode_failed")
    if _DISK_FULL.search(words):
        return writing.explain(OSError(errno.ENOSPC, words), target)
    last = next((line for line in reversed(words.splitlines()) if line.strip()), "no message")
    return GenerationFailed(
        f"ffmpeg failed with status {status}: {last.strip()}", code="encode_failed"
    )
