from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.engine_peer import request
from safelight.errors import ConfigError, NotFound
from safelight.store.jobs import JobStore, Outcome, Output
from safelight.store.tables import Status


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    found = JobStore(tmp_path / "jobs.sqlite")
    yield found
    found.close()


def output(sample: str) -> Output:
    return Output(
        sample=sample,
        path=f"{sample.replace('.', '/')}.mp4",
        media_type="video/mp4",
        nbytes=3,
        sha256="0" * 64,
        width=64,
        height=64,
        num_frames=9,
    )


def record(store: JobStore, sample: str, attempt: int = 1) -> Outcome:
    return store.record([(output(sample), attempt)], at=5.0)[0][0]


def test_an_added_job_reads_back_as_accepted(store: JobStore) -> None:
    accepted = request(n=2, extra={"seconds": "4"})
    store.add(accepted, ["/a.mp4", "/b.mp4"])
    job = store.get("video_1")
    assert job is not None
    assert job.request == accepted
    assert job.status is Status.QUEUED
    assert job.attempt == 1
    assert job.destinations == ("/a.mp4", "/b.mp4")
    assert store.get("video_2") is None


def test_the_pragmas_that_durability_rests_on_are_set(store: JobStore) -> None:
    with store._engine.connect() as db:
        values = [
            db.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert values == ["wal", 2, 1]  # 2 is FULL


def test_jobs_survive_a_process_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    program = (
        "import os, sys; from pathlib import Path\n"
        "from fakes.engine_peer import request; from safelight.store.jobs import JobStore\n"
        "JobStore(Path(sys.argv[1])).add(request()); os.kill(os.getpid(), 9)"
    )
    paths = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", program, str(path)], env=paths, check=False)
    store = JobStore(path)
    assert [job.request.id for job in store.unfinished()] == ["video_1"]
    store.close()


def test_the_last_output_completes_the_job(store: JobStore) -> None:
    store.add(request(n=2))
    store.start(["video_1"], at=3.0)
    assert record(store, "video_1.1") is Outcome.ACCEPTED
    assert record(store, "video_1.1") is Outcome.DUPLICATE
    assert record(store, "video_1.0") is Outcome.COMPLETED
    job = store.get("video_1")
    assert job is not None
    assert (job.status, job.started_at, job.completed_at) == (Status.COMPLETED, 3.0, 5.0)
    assert [(o.sample, o.seed, o.fps) for o in job.outputs] == [
        ("video_1.0", 7, 8),
        ("video_1.1", 8, 8),
    ]
    assert record(store, "video_1.0") is Outcome.DUPLICATE


def test_a_stale_attempt_changes_nothing(store: JobStore) -> None:
    store.add(request())
    (again,) = store.next_attempt()
    assert again.attempt == 2
    assert record(store, "video_1.0", attempt=1) is Outcome.STALE
    assert store.finish("video_1", Status.FAILED, 1.0, code="x", message="y", attempt=1) is None
    job = store.get("video_1")
    assert job is not None and job.status is Status.QUEUED and job.outputs == ()
    assert record(store, "video_1.0", attempt=2) is Outcome.COMPLETED


@pytest.mark.parametrize("end", [Status.FAILED, Status.CANCELLED])
def test_an_ended_job_stays_ended(store: JobStore, end: Status) -> None:
    store.add(request())
    ended = store.finish("video_1", end, 4.0, code="c", message="m")  # type: ignore[arg-type]
    assert ended is not None and ended.status is end and ended.completed_at == 4.0
    assert record(store, "video_1.0") is Outcome.GONE
    assert store.finish("video_1", Status.CANCELLED, 9.0, code="d", message="n") is None
    store.start(["video_1"], at=9.0)
    assert store.next_attempt() == ()
    assert store.get("video_1") == ended


def test_a_completed_job_cannot_be_cancelled(store: JobStore) -> None:
    store.add(request())
    record(store, "video_1.0")
    assert store.finish("video_1", Status.CANCELLED, 9.0, code="d", message="n") is None


def test_an_output_that_the_job_does_not_have_is_refused(store: JobStore) -> None:
    store.add(request(n=1))
    assert record(store, "video_1.1") is Outcome.GONE
    assert record(store, "video_9.0") is Outcome.GONE


def test_one_report_of_a_batch_does_not_spoil_the_others(store: JobStore) -> None:
    store.add(request("video_a"))
    store.add(request("video_b"))
    reports = [(output("video_a.0"), 1), (output("gone.0"), 1), (output("video_b.0"), 1)]
    outcomes = [outcome for outcome, _ in store.record(reports, at=1.0)]
    assert outcomes == [Outcome.COMPLETED, Outcome.GONE, Outcome.COMPLETED]


def test_unfinished_is_what_was_accepted_and_has_not_ended(store: JobStore) -> None:
    for name in ("a", "b", "c", "d"):
        store.add(request(name))
    store.start(["b"], at=1.0)
    record(store, "c.0")
    store.finish("d", Status.FAILED, 1.0, code="c", message="m")
    assert [job.request.id for job in store.unfinished()] == ["a", "b"]


def test_pages_follow_the_cursor_both_ways(store: JobStore) -> None:
    for i in range(5):
        store.add(request(f"v{i}"))
    store.add(request("picture", task="text-to-image"))

    def ids(**options: object) -> tuple[list[str], bool]:
        page = store.list(["text-to-video"], **options)  # type: ignore[arg-type]
        return [job.request.id for job in page.jobs], page.has_more

    assert ids(limit=2) == (["v4", "v3"], True)
    assert ids(limit=2, after="v3") == (["v2", "v1"], True)
    assert ids(limit=2, after="v1") == (["v0"], False)
    assert ids(limit=5, order="asc") == (["v0", "v1", "v2", "v3", "v4"], False)
    assert ids(limit=2, after="v1", order="asc") == (["v2", "v3"], True)
    assert ids(limit=0) == ([], True)
    with pytest.raises(NotFound) as caught:
        ids(limit=2, after="nobody")
    assert caught.value.param == "after"


def test_deleting_hides_first_and_forgets_later(store: JobStore) -> None:
    store.add(request())
    store.forget("video_1")  # not buried: stays
    assert store.get("video_1") is not None
    assert store.bury("video_1") is not None
    assert store.get("video_1") is None
    assert store.bury("video_1") is None
    assert store.buried() == ("video_1",)
    assert store.list(["text-to-video"], limit=9).jobs == ()
    assert record(store, "video_1.0") is Outcome.GONE
    store.forget("video_1")
    assert store.buried() == ()


def test_forgetting_takes_the_outputs_along(store: JobStore) -> None:
    store.add(request())
    record(store, "video_1.0")
    store.bury("video_1")
    store.forget("video_1")
    store.add(request())  # would collide with an output that was left behind
    assert record(store, "video_1.0") is Outcome.COMPLETED


def test_one_server_per_directory(tmp_path: Path) -> None:
    first = JobStore(tmp_path / "jobs.sqlite")
    with pytest.raises(ConfigError, match=rf"in use by another.*process {os.getpid()}.*--data-dir"):
        JobStore(tmp_path / "jobs.sqlite")
    first.close()
    JobStore(tmp_path / "jobs.sqlite").close()


def test_a_database_of_another_schema_is_refused_and_unlocked(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    for _ in range(2):
        with pytest.raises(ConfigError, match="schema version 99"):
            JobStore(path)


def test_a_directory_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Cannot write to the data directory"):
        JobStore(tmp_path / "file" / "jobs.sqlite")
