from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from fakes.engine_peer import request
from safelight.errors import InvalidRequest, NotFound
from safelight.store.jobs import JobStore, Output
from safelight.store.tables import Status
from safelight.store.webhooks import (
    KEEP_GIVEN_UP_S,
    MAX_ENDPOINTS,
    PER_ENDPOINT,
    Attempt,
    Delivery,
    Endpoint,
)

DAY = 86_400.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    found = JobStore(tmp_path / "jobs.sqlite")
    yield found
    found.close()


def endpoint(name: str = "a", *events: Any, **changes: Any) -> Endpoint:
    values: dict[str, Any] = {
        "id": f"we_{name}",
        "name": name,
        "url": f"https://{name}.example/hook",
        "event_types": events or ("video.completed", "video.failed"),
        "secret": "whsec_" + "QUJD" * 8,
        "created_at": 1.0,
        "updated_at": 1.0,
    }
    return Endpoint(**(values | changes))


def complete(store: JobStore, job_id: str = "video_1", at: float = 5.0, **changes: Any) -> None:
    accepted = request(job_id, **changes)
    store.add(accepted)
    output = Output(
        sample=f"{job_id}.0",
        path="x",
        media_type="video/mp4",
        nbytes=1,
        sha256="0" * 64,
        width=64,
        height=64,
        num_frames=9,
    )
    store.record([(output, 1)], at)


def waiting(store: JobStore, now: float = 100.0) -> list[tuple[str, dict[str, Any]]]:
    due = store.webhooks.agenda(now).due
    return [(delivery.endpoint.id, json.loads(delivery.body)) for delivery in due]


def one(store: JobStore, now: float = 100.0) -> Delivery:
    (delivery,) = store.webhooks.agenda(now).due
    return delivery


def test_the_end_of_a_job_is_in_the_outbox_for_those_who_asked(store: JobStore) -> None:
    store.webhooks.add(endpoint("both"))
    store.webhooks.add(endpoint("failures", "video.failed"))
    store.webhooks.add(endpoint("pictures", "image.completed"))
    complete(store)
    ((to, body),) = waiting(store)
    assert to == "we_both"
    assert body.pop("id").startswith("evt_")
    assert body == {
        "object": "event",
        "created_at": 5,
        "type": "video.completed",
        "data": {"id": "video_1"},
    }
    delivery = one(store)
    assert delivery.id.startswith("wh_") and delivery.attempts == 0


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_a_job_that_ended_badly_failed_for_everybody(store: JobStore, status: Any) -> None:
    for name in ("a", "b"):
        store.webhooks.add(endpoint(name))
    store.add(request())
    store.finish("video_1", status, 3.0, code="x", message="y")
    found = waiting(store)
    assert [to for to, _ in found] == ["we_a", "we_b"]
    assert {body["type"] for _, body in found} == {"video.failed"}
    assert len({body["id"] for _, body in found}) == 1  # one event
    assert len({delivery.id for delivery in store.webhooks.agenda(9.0).due}) == 2
    assert store.finish("video_1", Status.FAILED, 9.0, code="x", message="y") is None
    assert len(waiting(store)) == 2


def test_images_are_announced_as_images(store: JobStore) -> None:
    store.webhooks.add(endpoint("a", "image.completed", "image.failed"))
    complete(store, "img_1", task="text-to-image")
    store.add(request("img_2", task="image-to-image"))
    store.finish("img_2", Status.FAILED, 6.0, code="x", message="y")
    assert [(body["type"], body["data"]["id"]) for _, body in waiting(store)] == [
        ("image.completed", "img_1"),
        ("image.failed", "img_2"),
    ]


def test_nobody_hears_of_deleted_jobs_and_of_those_with_a_caller_here(store: JobStore) -> None:
    store.webhooks.add(endpoint())
    store.add(request())
    store.bury("video_1")
    assert store.finish("video_1", Status.CANCELLED, 3.0, code="x", message="y") is None
    store.add(request("video_2"), ["/a.mp4"])
    store.finish("video_2", Status.FAILED, 3.0, code="x", message="y")
    assert waiting(store) == []


def test_a_job_does_not_end_without_its_event(store: JobStore) -> None:
    store.webhooks.add(endpoint())
    with store._engine.begin() as db:
        db.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON webhook_deliveries "
            "BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    with pytest.raises(sa.exc.IntegrityError, match="full"):
        complete(store)
    job = store.get("video_1")
    assert job is not None and job.status is Status.QUEUED and job.outputs == ()


def test_events_survive_a_process_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    program = (
        "import os, sys; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "import test_webhooks as t; store = t.JobStore(Path(sys.argv[1]))\n"
        "store.webhooks.add(t.endpoint()); t.complete(store); os.kill(os.getpid(), 9)"
    )
    paths = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", program, str(path), here], env=paths, check=False)
    assert done.returncode == -9
    store = JobStore(path)
    assert [body["data"]["id"] for _, body in waiting(store)] == ["video_1"]
    assert path.stat().st_mode & 0o077 == 0  # secrets are in it
    store.close()


def test_an_endpoint_takes_no_turns_of_another(store: JobStore) -> None:
    store.webhooks.add(endpoint("busy", "video.completed"))
    for index in range(PER_ENDPOINT + 3):
        complete(store, f"video_{index}", at=float(index))
    store.webhooks.add(endpoint("other", "video.completed"))
    complete(store, "video_last", at=50.0)
    found = waiting(store)
    assert [body["data"]["id"] for to, body in found if to == "we_other"] == ["video_last"]
    assert [body["data"]["id"] for to, body in found if to == "we_busy"] == [
        f"video_{index}" for index in range(PER_ENDPOINT)
    ]


def test_what_failed_waits_for_its_time(store: JobStore) -> None:
    store.webhooks.add(endpoint())
    complete(store)
    before = one(store)
    store.webhooks.settle(
        [Attempt(delivery=before, result="later", at=10.0, due_at=42.0, failure="It answered 500.")]
    )
    agenda = store.webhooks.agenda(41.0)
    assert (agenda.due, agenda.next_at) == ((), 42.0)
    after = one(store, now=42.0)
    assert (after.id, after.body, after.attempts) == (before.id, before.body, 1)
    store.webhooks.settle([Attempt(delivery=after, result="delivered", at=43.0)])
    agenda = store.webhooks.agenda(1e9)
    assert (agenda.due, agenda.next_at) == ((), None)
    assert store.webhooks.given_up("we_a") == ()


def test_what_was_given_up_is_kept_for_some_days(store: JobStore) -> None:
    store.webhooks.add(endpoint())
    complete(store)
    store.webhooks.settle([Attempt(delivery=one(store), result="given_up", at=3 * DAY)])
    assert waiting(store, now=9 * DAY) == []
    assert len(store.webhooks.given_up("we_a")) == 1
    store.webhooks.configure([], now=3 * DAY + KEEP_GIVEN_UP_S - 1)
    assert len(store.webhooks.given_up("we_a")) == 1
    store.webhooks.configure([], now=3 * DAY + KEEP_GIVEN_UP_S + 1)
    assert store.webhooks.given_up("we_a") == ()


def test_what_is_gone_gets_nothing_until_it_is_changed(store: JobStore) -> None:
    store.webhooks.add(endpoint())
    complete(store, "video_1")
    complete(store, "video_2")
    first, _ = store.webhooks.agenda(9.0).due
    store.webhooks.settle([Attempt(delivery=first, result="gone", at=9.0)])
    assert store.webhooks.get("we_a").disabled_at == 9.0
    assert len(store.webhooks.given_up("we_a")) == 2
    complete(store, "video_3")
    assert waiting(store) == []
    assert store.webhooks.change("we_a", 10.0, url="https://b.example").disabled_at is None
    complete(store, "video_4")
    assert [body["data"]["id"] for _, body in waiting(store)] == ["video_4"]


def test_an_endpoint_with_a_new_url_is_not_gone_for_its_old_one(store: JobStore) -> None:
    store.webhooks.add(endpoint())
    complete(store)
    old = one(store)
    store.webhooks.change("we_a", 8.0, url="https://new.example")
    store.webhooks.settle([Attempt(delivery=old, result="gone", at=9.0)])
    assert store.webhooks.get("we_a").disabled_at is None


def test_a_removed_endpoint_takes_its_deliveries_along(store: JobStore) -> None:
    store.webhooks.add(endpoint())
    complete(store)
    late = one(store)
    store.webhooks.remove("we_a")
    assert waiting(store) == []
    store.webhooks.settle([Attempt(delivery=late, result="later", at=9.0, due_at=10.0)])
    with pytest.raises(NotFound, match="we_a"):
        store.webhooks.get("we_a")
    with pytest.raises(NotFound, match="we_a"):
        store.webhooks.remove("we_a")
    assert waiting(store) == []


def test_those_of_the_configuration_follow_it(store: JobStore) -> None:
    store.webhooks.add(endpoint("own"))
    first = endpoint("first", configured=True)
    store.webhooks.configure([first, endpoint("second", configured=True)], now=1.0)
    complete(store)
    store.webhooks.configure([endpoint("first", configured=True, secret="whsec_new")], now=2.0)
    found = store.webhooks.agenda(9.0).due
    assert [(d.endpoint.id, d.endpoint.secret[-3:]) for d in found] == [
        ("we_own", "UJD"),
        ("we_first", "new"),
    ]
    with pytest.raises(InvalidRequest, match="--webhook-url"):
        store.webhooks.change("we_first", 3.0, name="mine")
    with pytest.raises(InvalidRequest, match="--webhook-url"):
        store.webhooks.rotate("we_first", "whsec_x", 3.0, None)
    with pytest.raises(InvalidRequest, match="--webhook-url"):
        store.webhooks.remove("we_first")


def test_there_is_room_for_so_many(store: JobStore) -> None:
    store.webhooks.configure([endpoint("of the file", configured=True)], now=1.0)
    for index in range(MAX_ENDPOINTS):
        store.webhooks.add(endpoint(str(index)))
    with pytest.raises(InvalidRequest, match="delete one"):
        store.webhooks.add(endpoint("more"))


def test_pages_go_from_new_to_old(store: JobStore) -> None:
    for name in "abc":
        store.webhooks.add(endpoint(name))
    found, more = store.webhooks.page(limit=2)
    assert ([e.name for e in found], more) == (["c", "b"], True)
    found, more = store.webhooks.page(limit=2, after="we_b")
    assert ([e.name for e in found], more) == (["a"], False)
    with pytest.raises(NotFound):
        store.webhooks.page(limit=2, after="we_x")


def test_an_update_that_changes_nothing_is_none(store: JobStore) -> None:
    store.webhooks.add(endpoint())
    assert store.webhooks.change("we_a", 9.0, name="a").updated_at == 1.0
    changed = store.webhooks.change("we_a", 9.0, event_types=("video.failed",))
    assert (changed.updated_at, changed.event_types) == (9.0, ("video.failed",))
    assert store.webhooks.get("we_a") == changed
