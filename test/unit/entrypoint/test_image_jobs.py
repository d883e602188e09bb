"""Images as jobs: asked for without waiting, polled, listed, deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from fakes import stack
from safelight.wire import messages as m

URL = "/v1/images/generations"
JOBS = "/v1/images"


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"async": True}, {}),
        ({}, {"prefer": "respond-async"}),
        ({}, {"prefer": "wait=5, respond-async"}),
    ],
)
def test_a_job_is_answered_at_once(
    manual: stack.Stack, slow: httpx2.Client, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    sent = {"prompt": "a cat", "n": 2, "seed": 5, "size": "96x64", "quality": "low", **fields}
    answer = slow.post(URL, json=sent, headers=headers)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"{manual.base_url}{JOBS}/{job['id']}"
    assert int(answer.headers["openai-poll-after-ms"]) > 0
    assert (job["object"], job["status"], job["progress"]) == ("image.job", "queued", 0)
    assert (job["n"], job["size"], job["seeds"]) == (2, "96x64", [5, 6])
    assert job["data"] == [] and job["error"] is None and job["completed_at"] is None
    assert "'quality'" in job["warnings"][0]
    not_yet = slow.get(f"{JOBS}/{job['id']}/content")
    assert (not_yet.status_code, not_yet.json()["error"]["code"]) == (404, "not_ready")


@pytest.mark.parametrize("prefer", ["respond-asynchronous", "wait=5", "not-respond-async"])
def test_other_preferences_wait(client: httpx2.Client, prefer: str) -> None:
    answer = client.post(URL, json={"prompt": "a cat"}, headers={"prefer": prefer})
    assert answer.status_code == 200 and answer.json()["data"][0]["b64_json"]


def test_a_form_may_ask_for_a_job(client: httpx2.Client) -> None:
    assert client.post(URL, data={"prompt": "a cat", "async": "true"}).status_code == 202


def test_a_job_is_polled_until_it_is_completed(client: httpx2.Client) -> None:
    job = client.post(URL, json={"prompt": "a cat", "n": 2, "async": True}).json()
    answer = client.get(f"{JOBS}/{job['id']}", headers={"prefer": "wait=20"})
    ended = answer.json()
    assert (ended["status"], ended["progress"]) == ("completed", 100)
    assert ended["completed_at"] >= ended["created_at"]
    assert "openai-poll-after-ms" not in answer.headers
    assert len(ended["data"]) == 2
    for image in ended["data"]:
        fetched = client.get(image["url"])
        assert fetched.headers["content-type"] == "image/png" and fetched.content[:4] == b"\x89PNG"
    head = client.head(ended["data"][0]["url"])
    assert head.status_code == 200 and not head.content


def test_images_that_were_waited_for_are_jobs_too(client: httpx2.Client) -> None:
    made = client.post(URL, json={"prompt": "a cat"}).json()
    job = client.get(f"{JOBS}/{made['id']}").json()
    assert job["data"] == [{"url": made["data"][0]["url"]}]


def test_a_failed_job_is_found(manual: stack.Stack, slow: httpx2.Client) -> None:
    job = slow.post(URL, json={"prompt": "a cat", "async": True}).json()
    (spec,) = manual.call(manual.peer.submitted())
    manual.call(manual.peer.fail(spec, "oom", "No memory."))
    answer = slow.get(f"{JOBS}/{job['id']}", headers={"prefer": "wait=20"})
    assert answer.status_code == 200
    assert answer.json()["status"] == "failed"
    assert answer.json()["error"] == {"code": "oom", "message": "No memory."}


def test_a_deleted_job_is_stopped_and_gone(manual: stack.Stack, slow: httpx2.Client) -> None:
    job = slow.post(URL, json={"prompt": "a cat", "async": True}).json()
    (spec,) = manual.call(manual.peer.submitted())
    answer = slow.delete(f"{JOBS}/{job['id']}")
    assert answer.json() == {"id": job["id"], "object": "image.job.deleted", "deleted": True}
    cancelled = manual.call(manual.peer.next(m.Cancel))
    assert set(cancelled.samples) == {spec.id}
    assert slow.get(f"{JOBS}/{job['id']}").status_code == 404
    assert slow.delete(f"{JOBS}/{job['id']}").status_code == 404


def test_files_of_a_deleted_job_are_gone(client: httpx2.Client, shared: stack.Stack) -> None:
    made = client.post(URL, json={"prompt": "a cat"}).json()
    path = Path(shared.peer.specs[-1].delivery.path)
    assert path.exists()
    assert client.delete(f"{JOBS}/{made['id']}").status_code == 200
    assert not path.exists()
    assert client.get(made["data"][0]["url"]).status_code == 404


def test_jobs_are_listed_in_pages(tmp_path: Path) -> None:
    with (
        stack.running(tmp_path / "data") as running,
        httpx2.Client(base_url=running.base_url, timeout=30) as client,
    ):
        video = client.post("/v1/videos", json={"prompt": "a cat"}).json()["id"]
        ids = [client.post(URL, json={"prompt": "a cat"}).json()["id"] for _ in range(3)]
        first = client.get(JOBS, params={"limit": 2}).json()
        assert [job["id"] for job in first["data"]] == ids[:0:-1]
        assert (first["object"], first["has_more"]) == ("list", True)
        assert (first["first_id"], first["last_id"]) == (ids[2], ids[1])
        rest = client.get(JOBS, params={"limit": 2, "after": first["last_id"]}).json()
        assert [job["id"] for job in rest["data"]] == ids[:1] and not rest["has_more"]
        oldest = client.get(JOBS, params={"order": "asc", "limit": 1}).json()
        assert oldest["data"][0]["id"] == ids[0]
        assert client.get(JOBS, params={"after": "image_0"}).status_code == 404
        assert client.get(JOBS, params={"limit": 101}).status_code == 400
        # A video is no image.
        for method in ("GET", "DELETE"):
            assert client.request(method, f"{JOBS}/{video}").status_code == 404
