"""`POST /generate`, and what clients of other systems ask about a server."""

from __future__ import annotations

import base64
import io
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import msgspec
import pytest
from PIL import Image

from fakes import stack
from fakes.engine_peer import CARD
from safelight.entrypoint import peers
from safelight.wire import messages as m

PROMPT = {"prompt": "A cat walks on the grass, realistic"}
STILL = PROMPT | {"num_frames": 1}


def test_images_come_in_base64(client: httpx2.Client) -> None:
    asked = STILL | {"width": 96, "height": 32, "num_inference_steps": 5, "num_images": 2}
    answer = client.post("/generate", json=asked | {"seed": 42, "guidance_scale": 1.5}).json()
    assert [Image.open(io.BytesIO(base64.b64decode(i))).size for i in answer["images"]] == [
        (96, 32),
        (96, 32),
    ]
    assert answer["images"][0] != answer["images"][1]
    assert answer["seeds"] == [42, 43] and answer["seed"] == 42
    assert (answer["num_inference_steps"], answer["guidance_scale"]) == (5, 1.5)
    assert (answer["width"], answer["height"], answer["num_frames"]) == (96, 32, 1)
    assert answer["time_cost"] > 0
    assert not {"video", "stats", "warnings"} & set(answer)
    for name in ("image_url", "download_url"):
        assert client.get(answer[name]).content == base64.b64decode(answer["images"][0])


def test_several_frames_are_a_video(client: httpx2.Client) -> None:
    asked = PROMPT | {"num_frames": 5, "fps": 16, "include_stats": True}
    answer = client.post("/generate", json=asked).json()
    assert answer["images"] == []
    video = base64.b64decode(answer["video"])
    assert b"ftyp" in video[:16]
    assert client.get(answer["download_url"]).content == video
    assert (answer["num_frames"], answer["fps"]) == (5, 16)
    assert answer["stats"]["steps"] == 4 and answer["stats"]["attempt"] == 1
    assert answer["stats"]["queued"] >= 0 and answer["stats"]["generating"] >= 0


def test_without_a_number_of_frames_the_model_decides(client: httpx2.Client) -> None:
    assert client.post("/generate", json=PROMPT).json()["num_frames"] == 9


def test_path_gives_addresses_and_formats_are_formats(client: httpx2.Client) -> None:
    (url,) = client.post("/generate", json=STILL | {"output_format": "path"}).json()["images"]
    assert client.get(url).headers["content-type"] == "image/png"
    (image,) = client.post("/generate", json=STILL | {"output_format": "webp"}).json()["images"]
    assert Image.open(io.BytesIO(base64.b64decode(image))).format == "WEBP"


def test_forms_and_unknown_fields_are_taken(client: httpx2.Client) -> None:
    answer = client.post("/generate", data=STILL | {"seed": "7", "size": "32x64", "foo": "1"})
    body = answer.json()
    assert (body["seed"], body["width"], body["height"]) == (7, 32, 64)
    assert any("'foo'" in warning for warning in body["warnings"])


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"num_images": 0}, "num_images", ">= 1"),
        ({"num_images": 11}, "n", "1 to 10"),
        ({"num_images": 2, "n": 3}, "n", "'n' is 3"),
        ({"num_images": 2, "num_frames": 5}, "num_images", "one video"),
        ({"num_frames": "many"}, "num_frames", "many"),
        ({"num_frames": 5, "output_format": "png"}, "output_format", "mp4"),
        ({"output_format": "tiff"}, "output_format", "tiff"),
        ({"guidance_scale": 101}, "guidance_scale", "<= 100"),
        ({"num_inference_steps": 0}, "num_inference_steps", ">= 1"),
        ({"width": 1000}, "width", "Nearest"),
        ({"size": "1000x64"}, "size", "Nearest"),
        ({"seed": -1}, "seed", ">= 0"),
        ({"include_stats": "perhaps"}, "include_stats", "perhaps"),
        ({"image_urls": ["not base64!"]}, "image_urls", "base64"),
        ({"image_urls": 3}, "image_urls", "3"),
    ],
)
def test_wrong_fields_are_named(
    client: httpx2.Client, fields: dict[str, Any], param: str, words: str
) -> None:
    answer = client.post("/generate", json=STILL | fields)
    assert answer.status_code == 400, answer.text
    failure = answer.json()["error"]
    assert failure["param"] == param
    assert words in failure["message"]


def test_pictures_make_it_an_edit(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, "PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    card = msgspec.structs.replace(CARD, tasks=("text-to-video", "image-to-image"), max_images=2)
    with (
        stack.running(tmp_path, card=card) as running,
        httpx2.Client(base_url=running.base_url, timeout=30) as client,
    ):
        asked = PROMPT | {"image_urls": [f"data:image/png;base64,{picture}", picture]}
        answer = client.post("/generate", json=asked)
        assert len(answer.json()["images"]) == 1, answer.text
        (spec,) = running.peer.specs
    assert spec.task == "image-to-image"
    assert [image.size for image in spec.inputs.images] == [(8, 6), (8, 6)]


def test_a_client_that_leaves_cancels_the_job(manual: stack.Stack) -> None:
    address = urlsplit(manual.base_url)
    body = b'{"prompt": "a cat", "num_frames": 1}'
    head = f"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    assert address.hostname and address.port
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + body)
        specs = manual.call(manual.peer.submitted())
        assert manual.peer.silent(m.Cancel)
    cancelled = manual.call(manual.peer.next(m.Cancel))
    assert set(cancelled.samples) == {spec.id for spec in specs}


def test_a_failure_says_why_and_is_not_repeated(manual: stack.Stack, slow: httpx2.Client) -> None:
    async def fail() -> None:
        (spec,) = await manual.peer.submitted()
        await manual.peer.fail(spec, "non_finite", "The latents are not finite.")

    import asyncio

    failing = asyncio.run_coroutine_threadsafe(fail(), manual.loop)
    answer = slow.post("/generate", json=STILL)
    failing.result(30)
    assert answer.status_code == 500
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["code"] == "non_finite"


# ---------------------------------------------------------------------------------- about a server


@pytest.mark.parametrize("path", ["/models", "/get_model_info", "/model_info", "/v1/model_info"])
def test_models_as_others_describe_them(client: httpx2.Client, path: str) -> None:
    info = client.get(path).json()
    assert info["model_path"] == CARD.name
    assert (info["task_type"], info["pipeline_name"]) == ("T2V", "wan_pipeline")
    assert (info["num_gpus"], info["vae_precision"]) == (1, "fp32")
    (only,) = info.pop("models")
    assert only == info


@pytest.mark.parametrize(
    ("tasks", "kind"),
    [
        (("text-to-image",), "T2I"),
        (("text-to-image", "image-to-image"), "TI2I"),
        (("inpainting",), "I2I"),
        (("image-to-video",), "I2V"),
        (("text-to-video", "image-to-video", "text-to-image"), "TI2V"),
    ],
)
def test_task_types(tasks: Any, kind: str) -> None:
    assert peers._task_type(msgspec.structs.replace(CARD, tasks=tasks)) == kind


def test_the_pipeline_class_is_read_and_precisions_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    card = msgspec.structs.replace(CARD, path=str(tmp_path))
    with (
        stack.running(tmp_path / "data", card=card, device="cuda") as running,
        httpx2.Client(base_url=running.base_url) as client,
    ):
        info = client.get("/models").json()
    assert info["pipeline_class"] == "WanPipeline"
    assert (info["dit_precision"], info["vae_precision"]) == ("bf16", "fp32")


def test_models_are_loaded_and_their_ranks_told(manual: stack.Stack, slow: httpx2.Client) -> None:
    before = slow.get("/model-status").json()
    assert (before["model"], before["model_loaded"], before["ranks"]) == (CARD.name, False, [])
    rank = m.RankInfo(
        rank=0, pid=1, device="cuda:0", peak_memory=3 * 2**30, weights={"transformer": 2**30}
    )
    group = m.GroupStatus(group=0, ready=True, detail="", model=CARD.name, ranks=(rank,))
    manual.call(manual.peer.say(group))
    loaded = slow.post("/load-model").json()
    assert (loaded["model"], loaded["status"]) == (CARD.name, "loaded")
    assert "already" in slow.post("/load-model", json={"model": CARD.name}).json()["message"]
    after = slow.get("/model-status").json()
    assert after["model_loaded"] and after["models"][0]["status"] == "loaded"
    (told,) = after["ranks"]
    assert (told["device"], told["weights_gb"], told["peak_memory_gb"]) == ("cuda:0", 1.0, 3.0)
    assert after["vram_usage_gb"] == 3.0 and after["system_memory_available_gb"] > 0
    assert slow.get("/get_model_info").json()["device"] == "cuda"


def test_an_unknown_model_is_not_loaded(client: httpx2.Client) -> None:
    answer = client.post("/load-model", json={"model": "other"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_flush_cache_reaches_the_scheduler(manual: stack.Stack, slow: httpx2.Client) -> None:
    assert manual.peer.silent(m.FlushCaches)
    assert slow.post("/flush_cache").json()["status"] == "success"
    manual.call(manual.peer.next(m.FlushCaches))


def test_the_root_lists_every_endpoint(client: httpx2.Client) -> None:
    body = client.get("/").json()
    paths = client.get("/openapi.json").json()["paths"]
    assert {line.split(" ")[1] for line in body["endpoints"]} == set(paths)
    assert body["models"] == [CARD.name]
    for name in ("docs", "openapi"):
        assert client.get(body[name]).status_code == 200


def test_server_info(client: httpx2.Client) -> None:
    for path in ("/server_info", "/get_server_info"):
        info = client.get(path).json()
        assert info["models"] == [CARD.name] and info["max_body_bytes"] == 20_000


def test_the_page_shows_every_endpoint_and_needs_nothing_else(client: httpx2.Client) -> None:
    answer = client.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    document = client.get("/openapi.json").json()
    for path in document["paths"]:
        assert f"</b> {path}</summary>" in answer.text
    assert not re.findall(r"<(script|link|img|iframe)|@import|url\(", answer.text)
    assert "num_inference_steps" in answer.text and "curl -X POST" in answer.text
    assert client.get("/redoc").status_code == 404


# --------------------------------------------------------------------------------------- who may


def test_other_sites_change_nothing_on_a_server_without_a_key(client: httpx2.Client) -> None:
    """What a form on a web page can send, with what the browser says about it."""
    foreign: list[dict[str, str]] = [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ]
    own = {"origin": str(client.base_url).rstrip("/"), "sec-fetch-site": "same-origin"}
    for headers in foreign:
        for path in ("/generate", "/load-model", "/flush_cache", "/v1/videos"):
            answer = client.post(path, data=STILL, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site")
        assert client.get("/v1/models", headers=headers).status_code == 200
    assert client.post("/generate", json=STILL, headers=own).status_code == 200
