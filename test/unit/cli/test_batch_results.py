"""The file of results: what is kept, what is gone on with, what is refused."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from safelight.cli.batch.results import Failure, File, Record, Results
from safelight.errors import ConfigError


def record(id: str, *files: str, error: Failure | None = None) -> Record:
    return Record(
        id=id,
        line=1,
        status="completed" if error is None else "failed",
        prompt="a",
        files=tuple(File(path=name) for name in files),
        seconds=1.0,
        error=error,
    )


def written(directory: Path, *records: Record) -> Path:
    results = Results(directory, resume=False)
    for one in records:
        results.add(one)
    results.close()
    return results.path


def done(directory: Path) -> set[str]:
    results = Results(directory, resume=True)
    results.close()
    return results.done


def test_what_is_done_is_what_completed_and_has_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    failed = Failure(code="x", message="It failed.")
    written(
        tmp_path,
        record("a", "a.png"),
        record("gone", "gone.png"),
        record("broken", error=failed),
        record("mended", error=failed),
        record("mended", "a.png"),
    )
    assert done(tmp_path) == {"a", "mended"}


def test_a_line_that_was_cut_off_is_removed(tmp_path: Path) -> None:
    path = written(tmp_path, record("a"), record("b"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    results = Results(tmp_path, resume=True)
    assert results.done == {"a"}
    results.add(record("b"))
    results.close()
    assert path.read_bytes() == whole


def test_results_are_not_overwritten(tmp_path: Path) -> None:
    written(tmp_path, record("a"))
    with pytest.raises(ConfigError, match="Give --resume"):
        Results(tmp_path, resume=False)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    results = Results(tmp_path, resume=False)
    with pytest.raises(ConfigError, match="Another process is writing"):
        Results(tmp_path, resume=True)
    results.close()


def test_a_file_that_its_last_writer_removed_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one lets go, and removes it, between our opening and our holding it."""
    path = tmp_path / "results.jsonl"
    monkeypatch.setattr(fcntl, "flock", lambda *_: path.unlink())
    with pytest.raises(ConfigError, match="try again"):
        Results(tmp_path, resume=True)


def test_another_file_of_that_name_stays(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"mine": 1}\n')
    with pytest.raises(ConfigError, match="line 1, is no result of a batch"):
        Results(tmp_path, resume=True)
    assert path.read_text() == '{"mine": 1}\n'


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("text", ['{"mine": 1}', '{"mine": 1}\n{"mi', "\n"])
def test_another_file_is_not_taken_for_one_that_was_cut_off(
    tmp_path: Path, text: str, resume: bool
) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"another --output-path"):
        Results(tmp_path, resume=resume)
    assert path.read_text() == text


def test_without_resume_nothing_is_cut_off(tmp_path: Path) -> None:
    path = written(tmp_path, record("a"))
    cut = path.read_bytes()[:-7]
    path.write_bytes(cut)
    with pytest.raises(ConfigError, match="Give --resume"):
        Results(tmp_path, resume=False)
    assert path.read_bytes() == cut


def test_nothing_is_left_of_a_batch_that_never_began(tmp_path: Path) -> None:
    assert not written(tmp_path).exists()
