"""A file is whole or not there."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from safelight.errors import GenerationFailed
from safelight.output import writing


def hello(target: Path) -> None:
    target.write_bytes(b"hello")


def test_the_file_is_described_and_its_directory_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.bin"
    file = writing.write(path, hello)
    assert path.read_bytes() == b"hello"
    assert file == writing.File(path, 5, hashlib.sha256(b"hello").hexdigest())
    assert list(path.parent.iterdir()) == [path]


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        writing.write(tmp_path / "x", hello)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_nobody_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"before")

    def slow(target: Path) -> None:
        with target.open("wb") as file:
            file.write(b"ha")
            file.flush()
            assert path.read_bytes() == b"before"
            file.write(b"lf")

    writing.write(path, slow)
    assert path.read_bytes() == b"half"


def test_a_failing_encoder_leaves_nothing(tmp_path: Path) -> None:
    def breaks(target: Path) -> None:
        target.write_bytes(b"half a pict")
        raise GenerationFailed("The encoder broke.")

    with pytest.raises(GenerationFailed, match="The encoder broke"):
        writing.write(tmp_path / "x", breaks)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_rename_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(GenerationFailed, match="Is a directory") as failure:
        writing.write(tmp_path / "x", hello)
    assert failure.value.code == "write_failed"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_parent_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GenerationFailed, match=r"Cannot write .*file/x\.png: a file is where"):
        writing.write(tmp_path / "file" / "x.png", hello)


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root may write anywhere: be somebody else, as far as files are concerned."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_a_directory_that_may_not_be_written_is_a_clear_error(nobody: None) -> None:
    with pytest.raises(GenerationFailed, match="permission denied") as failure:
        writing.write(Path("/safelight-must-not-be-here/x.png"), hello)
    assert failure.value.code == "permission_denied"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk_full"),
        (errno.EDQUOT, "disk_full"),
        (errno.EROFS, "permission_denied"),
        (errno.EIO, "write_failed"),
    ],
)
def test_every_failure_has_a_code(number: int, code: str) -> None:
    failure = writing.explain(OSError(number, os.strerror(number)), Path("/data/x.png"))
    assert failure.code == code
    assert failure.message.startswith("Cannot write /data/x.png: ")


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    def fill(target: Path) -> None:
        target.write_bytes(b"half")
        Path("/dev/full").write_bytes(b"x")

    with pytest.raises(GenerationFailed, match="the disk is full") as failure:
        writing.write(tmp_path / "x", fill)
    assert failure.value.code == "disk_full"
    assert list(tmp_path.iterdir()) == []
