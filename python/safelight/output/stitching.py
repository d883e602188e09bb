"""A clip that goes on where another ends: ffmpeg's arguments for both in one file.

The other clip is decoded and encoded again, at the quality of the new one: streams of two encodes
are not promised to fit behind each other. Its frames come first, then the new ones but their
first, which is its last one over again.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import GenerationFailed
from safelight.output.frames import SharedSound
from safelight.request import Clip

PATIENCE_S = 60
_SOUND = re.compile(r"Stream #0:\d+.*: Audio: ")
_RATE = 48_000  # Hz, of sound that only the other clip has


@dataclass(frozen=True)
class Seam:
    """Where two clips meet. Numbers of inputs are ffmpeg's: frames are input 0, sound is 1 if
    there is any, the other clip comes last."""

    clip: Clip
    frames: int
    """New ones, with the one that is dropped."""
    fps: int
    sound: SharedSound | None
    heard_before: bool
    """Whether the other clip has sound."""

    @property
    def total(self) -> int:
        """Frames of the file."""
        return self.clip.num_frames + self.frames - 1

    def arguments(self, filters: str, bit_rate: str) -> list[str]:
        """The input, the graph and the maps; `filters` make yuv420p of the new frames."""
        paced = f"settb=1/{self.fps},setpts=N"
        other = 1 if self.sound is None else 2
        graph = [
            f"[{other}:v]format=yuv420p,{paced}[before]",
            f"[0:v]trim=start_frame=1,{filters},{paced}[after]",
            f"[before][after]concat=n=2:v=1:a=0,{paced}[v]",
            *self._sounds(other),
        ]
        audible = self.heard_before or self.sound is not None
        heard = ["-map", "[a]", "-c:a", "aac", "-b:a", bit_rate, "-flags:a", "+bitexact"]
        return [
            *("-f", "mp4", "-i", self.clip.path, "-filter_complex", ";".join(graph)),
            *("-map", "[v]", "-frames:v", str(self.total), *(heard if audible else ["-an"])),
        ]

    def _sounds(self, other: int) -> list[str]:
        """Each clip's own, or silence, as long as its frames."""
        if not (self.heard_before or self.sound is not None):
            return []
        rate = _RATE if self.sound is None else self.sound.sample_rate
        lengths = [count * rate // self.fps for count in (self.clip.num_frames, self.total)]
        first = lengths[0]
        before = f"[{other}:a]" if self.heard_before else None
        after = None if self.sound is None else "[1:a]"
        return [
            _track(before, 0, first, rate, "heard"),
            _track(after, rate // self.fps, lengths[1] - first, rate, "said"),
            "[heard][said]concat=n=2:v=0:a=1[a]",
        ]


def _track(source: str | None, skip: int, length: int, rate: int, name: str) -> str:
    """`length` samples of the source behind its first `skip`, in stereo, silence where it ends."""
    form = f"aresample={rate},aformat=sample_fmts=fltp:channel_layouts=stereo"
    if source is None:
        return f"anullsrc=r={rate}:cl=stereo,atrim=end_sample={length},{form}[{name}]"
    cut = f"atrim=start_sample={skip},asetpts=N/SR/TB,apad,atrim=end_sample={length}"
    return f"{source}{form},{cut}[{name}]"


def has_sound(executable: str, path: Path) -> bool:
    """Whether a file has a sound track. Raises `GenerationFailed` if it cannot be read."""
    if not path.is_file():
        raise GenerationFailed(
            "The video that was to be continued is no longer there.", code="content_gone"
        )
    try:
        said = _described(executable, path)
    except subprocess.TimeoutExpired as failure:
        raise GenerationFailed("The video takes too long to read.", code="bad_frames") from failure
    return _SOUND.search(said.decode("utf-8", "replace")) is not None


def _described(executable: str, path: Path) -> bytes:
    """What ffmpeg says of a file."""
    return subprocess.run(
        [executable, "-hide_banner", "-f", "mp4", "-i", str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    ).stderr
