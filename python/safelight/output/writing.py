"""Files that are whole or not there: written aside, made durable, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import GenerationFailed

_CHUNK = 2**20  # bytes

_REASONS = {
    errno.ENOSPC: ("disk_full", "the disk is full"),
    errno.EDQUOT: ("disk_full", "the disk quota is used up"),
    errno.EFBIG: ("disk_full", "the file is larger than this system allows"),
    errno.EACCES: ("permission_denied", "permission denied"),
    errno.EPERM: ("permission_denied", "permission denied"),
    errno.EEXIST: ("write_failed", "a file is where its directory should be"),
    errno.EROFS: ("permission_denied", "the file system is read-only"),
}


@dataclass(frozen=True)
class File:
    """A durable file."""

    path: Path
    nbytes: int
    sha256: str


def write(path: Path, fill: Callable[[Path], None]) -> File:
    """Have `fill` write a file and put it at `path` atomically and durably.

    `fill` gets the path of an empty temporary file in the same directory. Whatever fails, nothing
    is left beside `path`, and what was at `path` before stays. Raises `GenerationFailed` with code
    `disk_full`, `permission_denied` or `write_failed`, or what `fill` raises.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path.parent) as temporary:
            fill(temporary)
            nbytes, sha256 = _flush(temporary)
            os.replace(temporary, path)
        flush_directory(path.parent)
    except OSError as failure:
        raise explain(failure, path) from failure
    return File(path, nbytes, sha256)


def explain(failure: OSError, path: Path) -> GenerationFailed:
    """The sentence and code for a file that could not be written."""
    code, reason = _REASONS.get(failure.errno or 0, ("write_failed", failure.strerror))
    return GenerationFailed(f"Cannot write {path}: {reason}.", code=code)


@contextlib.contextmanager
def _temporary(directory: Path) -> Iterator[Path]:
    """An empty file of our own in `directory`, gone afterwards unless it was renamed.

    Not `tempfile`: its 0600 would become the mode of the finished file; this follows the umask.
    """
    path = directory / f".safelight-{secrets.token_hex(8)}.part"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> tuple[int, str]:
    """Make the content durable; its size in bytes and SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        os.fsync(file.fileno())
        return file.tell(), digest.hexdigest()


def flush_directory(directory: Path) -> None:
    """Make the rename itself durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
