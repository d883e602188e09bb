"""Finished files, `<root>/<job id>/<index>.<extension>`, beside them what they are
made from, and nothing outside the root."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from safelight.errors import InvalidRequest, NotFound
from safelight.request import MediaFormat

MEDIA_TYPES: dict[MediaFormat, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "mp4": "video/mp4",
}
_EXTENSIONS: dict[MediaFormat, str] = {"png": "png", "jpeg": "jpg", "webp": "webp", "mp4": "mp4"}
MAX_RETAINED = 32 * 2**20
"""Bytes of the input pictures of one finished job that are worth keeping."""

_RETAINED = ".kept"
_PARTS = ".safelight-*.part"
_BY_EXTENSION = {f".{extension}": MEDIA_TYPES[f] for f, extension in _EXTENSIONS.items()}
_BY_EXTENSION[".jpeg"] = MEDIA_TYPES["jpeg"]
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class ContentStore:
    """Maps samples to files under `root`. The output manager writes them; this finds them."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))

    def place(self, job_id: str, index: int, format: MediaFormat) -> Path:
        """Absolute path of a sample's finished file."""
        return self._directory(job_id) / f"{index}.{_EXTENSIONS[format]}"

    def journal(self, job_id: str) -> Path:
        """Absolute path of the job's events."""
        return self._directory(job_id) / "events.jsonl"

    def prepare(self, job_id: str) -> None:
        """Make the directory that the job's files will go to, without what a killed writer left."""
        directory = self._directory(job_id)
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob(_PARTS):
            left.unlink(missing_ok=True)

    def keep(self, files: Mapping[str, bytes]) -> None:
        """Write input pictures, by their stored names; durable when it returns."""
        for name, data in files.items():
            path = self.located(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for directory in {self.located(name).parent for name in files}:
            _flush(directory)
            _flush(directory.parent)

    def adopt(self, files: Mapping[str, Path]) -> None:
        """Make files of other jobs a job's own, by their stored names: their content is shared and
        stays when the others are deleted; durable when it returns. Raises `NotFound`."""
        for name, source in files.items():
            path = self.located(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _link(source, path)
            except FileNotFoundError:
                raise NotFound("The file is no longer there.", code="content_gone") from None
            _flush(path.parent)

    def retain(self, names: Iterable[str]) -> None:
        """Keep a finished job's input pictures, for others that are made from the same ones; none
        if they are large."""
        paths = [self.located(name) for name in names]
        if sum(path.stat().st_size for path in paths if path.exists()) > MAX_RETAINED:
            for path in paths:
                self.discard(path)
            return
        for path in paths:
            if path.exists():
                path.rename(path.with_suffix(_RETAINED))

    def retained(self, name: str) -> bytes:
        """A finished job's input picture, if it was kept. Raises `NotFound`."""
        path = self.located(name)
        for place in (path, path.with_suffix(_RETAINED)):  # in this order: it may just be renamed
            with contextlib.suppress(FileNotFoundError):
                return place.read_bytes()
        raise NotFound("The file is no longer there.", code="content_gone")

    def sweep(self, unfinished: Container[str]) -> None:
        """Remove input pictures and half-written files of all but these jobs: a crash left them."""
        for pattern in ("*/*.raw", f"*/{_PARTS}"):
            for path in self.root.glob(pattern):
                if path.parent.name not in unfinished:
                    self.discard(path)

    def forget(self, names: Iterable[str]) -> None:
        """Remove input pictures that are of no more use."""
        for name in names:
            self.discard(self.located(name))

    def stored(self, path: Path) -> str:
        """How the database names `path`: relative if it is under the root, else absolute."""
        if path.is_relative_to(self.root) and ".." not in path.parts:
            return str(path.relative_to(self.root))
        return str(path)

    def located(self, stored: str) -> Path:
        """The absolute path of a stored name. Raises `NotFound` if it leads out of the root."""
        if os.path.isabs(stored):  # the caller chose the place when it gave the job
            return Path(stored)
        path = self.root / stored
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise NotFound(f"'{stored}' is not in the content store.")
        return path

    def stat(self, path: Path) -> os.stat_result:
        """Facts a file is served with. Raises `NotFound` if it is no longer there."""
        try:
            return path.stat()
        except FileNotFoundError:
            raise NotFound("The file is no longer there.", code="content_gone") from None

    def beside(self, path: Path, name: str) -> Path:
        """Where what is made of a finished file is kept: it goes when that goes."""
        return path.with_name(f"{path.stem}.{name}")

    def delete(self, job_id: str) -> None:
        """Remove a job's files. Files that the caller had put elsewhere stay."""
        shutil.rmtree(self._directory(job_id), ignore_errors=True)

    def discard(self, path: Path) -> None:
        """Remove a file that nobody wants, and its directory if that was the last in it."""
        if not path.resolve().is_relative_to(self.root.resolve()):
            return
        path.unlink(missing_ok=True)
        try:
            path.parent.rmdir()
        except OSError:  # not empty, or gone already
            return

    def _directory(self, job_id: str) -> Path:
        if not _JOB_ID.fullmatch(job_id):
            raise InvalidRequest(
                f"A job id has 1 to 128 letters, digits, '_' or '-'; {job_id!r:.80} does not.",
                param="id",
            )
        return self.root / job_id


def _link(source: Path, path: Path) -> None:
    """A second name of the file, or a durable copy where the file system has no such names."""
    try:
        os.link(source, path)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, path)
        _flush(path)


def media_type_of(path: Path) -> str:
    """The MIME type of a file of ours, by its extension."""
    return _BY_EXTENSION[path.suffix]


def _flush(path: Path) -> None:
    """Make a file's content durable, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
