"""Names and formats of the files that `safelight generate` writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

from safelight.errors import ConfigError
from safelight.request import MediaFormat

FORMATS: dict[str, MediaFormat] = {
    ".mp4": "mp4",
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
}
"""Extension -> format; the first extension of a format is the one given by default."""

_MAX_SLUG = 60  # characters; a file name has at most 255 bytes


def format_of(name: str) -> MediaFormat:
    """The format that a file name's extension says. Raises `ConfigError` if it says none."""
    if name != Path(name).name:
        raise ConfigError(
            f"--output-file-name: '{name}' is a path; give its directory as --output-path."
        )
    extension = Path(name).suffix.lower()
    if extension not in FORMATS:
        said = f"the extension '{extension}' is not known" if extension else "there is no extension"
        raise ConfigError(f"--output-file-name: {said} in '{name}'; {', '.join(FORMATS)} are.")
    return FORMATS[extension]


def check_fits(format: MediaFormat, num_frames: int) -> None:
    """Raise `ConfigError` if such a file cannot hold so many frames."""
    if format == "mp4" and num_frames == 1:
        fitting = ", ".join(e for e, f in FORMATS.items() if f != "mp4")
        raise ConfigError(f"--output-file-name: one frame is a still picture: {fitting} fit.")
    if format != "mp4" and num_frames != 1:
        raise ConfigError(
            f"--output-file-name: a {format} file holds one frame, not {num_frames}: use .mp4, "
            "or --num-frames 1."
        )


def destinations(
    directory: Path, name: str | None, format: MediaFormat, prompts: Sequence[str], n: int
) -> list[list[Path]]:
    """For each prompt, the absolute paths of its `n` files; no two are the same.

    A given name is used as it is, with an index where there are several files, and replaces an
    older file, as asked. Without one the prompt names the file and older files are kept.
    """
    directory = directory.expanduser().absolute()
    taken: set[Path] = set()

    def free(path: Path) -> bool:
        return path not in taken and (name is not None or not path.exists())

    plan: list[list[Path]] = []
    for prompt in prompts:
        candidates = _candidates(directory / (name or _default_name(prompt, format)))
        if name is not None and len(prompts) * n > 1:
            next(candidates)  # every one of several files has its index
        plan.append([_take(candidates, free, taken) for _ in range(n)])
    return plan


def _take(candidates: Iterator[Path], free: Callable[[Path], bool], taken: set[Path]) -> Path:
    path = next(path for path in candidates if free(path))
    taken.add(path)
    return path


def _candidates(path: Path) -> Iterator[Path]:
    """clip.mp4, clip-1.mp4, clip-2.mp4, …"""
    yield path
    for index in count(1):
        yield path.with_name(f"{path.stem}-{index}{path.suffix}")


def _default_name(prompt: str, format: MediaFormat) -> str:
    return (slug(prompt) or "output") + extension_of(format)


def slug(text: str) -> str:
    """Letters and digits of a text, at most 60 characters, with dashes between; may be empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:_MAX_SLUG].strip("-")


def extension_of(format: MediaFormat) -> str:
    return next(extension for extension, f in FORMATS.items() if f == format)
