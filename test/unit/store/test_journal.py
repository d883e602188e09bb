"""A job's events on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from safelight.store.journal import JobEvent, Journal, Preview
from safelight.store.tables import Status


def event(number: int, **values: object) -> JobEvent:
    known = {"at": 1.5, "status": Status.QUEUED, "progress": 0, "steps_done": 0, "steps_total": 4}
    return JobEvent(number=number, kind="progress", **{**known, **values})  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_what_is_appended_is_read_by_another(path: Path) -> None:
    shown = event(2, preview=Preview(sample=1, number=0, step=2, path="/x.png"), eta=0.5)
    for one in (event(1), shown):
        Journal(path).append(one)
    assert Journal(path).read() == [event(1), shown]


def test_half_a_line_is_cut_off_and_the_next_is_whole(path: Path) -> None:
    journal = Journal(path)
    journal.append(event(1))
    journal.append(event(2))
    path.write_bytes(path.read_bytes()[:-7])
    assert journal.read() == [event(1)]
    journal.append(event(2, progress=50))
    assert journal.read() == [event(1), event(2, progress=50)]


@pytest.mark.parametrize("torn", [b"\0" * 40, b'{"number":2,"ki{"number":3}', b'{"number":3}'])
def test_what_a_loss_of_power_or_a_full_disk_left_ends_what_is_read(
    path: Path, torn: bytes
) -> None:
    journal = Journal(path)
    journal.append(event(1))
    whole = path.read_bytes()
    path.write_bytes(whole + torn + b"\n" + whole)
    assert journal.read() == [event(1)]
    journal.append(event(2))
    assert journal.read() == [event(1), event(2)]


def test_nothing_is_kept_without_a_path() -> None:
    journal = Journal(None)
    journal.append(event(1))
    assert list(journal.read()) == []


def test_a_directory_that_is_gone_loses_events_and_nothing_else(path: Path) -> None:
    journal = Journal(path.parent / "gone" / "events.jsonl")
    journal.append(event(1))
    assert list(journal.read()) == []
