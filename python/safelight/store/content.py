"""Finished files, `<root>/<job id>/<index>.<extension>`, beside them the input pictures of
unfinished jobs, and nothing outside the root."""

from __future__ import annotations

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
        for left in directory.glob(".safelight-*.part"):
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

    def sweep(self, unfinished: Container[str]) -> None:
        """Remove input pictures of all but these jobs: those that a crash left behind."""
        for path in self.root.glob("*/*.raw"):
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


def _flush(directory: Path) -> None:
    """Make the names in it durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
