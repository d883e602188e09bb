"""Bodies as the clients, manuals and benchmark programs of SGLang Diffusion and vLLM-Omni send
them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import msgspec
import pytest
from PIL import Image

from fakes import stack
from fakes.engine_peer import CARD
from safelight.request import SampleSpec

MOVER = msgspec.structs.replace(
    CARD, name="lab/mover", tasks=("text-to-video", "image-to-video"), max_images=1
)
URL = "/v1/videos"


@pytest.fixture(scope="module")
def mover(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    with stack.running(tmp_path_factory.mktemp("mover"), card=MOVER) as running:
        yield running


@pytest.fixture(scope="module")
def client(mover: stack.Stack) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=mover.base_url, timeout=30) as client:
        yield client


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 60)).save(out, "png")
    return out.getvalue()


def as_url() -> str:
    return "data:image/png;base64," + base64.b64encode(picture()).decode()


def made(client: httpx2.Client, **request: Any) -> dict[str, Any]:
    answer = client.post(URL, **request)
    assert answer.status_code == 200, answer.text
    video: dict[str, Any] = answer.json()
    return video


def spec_of(running: stack.Stack, video: dict[str, Any]) -> SampleSpec:
    """As the scheduler got it, which is after the client got its answer."""
    running.call(running.manager.wait(video["id"]))
    return next(spec for spec in running.peer.specs if spec.id == f"{video['id']}.0")


def refused(client: httpx2.Client, fields: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(URL, json={"prompt": "x", **fields})
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


BENCHMARK = {
    "prompt": "a red circle",
    "width": 64,
    "height": 48,
    "num_frames": 5,
    "num_inference_steps": 2,
    "seed": 3,
    "fps": 4,
    "num_outputs_per_prompt": 2,
}


@pytest.mark.parametrize("kind", ["json", "urlencoded", "multipart"])
@pytest.mark.parametrize("nested", ["object", "text"])
def test_a_benchmark_program_sends_every_kind_of_body(
    mover: stack.Stack, client: httpx2.Client, kind: str, nested: str
) -> None:
    """Accepted with 200; polled to its end, with no `usage` anywhere."""
    extra: Any = {"guidance_scale": 2.0, "negative_prompt": "fog", "their_own_field": 1}
    if kind != "json" or nested == "text":
        extra = json.dumps(extra)
    fields = {**BENCHMARK, "extra_body": extra, "another_of_theirs": "x"}
    if kind == "json":
        video = made(client, json=fields)
    elif kind == "urlencoded":
        video = made(client, data={name: str(value) for name, value in fields.items()})
    else:
        video = made(client, files={k: (None, str(v)) for k, v in fields.items()})
    assert (video["size"], video["num_frames"], video["fps"], video["seed"]) == ("64x48", 5, 4, 3)
    assert (video["guidance_scale"], video["negative_prompt"], video["n"]) == (2.0, "fog", 2)
    assert len(video["warnings"]) == 2
    assert "usage" not in video
    mover.call(mover.manager.wait(video["id"]))
    done = client.get(f"{URL}/{video['id']}").json()
    assert done["status"] == "completed"
    assert "usage" not in done
    assert client.get(f"{URL}/{video['id']}/content").status_code == 200


def test_a_benchmark_program_finds_the_server(client: httpx2.Client) -> None:
    assert client.get("/health").status_code == 200
    answer = client.get("/v1/model_info")
    assert answer.status_code == 200
    assert "model_path" in answer.json()


@pytest.mark.parametrize(
    "name",
    ["extra_body", "extra_json", "extra_params", "extra_args", "diffusers_kwargs", "video_params"],
)
def test_nested_objects_count_as_if_they_stood_beside(client: httpx2.Client, name: str) -> None:
    inner = {"num_frames": 5, "seed": 9}
    requests: tuple[dict[str, Any], ...] = (
        {"json": {"prompt": "x", name: inner}},
        {"data": {"prompt": "x", name: json.dumps(inner)}},
        {"files": {"prompt": (None, "x"), f"{name}[num_frames]": (None, "5"),
                   f"{name}[seed]": (None, "9")}},
    )  # fmt: skip
    for request in requests:
        video = made(client, **request)
        assert (video["num_frames"], video["seed"]) == (5, 9)
        assert "warnings" not in video
    assert refused(client, {name: [1]})["param"] == name


def test_seconds_may_be_a_number_or_text(client: httpx2.Client) -> None:
    for seconds in (1, "1", 1.0, "1.0"):
        video = made(client, json={"prompt": "x", "seconds": seconds})
        assert video["num_frames"] == 9
        assert isinstance(video["seconds"], str)
        assert float(video["seconds"]) == 1


@pytest.mark.parametrize("shape", ["file", "object", "brackets", "data url", "reference_url"])
def test_the_first_picture_comes_in_every_shape(
    mover: stack.Stack, client: httpx2.Client, shape: str
) -> None:
    text = {"prompt": "it moves", "size": "64x64"}
    shapes: dict[str, dict[str, Any]] = {
        "file": {"data": text, "files": {"input_reference": ("upload", picture())}},
        "object": {"json": {**text, "input_reference": {"image_url": as_url()}}},
        "brackets": {
            "files": {
                "prompt": (None, "it moves"),
                "input_reference[image_url]": (None, as_url()),
            }
        },
        "data url": {"json": {**text, "input_reference": as_url()}},
        "reference_url": {"json": {**text, "reference_url": as_url()}},
    }
    video = made(client, **shapes[shape])
    spec = spec_of(mover, video)
    assert spec.task == "image-to-video"
    assert [one.size for one in spec.inputs.images] == [(64, 64)]


def test_a_file_id_is_refused_with_what_would_work(client: httpx2.Client) -> None:
    for request in (
        {"json": {"prompt": "x", "input_reference": {"file_id": "file_1"}}},
        {"files": {"prompt": (None, "x"), "input_reference[file_id]": (None, "file_1")}},
    ):
        answer = client.post(URL, **request)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "input_reference"
        assert "data URL" in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_frame_interpolation": True},
        {"enable_upscaling": True},
        {"video_reference": "data:video/mp4;base64,AAAA"},
        {"audio_reference": "data:audio/wav;base64,AAAA"},
        {"control_reference": "x"},
        {"enhance_prompt": True},
        {"boundary_ratio": 0.9},
        {"aspect_ratio": "16:9"},
        {"stream": True},
        {"characters": [{"id": "char_1"}]},
        {"output_format": "webm"},
    ],
)
def test_what_would_give_another_video_is_refused(
    client: httpx2.Client, fields: dict[str, Any]
) -> None:
    (name,) = fields
    assert refused(client, fields)["param"] == name


def test_what_asks_for_nothing_is_fine(client: httpx2.Client) -> None:
    nothing = {"enable_frame_interpolation": False, "stream": False, "characters": []}
    video = made(client, json={"prompt": "x", "enable_upscaling": None, **nothing})
    assert "warnings" not in video
    assert made(client, data={"prompt": "x", "stream": "false"})["status"] == "queued"


def test_names_without_an_effect_are_told(client: httpx2.Client) -> None:
    fields = {
        "generator_device": "cpu",
        "enable_teacache": True,
        "x264_preset": "slow",
        "return_stage_metrics": True,
        "quality": "standard",
    }
    video = made(client, json={"prompt": "x", **fields})
    assert video["warnings"] == [f"'{name}' has no effect on this server." for name in fields]


def test_previews_are_asked_of_the_ranks(mover: stack.Stack, client: httpx2.Client) -> None:
    video = made(client, data={"prompt": "x", "previews": "3"})
    spec = spec_of(mover, video)
    assert spec.previews == 3
    assert refused(client, {"previews": 17})["param"] == "previews"


def test_counts_have_bounds_and_agree(client: httpx2.Client) -> None:
    assert refused(client, {"num_outputs_per_prompt": 11})["param"] == "n"
    assert refused(client, {"num_outputs_per_prompt": 2, "n": 3})["param"] == "n"
    assert refused(client, {"n": 2, "seed": [1, 2, 3]})["param"] == "seed"
    assert made(client, json={"prompt": "x", "n": 2, "seed": [5, 1]})["seeds"] == [5, 1]
