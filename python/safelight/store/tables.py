"""The job database's schema. SQLite today; nothing in it is SQLite's own but `sqlite_*` hints."""

from __future__ import annotations

import enum

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

VERSION = 1
"""Of this schema; kept in SQLite's `user_version`. A database of another version is refused."""


class Status(enum.StrEnum):
    """States of a job. All but the first two are final.

    `DELETED` marks a row whose files are being removed; nobody outside the store sees it.
    """

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DELETED = "deleted"

    @property
    def final(self) -> bool:
        return self not in UNFINISHED


UNFINISHED = (Status.QUEUED, Status.IN_PROGRESS)

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    # Order of acceptance: the cursor of lists. AUTOINCREMENT, so a deleted number is not reused.
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("task", String, nullable=False),
    Column("model", String, nullable=False),
    Column("status", String, nullable=False),
    # JSON of the accepted `GenerationRequest`, and of the caller's own paths, if it gave any.
    Column("request", LargeBinary, nullable=False),
    Column("destinations", LargeBinary),
    Column("attempt", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("completed_at", Float),
    Column("error_code", String),
    Column("error_message", String),
    CheckConstraint(f"status IN ({', '.join(repr(str(s)) for s in Status)})", name="status_known"),
    Index("jobs_by_task", "task", "number"),
    Index("jobs_by_status", "status"),
    sqlite_autoincrement=True,
)

outputs = Table(
    "outputs",
    metadata,
    Column("sample", String, primary_key=True),
    Column("job", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("position", Integer, nullable=False),
    # Relative to the content root; absolute when the caller chose the place.
    Column("path", String, nullable=False),
    Column("media_type", String, nullable=False),
    Column("nbytes", Integer, nullable=False),
    Column("sha256", String, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("num_frames", Integer, nullable=False),
    Column("fps", Integer, nullable=False),
    Column("seed", Integer, nullable=False),
)

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    # Order of creation: the cursor of lists.
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("name", String, nullable=False),
    Column("url", String, nullable=False),
    # JSON of a list.
    Column("event_types", LargeBinary, nullable=False),
    Column("secret", String, nullable=False),
    # Signs beside the new one until then.
    Column("old_secret", String),
    Column("old_secret_until", Float),
    # Whether it is of the server's configuration: whoever starts the server is trusted.
    Column("configured", Boolean, nullable=False),
    # When it said that it is gone; nothing is sent there any more.
    Column("disabled_at", Float),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    sqlite_autoincrement=True,
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    # The webhook-id: the same at every attempt.
    Column("id", String, primary_key=True),
    Column("endpoint", ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), nullable=False),
    # The very bytes that are signed and sent.
    Column("body", LargeBinary, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    # Of the next attempt; of one that was given up, when that was.
    Column("due_at", Float, nullable=False),
    Column("given_up", Boolean, nullable=False),
    Column("failure", String),
    Index("webhook_deliveries_due", "endpoint", "given_up", "due_at"),
)
