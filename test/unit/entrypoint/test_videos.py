from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fakes import stack
from fakes.engine_peer import file_of
from safelight.request import State
from safelight.wire import messages as m

CONTRACT = [
    "id",
    "object",
    "model",
    "status",
    "progress",
    "created_at",
    "completed_at",
    "expires_at",
    "prompt",
    "seconds",
    "size",
    "remixed_from_video_id",
    "error",
]


def create(client: httpx2.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/videos", json={"prompt": "a red circle", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def error(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


def finished(running: stack.Stack, client: httpx2.Client, **fields: Any) -> dict[str, Any]:
    video = create(client, **fields)
    running.call(running.manager.wait(video["id"]))
    return client.get(f"/v1/videos/{video['id']}").json()


def test_a_new_video_has_every_key_of_the_contract(slow: httpx2.Client) -> None:
    answer = slow.post("/v1/videos", json={"prompt": "a red circle", "seed": 5, "seconds": "1"})
    video = answer.json()
    assert list(video)[: len(CONTRACT)] == CONTRACT
    assert video["id"].startswith("video_")
    assert (video["object"], video["status"], video["progress"]) == ("video", "queued", 0)
    assert (video["model"], video["size"], video["seconds"]) == ("lab/tiny", "64x64", "1")
    assert isinstance(video["created_at"], int)
    for name in ("completed_at", "expires_at", "remixed_from_video_id", "error"):
        assert video[name] is None
    assert (video["seed"], video["num_frames"], video["fps"]) == (5, 9, 8)
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["openai-poll-after-ms"] == "250"
    assert slow.get(f"/v1/videos/{video['id']}").json() == video


def test_a_job_is_followed_to_its_file(manual: stack.Stack, slow: httpx2.Client) -> None:
    video = create(slow)
    url = f"/v1/videos/{video['id']}"
    (spec,) = manual.call(manual.peer.submitted())

    async def moved() -> None:
        await manual.peer.progress(spec, State.DENOISING, step=3, eta=0.4)
        async for view in manual.manager.subscribe(video["id"]):
            if view.steps_done == 3:
                return

    manual.call(moved())
    answer = slow.get(url)
    running = answer.json()
    assert (running["status"], running["progress"]) == ("in_progress", 75)
    assert type(running["progress"]) is int
    assert 0 < running["eta"] <= 0.4
    assert 50 <= int(answer.headers["openai-poll-after-ms"]) <= 200
    failure = error(slow.get(f"{url}/content"), 404)
    assert failure["code"] == "not_ready"
    assert "75%" in failure["message"]

    manual.call(manual.peer.deliver(spec))
    manual.call(manual.manager.wait(video["id"]))
    answer = slow.get(url)
    done = answer.json()
    assert (done["status"], done["progress"]) == ("completed", 100)
    assert isinstance(done["completed_at"], int)
    assert "openai-poll-after-ms" not in answer.headers
    content = slow.get(f"{url}/content?variant=video")
    assert content.content == file_of(spec)
    assert content.headers["content-type"] == "video/mp4"
    assert content.headers["content-length"] == str(len(content.content))


def test_the_poll_interval_is_clamped(manual: stack.Stack, slow: httpx2.Client) -> None:
    intervals = []
    for eta in (0.0, 3600.0):
        video = create(slow)
        (spec,) = manual.call(manual.peer.submitted())

        async def moved(spec: Any = spec, job: str = video["id"], eta: float = eta) -> None:
            await manual.peer.progress(spec, State.DENOISING, step=1, eta=eta)
            async for view in manual.manager.subscribe(job):
                if view.steps_done:
                    return

        manual.call(moved())
        answer = slow.get(f"/v1/videos/{video['id']}")
        intervals.append(answer.headers["openai-poll-after-ms"])
    assert intervals == ["50", "1000"]


def test_content_is_served_by_ranges(shared: stack.Stack, client: httpx2.Client) -> None:
    url = f"/v1/videos/{finished(shared, client)['id']}/content"
    whole = client.get(url).content
    part = client.get(url, headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    assert part.headers["content-range"] == f"bytes 4-7/{len(whole)}"
    assert client.get(url, headers={"range": "bytes=-3"}).content == whole[-3:]
    beyond = client.get(url, headers={"range": "bytes=99999-"})
    assert error(beyond, 416)["code"] == "range_not_satisfiable"
    assert beyond.headers["content-range"] == f"bytes */{len(whole)}"
    error(client.get(url, headers={"range": "lines=1-2"}), 400)


def test_a_file_that_somebody_removed_is_404(shared: stack.Stack, client: httpx2.Client) -> None:
    video = finished(shared, client)
    view = shared.call(shared.manager.job(video["id"]))
    Path(view.outputs[0].path).unlink()
    failure = error(client.get(f"/v1/videos/{video['id']}/content"), 404)
    assert failure["code"] == "content_gone"


def test_a_failed_job_is_found(manual: stack.Stack, slow: httpx2.Client) -> None:
    video = create(slow)
    (spec,) = manual.call(manual.peer.submitted())
    manual.call(manual.peer.fail(spec, "oom", "No memory."))
    manual.call(manual.manager.wait(video["id"]))
    answer = slow.get(f"/v1/videos/{video['id']}")
    assert answer.status_code == 200
    assert answer.json()["status"] == "failed"
    assert answer.json()["error"] == {"code": "oom", "message": "No memory."}
    assert error(slow.get(f"/v1/videos/{video['id']}/content"), 404)["code"] == "oom"


def test_a_cancelled_job_reads_as_failed(manual: stack.Stack, slow: httpx2.Client) -> None:
    video = create(slow)
    manual.call(manual.manager.cancel(video["id"]))
    answer = slow.get(f"/v1/videos/{video['id']}").json()
    assert answer["status"] == "failed"
    assert answer["error"]["code"] == "cancelled"


def test_delete_stops_and_forgets(manual: stack.Stack, slow: httpx2.Client) -> None:
    video = create(slow)
    answer = slow.delete(f"/v1/videos/{video['id']}", headers={"content-type": "application/json"})
    assert answer.json() == {"id": video["id"], "object": "video.deleted", "deleted": True}
    cancelled = manual.call(manual.peer.next(m.Cancel))
    assert cancelled.samples == (f"{video['id']}.0",)
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        failure = error(slow.request(method, f"/v1/videos/{video['id']}{path}"), 404)
        assert failure["code"] == "not_found"


def test_lists_page_by_last_id(tmp_path: Path) -> None:
    with (
        stack.running(tmp_path) as running,
        httpx2.Client(base_url=running.base_url, timeout=30) as client,
    ):
        empty = client.get("/v1/videos").json()
        assert empty == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }
        ids = [finished(running, client)["id"] for _ in range(3)]
        picture = {"prompt": "a cat", "response_format": "url"}
        assert client.post("/v1/images/generations", json=picture).status_code == 200
        first = client.get("/v1/videos?limit=2").json()
        assert [video["id"] for video in first["data"]] == [ids[2], ids[1]]
        assert (first["first_id"], first["last_id"]) == (ids[2], ids[1])
        assert first["has_more"] is True
        assert list(first["data"][0])[: len(CONTRACT)] == CONTRACT
        second = client.get(f"/v1/videos?limit=2&after={first['last_id']}").json()
        assert [video["id"] for video in second["data"]] == [ids[0]]
        assert second["has_more"] is False
        oldest = client.get("/v1/videos?order=asc&limit=1").json()
        assert oldest["last_id"] == ids[0]


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=101", "limit"), ("limit=-1", "limit"), ("limit=x", "limit"), ("order=up", "order")],
)
def test_bad_list_queries_name_the_field(client: httpx2.Client, query: str, param: str) -> None:
    failure = error(client.get(f"/v1/videos?{query}"), 400)
    assert failure["param"] == param
    assert query.partition("=")[2] in failure["message"]


def test_a_list_after_an_unknown_id_is_404(client: httpx2.Client) -> None:
    assert error(client.get("/v1/videos?after=video_x"), 404)["param"] == "after"


def test_unknown_query_parameters_are_ignored(client: httpx2.Client) -> None:
    assert client.get("/v1/videos?api-version=2026-01-01&limit=1").status_code == 200


def test_an_image_is_no_video(shared: stack.Stack, client: httpx2.Client) -> None:
    image = client.post("/v1/images/generations", json={"prompt": "a cat"}).json()
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        error(client.request(method, f"/v1/videos/{image['id']}{path}"), 404)
    video = finished(shared, client)
    error(client.get(f"/v1/images/{video['id']}/content"), 404)


def test_a_full_queue_is_429_with_an_honest_wait(manual: stack.Stack, slow: httpx2.Client) -> None:
    for _ in range(4):
        create(slow)
    answer = slow.post("/v1/videos", json={"prompt": "one more"})
    failure = error(answer, 429)
    assert (failure["type"], failure["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(answer.headers["retry-after"]) <= 60


def test_finished_jobs_are_served_after_a_restart(tmp_path: Path) -> None:
    with (
        stack.running(tmp_path) as running,
        httpx2.Client(base_url=running.base_url, timeout=30) as client,
    ):
        before = finished(running, client, seconds=1, user="me")
        content = client.get(f"/v1/videos/{before['id']}/content").content
    with (
        stack.running(tmp_path) as running,
        httpx2.Client(base_url=running.base_url, timeout=30) as client,
    ):
        assert client.get(f"/v1/videos/{before['id']}").json() == before
        assert client.get(f"/v1/videos/{before['id']}/content").content == content
        assert client.get("/v1/videos").json()["data"] == [before]


def test_prefer_wait_holds_the_answer_until_the_job_has_ended(
    manual: stack.Stack, slow: httpx2.Client
) -> None:
    video = create(slow)
    (spec,) = manual.call(manual.peer.submitted())
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(
            slow.get, f"/v1/videos/{video['id']}", headers={"Prefer": "respond-async, wait=30"}
        )
        manual.call(manual.peer.progress(spec, State.DENOISING, step=1))
        assert not held.done()
        manual.call(manual.peer.deliver(spec))
        answer = held.result(20)
    assert answer.json()["status"] == "completed"
    assert answer.headers["preference-applied"] == "wait=30"


def test_prefer_wait_gives_up_and_a_finished_job_does_not_wait(
    shared: stack.Stack, client: httpx2.Client, slow: httpx2.Client
) -> None:
    path = f"/v1/videos/{create(slow)['id']}"
    answer = slow.get(path, headers={"Prefer": "wait=1"})
    assert answer.json()["status"] == "queued"
    done = finished(shared, client)
    answer = client.get(f"/v1/videos/{done['id']}", headers={"Prefer": "wait=60"})
    assert "preference-applied" not in answer.headers
    unreadable = slow.get(path, headers={"Prefer": "wait=soon"})
    assert unreadable.status_code == 200
