from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.datastructures import Headers

from fakes import stack
from safelight.entrypoint.body import IN_MEMORY, _object, nested
from safelight.entrypoint.guard import BodyLimit, Intake
from safelight.errors import InvalidRequest, Overloaded, PayloadTooLarge

URL = "/v1/videos"


def encodings(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Keyword arguments that send `fields` as JSON, multipart and url-encoded."""
    texts = {name: str(value) for name, value in fields.items()}
    return [
        {"json": fields},
        {"files": {name: (None, text) for name, text in texts.items()}},
        {"data": texts},
    ]


def test_every_encoding_makes_the_same_video(client: httpx2.Client, shared: stack.Stack) -> None:
    fields = {
        "prompt": "a red circle \N{WHITE SMILING FACE}",
        "model": "lab/tiny",
        "seconds": 1,
        "size": "96x64",
        "seed": 4,
        "guidance_scale": 1.5,
        "num_inference_steps": 2,
        "num_outputs_per_prompt": 1,
    }
    for sent in encodings(fields):
        answer = client.post(URL, **sent)
        assert answer.status_code == 200, answer.text
        video = answer.json()
        shared.call(shared.manager.wait(video["id"]))
        spec = next(s for s in shared.peer.specs if s.id == f"{video['id']}.0")
        assert spec.prompt == fields["prompt"]
        sampling = spec.sampling
        assert (sampling.width, sampling.height, sampling.num_frames) == (96, 64, 9)
        assert (sampling.seed, sampling.guidance_scale) == (4, 1.5)
        assert sampling.num_inference_steps == 2
        assert video["seconds"] == "1"
        assert "warnings" not in video


@pytest.mark.parametrize(
    "sent",
    [
        {"json": {"prompt": "x", "extra_body": {"seed": 9, "num_frames": 5}}},
        {"data": {"prompt": "x", "extra_body": '{"seed": 9, "num_frames": 5}'}},
        {"data": {"prompt": "x", "extra_body[seed]": "9", "extra_body[num_frames]": "5"}},
    ],
)
def test_a_nested_extra_body_counts_as_top_level(
    client: httpx2.Client, sent: dict[str, Any]
) -> None:
    video = client.post(URL, **sent).json()
    assert (video["seed"], video["num_frames"]) == (9, 5)


def test_null_is_absent(client: httpx2.Client) -> None:
    fields = dict.fromkeys(["seed", "size", "seconds", "n", "width", "priority", "whatever"])
    video = client.post(URL, json={"prompt": "x", **fields}).json()
    assert (video["size"], video["num_frames"]) == ("64x64", 9)
    assert "warnings" not in video


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [("1", 9), (1, 9), (1.6, 13), ("0.5", 5), (0.9, 9), ("1.125", 9), (0.125, 1)],
)
def test_seconds_take_the_nearest_frame_count(
    client: httpx2.Client, seconds: Any, frames: int
) -> None:
    video = client.post(URL, json={"prompt": "x", "seconds": seconds}).json()
    assert video["num_frames"] == frames
    assert video["seconds"] == str(seconds)


def test_seconds_count_at_the_given_rate(client: httpx2.Client) -> None:
    video = client.post(URL, data={"prompt": "x", "seconds": "2", "fps": "4"}).json()
    assert (video["num_frames"], video["fps"]) == (9, 4)


def test_the_length_is_told_when_it_was_not_asked_for(client: httpx2.Client) -> None:
    assert client.post(URL, json={"prompt": "x"}).json()["seconds"] == "1.125"
    assert client.post(URL, json={"prompt": "x", "num_frames": 13}).json()["seconds"] == "1.625"


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"seconds": "4"}, "seconds", "0.125 to 1.625 seconds at 8 frames"),
        ({"seconds": 0}, "seconds", "above 0"),
        ({"seconds": "long"}, "seconds", "'long'"),
        ({"seconds": "nan"}, "seconds", "'nan'"),
        ({"seconds": [4]}, "seconds", "[4]"),
        ({"seconds": 1, "num_frames": 13}, "num_frames", "13"),
        ({"seconds": 1, "fps": 0}, "fps", "got 0"),
        ({"size": "64x64", "height": 96}, "height", "96"),
        ({"size": "1280x720"}, "size", "32 to 128"),
        ({"num_frames": 8}, "num_frames", "Nearest: 5 or 9"),
        ({"n": 11}, "n", "11"),
        ({"n": 0}, "n", "got 0"),
        ({"input_reference": {"file_id": "f"}}, "input_reference", "file_id"),
        ({"input_reference": {"file": "f"}}, "input_reference", "image_url"),
        ({"model": "sora-2"}, "model", "sora-2"),
        ({"extra_body": [1]}, "extra_body", "object"),
    ],
)
def test_wrong_fields_are_named(
    client: httpx2.Client, fields: dict[str, Any], param: str, said: str
) -> None:
    answer = client.post(URL, json={"prompt": "x", **fields})
    assert answer.status_code == (404 if param == "model" else 400), answer.text
    failure = answer.json()["error"]
    assert failure["param"] == param
    assert said in failure["message"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("num_inference_steps", "ten", "'ten'"),
        ("seed", "1.5", "'1.5'"),
        ("width", "70", "Nearest: 64 or 80"),
        ("n", "2.5", "'2.5'"),
    ],
)
def test_form_values_are_checked_as_strictly(
    client: httpx2.Client, name: str, value: str, said: str
) -> None:
    failure = client.post(URL, data={"prompt": "x", name: value}).json()["error"]
    assert failure["param"] == name
    assert said in failure["message"]


def test_a_file_is_refused_by_its_field(client: httpx2.Client) -> None:
    answer = client.post(
        URL, data={"prompt": "x"}, files={"input_reference": ("a.png", b"\x89PNG", "image/png")}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input_reference"


def test_a_repeated_scalar_is_refused(client: httpx2.Client) -> None:
    answer = client.post(URL, data={"prompt": ["x", "y"]})
    failure = answer.json()["error"]
    assert (failure["param"], failure["code"]) == ("prompt", "duplicate_parameter")


@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b"[1]", b"3", b'"text"', b"\xff\xfe", b"[" * 1000, b'{"a":' * 3000),
        *(b'{"prompt": NaN}', b'{"prompt": "\\ud800"}', b'{"seed": ' + b"9" * 5000 + b"}"),
    ],
)
def test_a_body_that_is_no_object_is_refused(client: httpx2.Client, content: bytes) -> None:
    answer = client.post(URL, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_a_client_that_leaves_in_the_middle_is_no_bug(
    client: httpx2.Client, shared: stack.Stack, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    address = urlsplit(shared.base_url)
    head = f"POST {URL} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\ncontent-type: {kind}\r\n\r\n"
    with socket.create_connection((str(address.hostname), address.port or 0)) as connection:
        connection.sendall(head.encode() + b"{")
    with socket.create_connection((str(address.hostname), address.port or 0)) as connection:
        connection.sendall(head.encode() + b"{")
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1000)
    assert client.get("/health").status_code == 200
    assert "by a bug" not in "".join(capsys.readouterr())


def test_curl_calls_json_a_form(client: httpx2.Client) -> None:
    """`curl -d '{…}'` without a header."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = client.post(URL, content=b' {"prompt": "x", "seed": 9}', headers=headers)
    assert answer.status_code == 200 and answer.json()["seed"] == 9


@pytest.mark.parametrize("content", [b"prompt=%ff", b"prompt=\xff", b"a=1&" * 2000 + b"prompt=x"])
def test_a_broken_urlencoded_form_is_refused(client: httpx2.Client, content: bytes) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = client.post(URL, content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_form"


def test_values_of_json_are_counted_before_they_are_made() -> None:
    with pytest.raises(InvalidRequest, match="100001 commas"):
        _object(b"[" + b"0," * 100_001 + b"0]")


def test_all_bodies_together_are_limited() -> None:
    intake = Intake(100)
    limits = [BodyLimit(100, Headers(), intake) for _ in range(Intake.BODIES)]
    for limit in limits:
        limit.took(100)
    late = BodyLimit(100, Headers(), intake)
    with pytest.raises(Overloaded):
        late.took(1)
    with limits[0]:
        pass  # it has been read
    late.took(100)
    with pytest.raises(PayloadTooLarge):
        late.took(1)


def test_large_bodies_are_read_the_same_way(tmp_path: Path) -> None:
    """Those that do not stay in memory."""
    with (
        stack.running(tmp_path / "data") as running,
        httpx2.Client(base_url=running.base_url, timeout=30) as client,
    ):
        padding = "x" * (IN_MEMORY + 1)
        for sent in encodings({"prompt": "x", "seed": 9, "padding": padding}):
            answer = client.post(URL, **sent)
            assert answer.status_code == 200 and answer.json()["seed"] == 9, answer.text


def test_a_broken_form_is_refused(client: httpx2.Client) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        answer = client.post(URL, content=b"--nonsense", headers={"content-type": kind})
        assert answer.status_code == 400
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_another_content_type_is_415(client: httpx2.Client) -> None:
    answer = client.post(URL, content=b"<x/>", headers={"content-type": "text/xml"})
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_media_type"


def test_a_declared_length_over_the_limit_is_refused_unread(client: httpx2.Client) -> None:
    answer = client.post(URL, content=b"x" * 20_001, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "payload_too_large"
    assert "20000 bytes" in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
def test_a_chunked_body_is_counted_while_it_is_read(client: httpx2.Client, kind: str) -> None:
    def chunks(n: int) -> Any:
        yield b'{"prompt": "'
        for _ in range(n):
            yield b"x" * 1000
        yield b'"}'

    answer = client.post(URL, content=chunks(30), headers={"content-type": kind})
    assert answer.status_code == 413
    if kind == "application/json":
        assert client.post(URL, content=chunks(2), headers={"content-type": kind}).is_success


def test_brackets_become_structure() -> None:
    items = [
        ("a[b]", "1"),
        ("a[c][d]", "2"),
        ("list[]", "x"),
        ("list[]", "y"),
        ("loras[][name]", "m"),
        ("loras[][scale]", "0.5"),
        ("loras[][name]", "n"),
    ]
    assert nested(items) == {
        "a": {"b": "1", "c": {"d": "2"}},
        "list": ["x", "y"],
        "loras": [{"name": "m", "scale": "0.5"}, {"name": "n"}],
    }


@pytest.mark.parametrize(
    "items",
    [
        [("a", "1"), ("a[b]", "2")],
        [("a[b]", "2"), ("a", "1")],
        [("a[]", "1"), ("a[b]", "2")],
        [("a[b]", "1"), ("a[b]", "2")],
        [("[a]", "1")],
        [("a[b", "1")],
        [("", "1")],
    ],
)
def test_brackets_that_contradict_are_refused(items: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidRequest):
        nested(items)
