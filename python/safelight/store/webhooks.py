"""Webhook endpoints, and what is still to be sent to them.

The outbox: a delivery is committed by the transaction that ends its job, so there is no moment at
which a job has ended and its event could be lost. It stays until a receiver has taken it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from safelight.config import WebhookEvent
from safelight.errors import InvalidRequest, NotFound
from safelight.request import TASKS, Task
from safelight.store.tables import Status, webhook_deliveries, webhook_endpoints

MAX_ENDPOINTS = 32
"""That are registered at run time; those of the configuration are not counted."""
PER_ENDPOINT = 4
"""Deliveries to one endpoint that may be under way at once."""
KEEP_GIVEN_UP_S = 7 * 86_400

_types = msgspec.json.Decoder(tuple[WebhookEvent, ...])


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who wants to hear of jobs. Times are Unix seconds."""

    id: str
    name: str
    url: str
    event_types: tuple[WebhookEvent, ...]
    secret: str
    """`whsec_` and the key in base64."""
    old_secret: str | None = None
    old_secret_until: float | None = None
    configured: bool = False
    """Whether it is of the server's configuration."""
    disabled_at: float | None = None
    """When it answered that it is gone."""
    created_at: float
    updated_at: float


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event on its way to one endpoint."""

    id: str
    """The webhook-id, by which receivers know a repetition."""
    endpoint: Endpoint
    body: bytes
    created_at: float
    attempts: int
    """Those that failed."""


class Agenda(msgspec.Struct, frozen=True):
    """What is to be sent."""

    due: tuple[Delivery, ...]
    """Now, `PER_ENDPOINT` for each endpoint at most, those under way among them."""
    next_at: float | None
    """When there is more; None: not before something changes."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """How sending a delivery ended."""

    delivery: Delivery
    result: Literal["delivered", "later", "given_up", "gone"]
    at: float
    due_at: float = 0.0
    """Of the next attempt, for `later`."""
    failure: str | None = None


def event_of(task: Task, status: Status) -> WebhookEvent:
    """What the end of a job is called. A cancelled job failed, as its object says."""
    if task in TASKS["video"]:
        return "video.completed" if status is Status.COMPLETED else "video.failed"
    return "image.completed" if status is Status.COMPLETED else "image.failed"


def payload(event: WebhookEvent, job_id: str, at: float) -> bytes:
    """OpenAI's body: which job it is about; what became of it is asked for."""
    return msgspec.json.encode(
        {
            "id": f"evt_{secrets.token_hex(16)}",
            "object": "event",
            "created_at": int(at),
            "type": event,
            "data": {"id": job_id},
        }
    )


def delivery_id() -> str:
    return f"wh_{secrets.token_hex(16)}"


def announce(db: Connection, job_id: str, task: Task, status: Status, at: float) -> None:
    """Put the end of a job into the outbox, within the transaction that ends it."""
    event = event_of(task, status)
    table = webhook_endpoints
    query = select(table.c.id, table.c.event_types).where(table.c.disabled_at.is_(None))
    wanted = [row.id for row in db.execute(query) if event in _types.decode(row.event_types)]
    if not wanted:
        return
    common = {
        "body": payload(event, job_id, at),
        "created_at": at,
        "attempts": 0,
        "due_at": at,
        "given_up": False,
    }
    rows = [{"id": delivery_id(), "endpoint": endpoint, **common} for endpoint in wanted]
    db.execute(insert(webhook_deliveries), rows)


class WebhookStore:
    """The endpoints and the outbox in the job database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    # ------------------------------------------------------------------------------- endpoints

    def add(self, endpoint: Endpoint) -> Endpoint:
        """Raises `InvalidRequest` if there are too many."""
        table = webhook_endpoints
        count = select(sa.func.count()).select_from(table).where(~table.c.configured)
        with self._engine.begin() as db:
            if db.execute(count).scalar_one() >= MAX_ENDPOINTS:
                raise InvalidRequest(
                    f"There are {MAX_ENDPOINTS} webhook endpoints, and no more fit: delete one.",
                    code="too_many_webhook_endpoints",
                )
            db.execute(insert(table).values(_row(endpoint)))
        return endpoint

    def configure(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """Take over those of the configuration; what is no longer in it is removed, and with it
        what was to be sent there. Those that were disabled are enabled again."""
        table = webhook_endpoints
        ids = [endpoint.id for endpoint in endpoints]
        with self._engine.begin() as db:
            db.execute(delete(table).where(table.c.configured, table.c.id.not_in(ids)))
            known = set(db.scalars(select(table.c.id).where(table.c.configured)))
            for endpoint in endpoints:
                row = _row(endpoint)
                if endpoint.id in known:
                    del row["created_at"]
                    db.execute(update(table).where(table.c.id == endpoint.id).values(row))
                else:
                    db.execute(insert(table).values(row))
            _prune(db, now)

    def get(self, endpoint_id: str) -> Endpoint:
        """Raises `NotFound`."""
        with self._engine.connect() as db:
            return _get(db, endpoint_id)

    def page(self, *, limit: int, after: str | None = None) -> tuple[tuple[Endpoint, ...], bool]:
        """Up to `limit` endpoints, newest first, and whether there are more. Raises `NotFound` if
        there is no endpoint `after`."""
        table = webhook_endpoints
        query = select(table).order_by(table.c.number.desc()).limit(limit + 1)
        with self._engine.connect() as db:
            if after is not None:
                cursor = select(table.c.number).where(table.c.id == after)
                number = db.execute(cursor).scalar_one_or_none()
                if number is None:
                    raise NotFound(f"There is no '{after}' to list after.", param="after")
                query = query.where(table.c.number < number)
            rows = db.execute(query).mappings().all()
        return tuple(_endpoint(row) for row in rows[:limit]), len(rows) > limit

    def change(self, endpoint_id: str, at: float, **changes: Any) -> Endpoint:
        """Change an endpoint, and enable it again if it was gone. Raises `NotFound`, and
        `InvalidRequest` if it is of the configuration."""
        with self._engine.begin() as db:
            before = _changeable(db, endpoint_id)
            after = msgspec.structs.replace(before, **changes, disabled_at=None)
            if after == before:
                return before
            after = msgspec.structs.replace(after, updated_at=at)
            table = webhook_endpoints
            db.execute(update(table).where(table.c.id == endpoint_id).values(_row(after)))
            return after

    def rotate(
        self, endpoint_id: str, secret: str, at: float, keep_until: float | None
    ) -> Endpoint:
        """Give an endpoint another secret; the old one signs too until `keep_until`. Raises as
        `change`."""
        with self._engine.begin() as db:
            before = _changeable(db, endpoint_id)
            old = None if keep_until is None else before.secret
            after = msgspec.structs.replace(
                before, secret=secret, old_secret=old, old_secret_until=keep_until, updated_at=at
            )
            table = webhook_endpoints
            db.execute(update(table).where(table.c.id == endpoint_id).values(_row(after)))
            return after

    def remove(self, endpoint_id: str) -> None:
        """Remove an endpoint, and what was to be sent there. Raises as `change`."""
        with self._engine.begin() as db:
            _changeable(db, endpoint_id)
            db.execute(delete(webhook_endpoints).where(webhook_endpoints.c.id == endpoint_id))

    # ------------------------------------------------------------------------------- the outbox

    def agenda(self, now: float) -> Agenda:
        """What is to be sent, the longest due first; one endpoint takes no turns of another."""
        table, due, later = webhook_deliveries, [], []
        with self._engine.connect() as db:
            enabled = webhook_endpoints.c.disabled_at.is_(None)
            for row in db.execute(select(webhook_endpoints).where(enabled)).mappings().all():
                endpoint = _endpoint(row)
                waiting = (
                    select(table)
                    .where(table.c.endpoint == endpoint.id, table.c.given_up.is_(False))
                    .order_by(table.c.due_at)
                    .limit(PER_ENDPOINT)
                )
                for found in db.execute(waiting).mappings():
                    if found["due_at"] > now:
                        later.append(found["due_at"])
                    else:
                        due.append(_delivery(found, endpoint))
        return Agenda(tuple(due), min(later, default=None))

    def settle(self, attempts: Sequence[Attempt]) -> None:
        """Commit how attempts ended, in one transaction. What was deleted meanwhile stays so."""
        with self._engine.begin() as db:
            for attempt in attempts:
                _settle(db, attempt)
            if any(a.result in ("given_up", "gone") for a in attempts):
                _prune(db, attempts[-1].at)

    def given_up(self, endpoint_id: str) -> tuple[Delivery, ...]:
        """What was not delivered and is not tried any more, of the last days."""
        table = webhook_deliveries
        query = select(table).where(table.c.endpoint == endpoint_id, table.c.given_up)
        with self._engine.connect() as db:
            endpoint = _get(db, endpoint_id)
            return tuple(_delivery(row, endpoint) for row in db.execute(query).mappings())


def _settle(db: Connection, attempt: Attempt) -> None:
    table, sent = webhook_deliveries, attempt.delivery
    this = table.c.id == sent.id
    tried = {"attempts": sent.attempts + 1, "failure": attempt.failure}
    if attempt.result == "delivered":
        db.execute(delete(table).where(this))
    elif attempt.result == "later":
        db.execute(update(table).where(this).values(tried | {"due_at": attempt.due_at}))
    else:
        db.execute(
            update(table).where(this).values(tried | {"due_at": attempt.at, "given_up": True})
        )
    if attempt.result == "gone":
        _disable(db, sent.endpoint, attempt.at)


def _disable(db: Connection, endpoint: Endpoint, at: float) -> None:
    """Unless it has got another URL meanwhile: nobody said that this one is gone."""
    table, waiting = webhook_endpoints, webhook_deliveries
    same = (table.c.id == endpoint.id, table.c.url == endpoint.url)
    changed = db.execute(update(table).where(*same).values(disabled_at=at, updated_at=at))
    if changed.rowcount:
        pending = (waiting.c.endpoint == endpoint.id, waiting.c.given_up.is_(False))
        db.execute(update(waiting).where(*pending).values(given_up=True, due_at=at))


def _prune(db: Connection, now: float) -> None:
    table = webhook_deliveries
    db.execute(delete(table).where(table.c.given_up, table.c.due_at < now - KEEP_GIVEN_UP_S))


def _get(db: Connection, endpoint_id: str) -> Endpoint:
    query = select(webhook_endpoints).where(webhook_endpoints.c.id == endpoint_id)
    row = db.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no webhook endpoint '{endpoint_id}'.", param="id")
    return _endpoint(row)


def _changeable(db: Connection, endpoint_id: str) -> Endpoint:
    found = _get(db, endpoint_id)
    if found.configured:
        raise InvalidRequest(
            f"The webhook endpoint '{endpoint_id}' is of the server's configuration "
            "(--webhook-url): it is changed there.",
            param="id",
            code="webhook_endpoint_configured",
        )
    return found


def _row(endpoint: Endpoint) -> dict[str, Any]:
    types = {"event_types": msgspec.json.encode(endpoint.event_types)}
    return msgspec.structs.asdict(endpoint) | types


def _endpoint(row: RowMapping) -> Endpoint:
    values = {name: row[name] for name in Endpoint.__struct_fields__}
    return Endpoint(**(values | {"event_types": _types.decode(row["event_types"])}))


def _delivery(row: RowMapping, endpoint: Endpoint) -> Delivery:
    return Delivery(
        id=row["id"],
        endpoint=endpoint,
        body=row["body"],
        created_at=row["created_at"],
        attempts=row["attempts"],
    )
