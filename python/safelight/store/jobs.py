"""Jobs that survive: SQLite, one writer, every promise on disk before it is made.

Sync on purpose: the manager calls it from one dedicated thread. A change that a job's row does not
allow (it is final, or the attempt is old) is refused by returning None or an `Outcome`, never by
overwriting.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from safelight.errors import ConfigError, NotFound
from safelight.request import GenerationRequest, Task, index_of, job_of
from safelight.store.lock import DirectoryLock
from safelight.store.tables import UNFINISHED, VERSION, Status, jobs, metadata, outputs
from safelight.store.webhooks import WebhookStore, announce

Order = Literal["asc", "desc"]

_request = msgspec.json.Decoder(GenerationRequest)
_paths = msgspec.json.Decoder(tuple[str, ...])


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One finished file."""

    sample: str
    path: str
    """Relative to the content root; absolute when the caller chose the place (and in views)."""
    media_type: str
    nbytes: int
    sha256: str
    width: int
    height: int
    num_frames: int
    fps: int = 0
    """This and the seed are the request's; `record` fills them in."""
    seed: int = 0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One row, with its outputs in sample order. Times are Unix seconds."""

    request: GenerationRequest
    status: Status
    attempt: int
    destinations: tuple[str, ...] | None
    started_at: float | None
    completed_at: float | None
    error_code: str | None
    error_message: str | None
    outputs: tuple[Output, ...] = ()


class Page(msgspec.Struct, frozen=True):
    jobs: tuple[Job, ...]
    has_more: bool


class Outcome(enum.Enum):
    """What became of a report that a sample's file is there."""

    ACCEPTED = enum.auto()
    COMPLETED = enum.auto()  # and it was the job's last
    DUPLICATE = enum.auto()  # already recorded; nothing changed
    STALE = enum.auto()  # of an attempt that was given up; nothing changed
    GONE = enum.auto()  # the job failed, was cancelled or deleted: nobody wants the file


class JobStore:
    """The job database at `path`, and the exclusive use of its directory."""

    def __init__(self, path: Path) -> None:
        """Raises `ConfigError` if another server has the directory or the schema is another's."""
        self._lock = DirectoryLock(path.parent)
        path.touch()
        path.chmod(0o600)  # before SQLite's own files take after it: secrets are in it
        self._engine = sa.create_engine(f"sqlite:///{path}")
        sa.event.listen(self._engine, "connect", _configure)
        self.webhooks = WebhookStore(self._engine)
        try:
            self._create(path)
        except BaseException:
            self.close()
            raise

    def _create(self, path: Path) -> None:
        with self._engine.begin() as db:
            version = db.exec_driver_sql("PRAGMA user_version").scalar_one()
            if version not in (0, VERSION):
                raise ConfigError(
                    f"{path} has schema version {version}; this Safelight reads version {VERSION}. "
                    "Use the release that wrote it, or another --data-dir.",
                    param="data_dir",
                )
            metadata.create_all(db)
            if version != VERSION:  # no write that is not needed: the disk may be full
                db.exec_driver_sql(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        self._engine.dispose()
        self._lock.release()

    # ------------------------------------------------------------------------------- accepting

    def add(self, request: GenerationRequest, destinations: Sequence[str] | None = None) -> Job:
        """Commit a new job. When this returns, the job is accepted for good."""
        values = {
            "id": request.id,
            "task": request.task,
            "model": request.model,
            "status": Status.QUEUED,
            "request": msgspec.json.encode(request),
            "destinations": None if destinations is None else msgspec.json.encode(destinations),
            "attempt": 1,
            "created_at": request.created_at,
        }
        with self._engine.begin() as db:
            db.execute(insert(jobs).values(values))
            return _expect(db, request.id)

    def unfinished(self) -> tuple[Job, ...]:
        """Jobs that were accepted and have not ended, oldest first."""
        with self._engine.connect() as db:
            return _unfinished(db)

    def next_attempt(self) -> tuple[Job, ...]:
        """Begin a new attempt of every unfinished job; reports of the old one become stale."""
        with self._engine.begin() as db:
            db.execute(
                update(jobs).where(jobs.c.status.in_(UNFINISHED)).values(attempt=jobs.c.attempt + 1)
            )
            return _unfinished(db)

    # ------------------------------------------------------------------------------- progressing

    def start(self, ids: Iterable[str], at: float) -> None:
        """Note that work on these jobs began; those that are not queued stay as they are."""
        with self._engine.begin() as db:
            db.execute(
                update(jobs)
                .where(jobs.c.id.in_(tuple(ids)), jobs.c.status == Status.QUEUED)
                .values(status=Status.IN_PROGRESS, started_at=at)
            )

    def record(
        self, reports: Sequence[tuple[Output, int]], at: float
    ) -> tuple[tuple[Outcome, Job | None], ...]:
        """Commit finished files, each with the attempt that made it, in one transaction.

        Returns what became of each, and its job as it is now (None if there is none).
        """
        with self._engine.begin() as db:
            return tuple(_record(db, output, attempt, at) for output, attempt in reports)

    def finish(
        self,
        job_id: str,
        status: Literal[Status.FAILED, Status.CANCELLED],
        at: float,
        *,
        code: str,
        message: str,
        attempt: int | None = None,
    ) -> Job | None:
        """End an unfinished job; with `attempt`, only if that is still the current one.

        Returns the ended job, or None if the change was refused.
        """
        allowed = [jobs.c.id == job_id, jobs.c.status.in_(UNFINISHED)]
        if attempt is not None:
            allowed.append(jobs.c.attempt == attempt)
        with self._engine.begin() as db:
            changed = db.execute(
                update(jobs)
                .where(*allowed)
                .values(status=status, completed_at=at, error_code=code, error_message=message)
            )
            return _ended(db, job_id, at) if changed.rowcount else None

    # ------------------------------------------------------------------------------- reading

    def get(self, job_id: str) -> Job | None:
        with self._engine.connect() as db:
            return _get(db, job_id)

    def list(
        self, tasks: Sequence[Task], *, limit: int, after: str | None = None, order: Order = "desc"
    ) -> Page:
        """Up to `limit` jobs of these tasks in order of acceptance, those behind `after`.

        Raises `NotFound` if there is no job `after`.
        """
        column = jobs.c.number
        query = select(jobs).where(jobs.c.status != Status.DELETED, jobs.c.task.in_(tasks))
        with self._engine.connect() as db:
            if after is not None:
                cursor = select(column).where(jobs.c.id == after)
                number = db.execute(cursor).scalar_one_or_none()
                if number is None:
                    raise NotFound(f"There is no '{after}' to list after.", param="after")
                query = query.where(column > number if order == "asc" else column < number)
            ordered = query.order_by(column.asc() if order == "asc" else column.desc())
            rows = db.execute(ordered.limit(limit + 1)).mappings().all()
            return Page(_with_outputs(db, rows[:limit]), len(rows) > limit)

    # ------------------------------------------------------------------------------- deleting

    def bury(self, job_id: str) -> Job | None:
        """Hide a job for good, whatever its state; its row goes with `forget`.

        Returns the job as it was, or None if there is none.
        """
        with self._engine.begin() as db:
            job = _get(db, job_id)
            db.execute(update(jobs).where(jobs.c.id == job_id).values(status=Status.DELETED))
            return job

    def buried(self) -> tuple[str, ...]:
        """Jobs that were hidden, but not yet forgotten when the process ended."""
        with self._engine.connect() as db:
            return tuple(db.scalars(select(jobs.c.id).where(jobs.c.status == Status.DELETED)))

    def forget(self, job_id: str) -> None:
        """Remove the row of a buried job, and its outputs."""
        with self._engine.begin() as db:
            db.execute(delete(jobs).where(jobs.c.id == job_id, jobs.c.status == Status.DELETED))


def _configure(connection: Any, _record: object) -> None:
    """Durability before speed: WAL, and every commit reaches the disk."""
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _get(db: Connection, job_id: str) -> Job | None:
    query = select(jobs).where(jobs.c.id == job_id, jobs.c.status != Status.DELETED)
    row = db.execute(query).mappings().one_or_none()
    return None if row is None else _with_outputs(db, [row])[0]


def _expect(db: Connection, job_id: str) -> Job:
    row = db.execute(select(jobs).where(jobs.c.id == job_id)).mappings().one()
    return _with_outputs(db, [row])[0]


def _unfinished(db: Connection) -> tuple[Job, ...]:
    query = select(jobs).where(jobs.c.status.in_(UNFINISHED)).order_by(jobs.c.number)
    return _with_outputs(db, db.execute(query).mappings().all())


def _with_outputs(db: Connection, rows: Sequence[RowMapping]) -> tuple[Job, ...]:
    """The rows as jobs; one more query reads the outputs of them all."""
    found: dict[str, list[Output]] = {row["id"]: [] for row in rows}
    query = select(outputs).where(outputs.c.job.in_(found)).order_by(outputs.c.position)
    for row in db.execute(query).mappings():
        found[row["job"]].append(Output(**{name: row[name] for name in Output.__struct_fields__}))
    return tuple(_job(row, found[row["id"]]) for row in rows)


def _job(row: RowMapping, files: Sequence[Output]) -> Job:
    places = row["destinations"]
    return Job(
        request=_request.decode(row["request"]),
        status=Status(row["status"]),
        attempt=row["attempt"],
        destinations=None if places is None else _paths.decode(places),
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        error_code=row["error_code"],
        error_message=row["error_message"],
        outputs=tuple(files),
    )


def _record(db: Connection, output: Output, attempt: int, at: float) -> tuple[Outcome, Job | None]:
    job_id = job_of(output.sample)
    job = _get(db, job_id)
    if job is None or job.status in (Status.FAILED, Status.CANCELLED):
        return Outcome.GONE, job
    if any(known.sample == output.sample for known in job.outputs):
        return Outcome.DUPLICATE, job
    if job.attempt != attempt:
        return Outcome.STALE, job
    index, request = index_of(output.sample), job.request
    if not 0 <= index < request.n:
        return Outcome.GONE, job
    row = msgspec.structs.asdict(output) | {
        "job": job_id,
        "position": index,
        "fps": request.sampling.fps,
        "seed": request.seed_of(index),
    }
    db.execute(insert(outputs).values(row))
    if len(job.outputs) + 1 < job.request.n:
        return Outcome.ACCEPTED, _expect(db, job_id)
    done = {"status": Status.COMPLETED, "completed_at": at, "started_at": job.started_at or at}
    db.execute(update(jobs).where(jobs.c.id == job_id).values(done))
    return Outcome.COMPLETED, _ended(db, job_id, at)


def _ended(db: Connection, job_id: str, at: float) -> Job:
    """A job whose row was just made final; with it, the news are committed to those who asked."""
    job = _expect(db, job_id)
    if job.destinations is None:  # else its caller is on this machine, and waits
        announce(db, job_id, job.request.task, job.status, at)
    return job
