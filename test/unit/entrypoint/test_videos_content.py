"""What can be had of a finished video: every output, its pictures, by halves and once only."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from PIL import Image

from fakes import clips, stack
from safelight.request import State
from safelight.wire import messages as m


@pytest.fixture(scope="module")
def filming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    """A server that makes real videos at once."""
    with stack.running(tmp_path_factory.mktemp("filming")) as running:
        running.peer.makes = clips.made
        yield running


@pytest.fixture(scope="module")
def client(filming: stack.Stack) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=filming.base_url, timeout=60) as client:
        yield client


def finished(running: stack.Stack, client: httpx2.Client, **fields: Any) -> str:
    """Makes a video; where its content is."""
    answer = client.post("/v1/videos", json={"prompt": "a red circle", **fields})
    assert answer.status_code == 200, answer.text
    job = answer.json()["id"]
    running.call(running.manager.wait(job))
    return f"/v1/videos/{job}/content"


@pytest.fixture(scope="module")
def content(filming: stack.Stack, client: httpx2.Client) -> str:
    return finished(filming, client, seed=0)


def error(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def test_a_thumbnail_is_the_first_frame(client: httpx2.Client, content: str) -> None:
    answer = client.get(f"{content}?variant=thumbnail")
    assert answer.headers["content-type"] == "image/webp"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (64, 64))
        seen = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(seen - clips.clip(1, 64, 64)[0]).mean() < 6


def test_a_spritesheet_has_all_frames_of_a_short_clip(client: httpx2.Client, content: str) -> None:
    answer = client.get(f"{content}?variant=spritesheet")
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (192, 192))  # nine frames of 64


def test_a_picture_is_made_once_and_goes_with_its_video(
    filming: stack.Stack, client: httpx2.Client
) -> None:
    content = finished(filming, client, seed=3)
    job = content.split("/")[3]
    first = client.get(f"{content}?variant=thumbnail")
    (output,) = filming.call(filming.manager.job(job)).outputs
    kept = Path(output.path).with_name("0.thumbnail.webp")
    assert kept.read_bytes() == first.content
    kept.write_bytes(b"kept")
    assert client.get(f"{content}?variant=thumbnail").content == b"kept"
    client.delete(f"/v1/videos/{job}")
    assert not kept.parent.exists()
    error(client.get(f"{content}?variant=thumbnail"), 404)


@pytest.mark.parametrize("variant", ["video", "thumbnail", "spritesheet"])
def test_content_is_not_sent_twice_to_who_has_it(
    client: httpx2.Client, content: str, variant: str
) -> None:
    url = f"{content}?variant={variant}"
    whole = client.get(url)
    tag = whole.headers["etag"]
    assert tag.startswith('"')
    for known in (tag, f'"other", W/{tag}', "*"):
        again = client.get(url, headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    assert client.get(url, headers={"if-none-match": '"other"'}).content == whole.content
    part = client.get(url, headers={"range": "bytes=0-3", "if-range": tag})
    assert (part.status_code, part.content) == (206, whole.content[:4])
    head = client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "etag"):
        assert head.headers[name] == whole.headers[name]


def test_every_output_has_its_index(filming: stack.Stack, client: httpx2.Client) -> None:
    content = finished(filming, client, seed=4, num_outputs_per_prompt=3)
    video = client.get(content.removesuffix("/content")).json()
    assert (video["n"], video["seeds"]) == (3, [4, 5, 6])
    files = [client.get(f"{content}?index={i}").content for i in range(3)]
    assert len(set(files)) == 3
    assert client.get(content).content == files[0]
    assert client.get(f"{content}?variant=2").content == files[2]  # SGLang Diffusion's way
    thumbnails = [client.get(f"{content}?variant=thumbnail&index={i}").content for i in range(3)]
    assert len(set(thumbnails)) == 3
    assert error(client.get(f"{content}?index=3"), 404)["param"] == "index"
    assert error(client.get(f"{content}?index=-1"), 400)["param"] == "index"


def test_another_variant_is_a_clear_400(client: httpx2.Client, content: str) -> None:
    failure = error(client.get(f"{content}?variant=poster"), 400)
    assert failure["param"] == "variant"
    assert "'poster'" in failure["message"] and "'spritesheet'" in failure["message"]


def test_a_broken_file_has_no_picture(filming: stack.Stack, client: httpx2.Client) -> None:
    content = finished(filming, client, seed=5)
    (output,) = filming.call(filming.manager.job(content.split("/")[3])).outputs
    Path(output.path).write_bytes(b"no video")
    answer = client.get(f"{content}?variant=thumbnail")
    assert error(answer, 500)["code"] == "bad_frames"
    assert answer.headers["x-should-retry"] == "false"
    Path(output.path).unlink()
    assert error(client.get(f"{content}?variant=thumbnail"), 404)["code"] == "content_gone"


def test_unfinished_and_failed_jobs_have_no_pictures(
    manual: stack.Stack, slow: httpx2.Client
) -> None:
    job = slow.post("/v1/videos", json={"prompt": "a red circle"}).json()["id"]
    (spec,) = manual.call(manual.peer.submitted())
    url = f"/v1/videos/{job}/content?variant=thumbnail"
    assert error(slow.get(url), 404)["code"] == "not_ready"
    manual.call(manual.peer.progress(spec, State.DENOISING, step=1))
    manual.call(manual.peer.fail(spec, "oom", "No memory."))
    manual.call(manual.manager.wait(job))
    assert error(slow.get(url), 404)["code"] == "oom"


def test_quality_changes_the_file(filming: stack.Stack, client: httpx2.Client) -> None:
    sizes = {}
    presets: dict[str, dict[str, Any]] = {
        "low": {"output_quality": "low"},
        "default": {"output_quality": "default"},
        "nothing": {},
        "high": {"output_quality": "high"},
        "maximum": {"output_quality": "maximum"},
        "number": {"output_quality": "low", "output_compression": 100},
    }
    for name, asked in presets.items():
        sizes[name] = len(client.get(finished(filming, client, seed=1, **asked)).content)
    assert sizes["low"] < sizes["default"] == sizes["nothing"] < sizes["high"] < sizes["maximum"]
    assert sizes["number"] == sizes["maximum"]
    for wrong in ({"output_quality": "best"}, {"output_compression": 101}):
        answer = client.post("/v1/videos", json={"prompt": "x", **wrong})
        assert error(answer, 400)["param"] == next(iter(wrong))


def test_sync_answers_with_the_file(filming: stack.Stack, client: httpx2.Client) -> None:
    answer = client.post("/v1/videos/sync", data={"prompt": "a red circle", "seed": "2"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    job = answer.headers["x-video-id"]
    assert client.get(f"/v1/videos/{job}").json()["seed"] == 2
    assert client.get(f"/v1/videos/{job}/content").content == answer.content
    two = client.post("/v1/videos/sync", json={"prompt": "a red circle", "n": 2})
    assert error(two, 400)["param"] == "n"


def test_a_client_that_leaves_cancels_its_sync_job(manual: stack.Stack) -> None:
    address = urlsplit(manual.base_url)
    body = b'{"prompt": "a red circle"}'
    head = f"POST /v1/videos/sync HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    head += "content-type: application/json\r\n\r\n"
    assert address.hostname and address.port
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + body)
        (spec,) = manual.call(manual.peer.submitted())
    assert manual.call(manual.peer.next(m.Cancel)).samples == (spec.id,)


def test_a_sync_job_that_fails_is_an_error_that_is_not_sent_again(
    manual: stack.Stack, slow: httpx2.Client
) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(slow.post, "/v1/videos/sync", json={"prompt": "a red circle"})
        (spec,) = manual.call(manual.peer.submitted())
        manual.call(manual.peer.fail(spec, "oom", "No memory."))
        answer = waiting.result(20)
    assert error(answer, 500)["code"] == "oom"
    assert answer.headers["x-should-retry"] == "false"
