from __future__ import annotations

import base64
import io
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from PIL import Image

from fakes import stack
from safelight.wire import messages as m

URL = "/v1/images/generations"


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_both_ways_when_none_is_asked_for(client: httpx2.Client, shared: stack.Stack) -> None:
    answer = client.post(URL, json={"prompt": "a cat", "n": 2, "seed": 11, "size": "96x64"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert isinstance(body["created"], int)
    assert (body["output_format"], body["size"]) == ("png", "96x64")
    assert (body["seed"], body["seeds"]) == (11, [11, 12])
    assert body["id"].startswith("image_")
    assert "usage" not in body and "warnings" not in body
    for index, (image, seed) in enumerate(zip(body["data"], (11, 12), strict=True)):
        assert image["url"] == f"{shared.base_url}/v1/images/{body['id']}/content?index={index}"
        fetched = client.get(image["url"])
        assert fetched.headers["content-type"] == "image/png"
        assert fetched.content == base64.b64decode(image["b64_json"])
        assert opened(fetched.content).size == (96, 64)
        assert opened(fetched.content).getpixel((0, 0)) == (seed, 40, 80)
    beyond = client.get(f"/v1/images/{body['id']}/content?index=2")
    assert (beyond.status_code, beyond.json()["error"]["param"]) == (404, "index")


@pytest.mark.parametrize(
    ("asked", "keys"), [("url", ["url"]), ("b64_json", ["b64_json"]), (None, ["b64_json", "url"])]
)
def test_response_format(client: httpx2.Client, asked: str | None, keys: list[str]) -> None:
    body = client.post(URL, json={"prompt": "a cat", "response_format": asked}).json()
    assert [list(image) for image in body["data"]] == [keys]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_output_format(client: httpx2.Client, kind: str) -> None:
    fields = {"prompt": "a cat", "output_format": kind, "output_compression": 50}
    body = client.post(URL, json=fields).json()
    assert body["output_format"] == kind
    fetched = client.get(body["data"][0]["url"])
    assert fetched.headers["content-type"] == f"image/{kind}"
    assert opened(fetched.content).format == kind.upper()


def test_the_seed_is_random_and_reported(client: httpx2.Client) -> None:
    seeds = {client.post(URL, json={"prompt": "a cat"}).json()["seed"] for _ in range(2)}
    assert len(seeds) == 2


def test_the_extension_fields_reach_the_samples(client: httpx2.Client, shared: stack.Stack) -> None:
    fields = {
        "prompt": "a cat",
        "width": 96,
        "height": 48,
        "num_inference_steps": 3,
        "guidance_scale": 2,
        "negative_prompt": "dogs",
        "max_sequence_length": 32,
        "priority": 5,
        "seed": 1,
    }
    assert client.post(URL, json=fields).status_code == 200
    spec = shared.peer.specs[-1]
    sampling = spec.sampling
    assert (sampling.width, sampling.height, sampling.num_frames) == (96, 48, 1)
    assert (sampling.num_inference_steps, sampling.guidance_scale) == (3, 2.0)
    assert (sampling.negative_prompt, sampling.max_sequence_length) == ("dogs", 32)
    assert (spec.priority, sampling.seed) == (5, 1)


def test_hints_and_strangers_are_named_in_warnings(client: httpx2.Client) -> None:
    fields = {
        "prompt": "a cat",
        "quality": "hd",
        "user": "me",
        "guidance": 3,
        "extra_headers": {"a": "b"},
        "stream": False,
    }
    body = client.post(URL, json=fields).json()
    quality, user, guidance, headers = body["warnings"]
    assert "'quality' has no effect" in quality and "'user'" in user
    assert "'guidance'" in guidance and "'guidance_scale'" in guidance
    assert "'extra_headers'" in headers
    assert body["safety_identifier"] == "me"


def test_a_failed_job_is_a_500_that_clients_do_not_repeat(
    manual: stack.Stack, slow: httpx2.Client
) -> None:
    answer = _while_failing(manual, slow, "fail")
    assert answer.status_code == 500
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["code"] == "oom"
    assert answer.json()["error"]["message"] == "No memory."


def test_a_cancelled_job_is_a_409_that_clients_do_not_repeat(
    manual: stack.Stack, slow: httpx2.Client
) -> None:
    answer = _while_failing(manual, slow, "cancel")
    assert answer.status_code == 409
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["code"] == "cancelled"


def _while_failing(manual: stack.Stack, slow: httpx2.Client, how: str) -> httpx2.Response:
    """The answer to a request whose job is ended while it waits."""
    import asyncio

    async def end() -> None:
        (spec,) = await manual.peer.submitted()
        if how == "fail":
            await manual.peer.fail(spec, "oom", "No memory.")
        else:
            await manual.manager.cancel(spec.id.rpartition(".")[0])

    ending = asyncio.run_coroutine_threadsafe(end(), manual.loop)
    answer = slow.post(URL, json={"prompt": "a cat"})
    ending.result(30)
    return answer


def test_a_client_that_leaves_cancels_the_job(manual: stack.Stack) -> None:
    address = urlsplit(manual.base_url)
    body = b'{"prompt": "a cat", "n": 2}'
    head = f"POST {URL} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    head += "content-type: application/json\r\n\r\n"
    assert address.hostname and address.port
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + body)
        specs = manual.call(manual.peer.submitted())
        assert manual.peer.silent(m.Cancel)
    cancelled = manual.call(manual.peer.next(m.Cancel))
    assert set(cancelled.samples) == {spec.id for spec in specs}
    view = manual.call(manual.manager.job(specs[0].id.rpartition(".")[0]))
    assert view.status == "cancelled"


def test_a_restart_serves_the_urls_it_gave(tmp_path: Path) -> None:
    with (
        stack.running(tmp_path) as running,
        httpx2.Client(base_url=running.base_url, timeout=30) as client,
    ):
        body = client.post(URL, json={"prompt": "a cat"}).json()
    path = urlsplit(body["data"][0]["url"])
    with (
        stack.running(tmp_path) as running,
        httpx2.Client(base_url=running.base_url, timeout=30) as client,
    ):
        fetched = client.get(f"{path.path}?{path.query}")
        assert fetched.content == base64.b64decode(body["data"][0]["b64_json"])


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": None}, "prompt", "empty"),
        ({"prompt": 3}, "prompt", "3"),
        ({"n": 0}, "n", "0"),
        ({"n": 11}, "n", "1 to 10"),
        ({"n": "2"}, "n", "'2'"),
        ({"n": 2, "num_outputs_per_prompt": 3}, "n", "3"),
        ({"size": "big"}, "size", "WIDTHxHEIGHT"),
        ({"size": "60x64"}, "size", "Nearest: 48 or 64"),
        ({"size": "4x4"}, "size", "8"),
        ({"size": "64x64", "width": 96}, "width", "96"),
        ({"width": 8192}, "width", "32 to 128"),
        ({"num_frames": 9}, "num_frames", "9"),
        ({"num_inference_steps": 0}, "num_inference_steps", "got 0"),
        ({"num_inference_steps": True}, "num_inference_steps", "True"),
        ({"guidance_scale": "high"}, "guidance_scale", "'high'"),
        ({"guidance_scale": 101}, "guidance_scale", "100"),
        ({"seed": -1}, "seed", "-1"),
        ({"seed": 2**63}, "seed", str(2**63)),
        ({"response_format": "file"}, "response_format", "'file'"),
        ({"output_format": "gif"}, "output_format", "'gif'"),
        ({"output_compression": 101}, "output_compression", "101"),
        ({"priority": 1000}, "priority", "-100 to 100"),
        ({"output_format": "svg"}, "output_format", "'svg'"),
        ({"output_quality": "best"}, "output_quality", "'best'"),
        ({"background": "transparent"}, "background", "paint every pixel"),
        ({"background": "blue"}, "background", "'blue'"),
        ({"frame_count": 9}, "frame_count", "not supported"),
        ({"markup": "x"}, "markup", "not supported"),
        ({"partial_images": 17}, "partial_images", "16"),
        ({"stream": True, "async": True}, "async", "give one of them"),
        ({"async": "soon"}, "async", "'soon'"),
        ({"n": 10**9}, "n", "1 to 10"),
        ({"n": 10**30}, "n", "10"),
        ({"size": "100000x100000"}, "size", "100000"),
        ({"mask": "x"}, "mask", "neither an upload"),
        ({"image": "x"}, "image", "neither an upload"),
        ({"url": "x.jpg"}, "url", "no URL that begins with"),
    ],
)
def test_wrong_fields_are_named(
    client: httpx2.Client, fields: dict[str, Any], param: str, said: str
) -> None:
    answer = client.post(URL, json={"prompt": "a cat", **fields})
    assert answer.status_code == 400, answer.text
    failure = answer.json()["error"]
    assert failure["type"] == "invalid_request_error"
    assert failure["param"] == param
    assert said in failure["message"]
    assert failure["code"]


def test_an_unknown_model_is_404(client: httpx2.Client) -> None:
    for name, status in (("dall-e-2", 404), ("LAB/TINY", 404), ("lab/tiny", 200), (None, 200)):
        answer = client.post(URL, json={"prompt": "a cat", "model": name})
        assert answer.status_code == status
        if status == 404:
            failure = answer.json()["error"]
            assert (failure["param"], failure["code"]) == ("model", "model_not_found")
            assert "lab/tiny" in failure["message"]


@pytest.mark.parametrize(
    ("fields", "compression"),
    [
        ({}, 95),
        ({"output_quality": "maximum"}, 100),
        ({"output_quality": "high"}, 90),
        ({"output_quality": "medium"}, 55),
        ({"output_quality": "low"}, 35),
        ({"output_quality": "default"}, 75),
        ({"output_quality": "low", "output_compression": 80}, 80),
        ({"output_compression": 0}, 0),
    ],
)
def test_presets_of_quality(
    client: httpx2.Client, shared: stack.Stack, fields: dict[str, Any], compression: int
) -> None:
    answer = client.post(URL, json={"prompt": "a cat", "output_format": "jpeg", **fields})
    assert answer.status_code == 200, answer.text
    assert shared.peer.specs[-1].delivery.compression == compression


@pytest.mark.parametrize("background", ["auto", "opaque", None])
def test_images_are_opaque(client: httpx2.Client, background: str | None) -> None:
    body = client.post(URL, json={"prompt": "a cat", "background": background}).json()
    assert body["background"] == "opaque"
    assert "warnings" not in body


def test_what_asks_for_nothing_is_not_refused(client: httpx2.Client) -> None:
    fields = {"stream": False, "svg": None, "enhance_prompt": False, "layers": 0, "async": False}
    answer = client.post(URL, json={"prompt": "a cat", **fields})
    assert answer.status_code == 200 and "warnings" not in answer.json()


def test_azures_paths_name_the_model(client: httpx2.Client, shared: stack.Stack) -> None:
    url = "/openai/deployments/{}/images/generations?api-version=2026-01-01"
    answer = client.post(url.format("lab/tiny"), json={"prompt": "a cat"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["model"] == "lab/tiny"
    assert body["data"][0]["url"].startswith(f"{shared.base_url}/v1/images/{body['id']}/content")
    refused = client.post(url.format("dall-e-3"), json={"prompt": "a cat"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    # What the body says counts more.
    assert client.post(url.format("x"), json={"prompt": "a", "model": "lab/tiny"}).is_success
    edit = client.post(url.format("lab/tiny").replace("generations", "edits"), json={"prompt": "a"})
    assert edit.json()["error"]["param"] == "image"
