"""A remote model: what is sent to the upstream, what is made of its answers."""

from __future__ import annotations

import io
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import httpx2
import msgspec
import numpy as np
import pytest
from PIL import Image

from fakes import cases
from fakes.simulation import spec as sample_spec
from fakes.upstream import Asked, FakeUpstream, gemini_answer, openai_answer, png, upstream
from safelight import config as configuration
from safelight.errors import ConfigError, GenerationFailed, InvalidRequest
from safelight.models.registry import load_capabilities, load_card, load_family
from safelight.models.remote.adapter import RemoteFamily
from safelight.models.remote.client import Client, _limited
from safelight.models.remote.spec import upstream as parsed
from safelight.parallel.mesh import Mesh
from safelight.request import Inputs, SampleSpec
from safelight.worker.warmup import warm_up

KEY = {"OPENAI_API_KEY": "sk-secret", "GEMINI_API_KEY": "g-secret"}


def client(fake: FakeUpstream, protocol: str = "openai", timeout: float = 20.0) -> Client:
    where = parsed(Path(f"remote:{protocol}/some-model@{fake.url}"))
    return Client(where, timeout=timeout, environ=KEY, pause=0.0)


def sample(name: str = "a.0", **values: object) -> SampleSpec:
    return msgspec.structs.replace(sample_spec(name), **values)


def parts(asked: Asked) -> dict[str, bytes]:
    """The parts of a multipart body by name."""
    head = b"content-type: " + asked.headers["content-type"].encode() + b"\r\n\r\n"
    return {
        str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True)
        for part in message_from_bytes(head + asked.body).get_payload()
    }


@pytest.mark.parametrize(
    ("path", "model", "url"),
    [
        ("remote:openai/gpt-image-1", "gpt-image-1", "https://api.openai.com/v1"),
        (
            "remote:gemini/gemini-2.5-flash-image",
            "gemini-2.5-flash-image",
            "https://generativelanguage.googleapis.com/v1beta",
        ),
        ("remote:openai/org/model@http://host:1/v1/", "org/model", "http://host:1/v1"),
    ],
)
def test_a_path_says_where_the_model_is(path: str, model: str, url: str) -> None:
    found = parsed(Path(path))
    assert (found.model, found.base_url) == (model, url)


@pytest.mark.parametrize("path", ["remote:openai", "remote:dalle/x", "remote:openai/x@ftp://h"])
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="remote:openai/MODEL"):
        load_card(configuration.build({"model_path": path}))


def test_a_prompt_becomes_a_generation() -> None:
    with upstream((200, openai_answer(png("red")))) as fake:
        picture = client(fake).picture(sample())
    (asked,) = fake.asked
    assert asked.path == "/v1/images/generations"
    assert asked.headers["authorization"] == "Bearer sk-secret"
    wanted = {"model": "some-model", "prompt": "a red circle", "size": "64x64", "n": 1}
    assert asked.json == wanted
    assert picture.shape == (16, 16, 3)
    assert (picture == [255, 0, 0]).all()


def test_pictures_become_an_edit_and_the_mask_is_transparent_where_it_is_white(
    tmp_path: Path,
) -> None:
    image, mask = cases.picture(tmp_path, (8, 6), 1), cases.picture(tmp_path, (8, 6), 0, "L")
    with upstream((200, openai_answer(png()))) as fake:
        client(fake).picture(sample(inputs=Inputs(images=(image,), mask=mask)))
    (asked,) = fake.asked
    assert asked.path == "/v1/images/edits"
    sent = parts(asked)
    assert sent["prompt"] == b"a red circle"
    uploaded = np.asarray(Image.open(io.BytesIO(sent["image[]"])))
    assert (uploaded == np.fromfile(image.path, np.uint8).reshape(6, 8, 3)).all()
    alpha = np.asarray(Image.open(io.BytesIO(sent["mask"])))[..., 3]
    assert (alpha[:, :4] == 255).all()
    assert (alpha[:, 4:] == 0).all()


def test_gemini_is_spoken_too(tmp_path: Path) -> None:
    image = cases.picture(tmp_path, (8, 6), 1)
    with upstream((200, gemini_answer(png("blue")))) as fake:
        picture = client(fake, "gemini").picture(sample(inputs=Inputs(images=(image,))))
    (asked,) = fake.asked
    assert asked.path == "/v1/models/some-model:generateContent"
    assert asked.headers["x-goog-api-key"] == "g-secret"
    text, inline = asked.json["contents"][0]["parts"]
    assert text == {"text": "a red circle"}
    assert inline["inlineData"]["mimeType"] == "image/png"
    assert (picture == [0, 0, 255]).all()


def test_a_busy_upstream_is_asked_again() -> None:
    busy = (429, {"error": {"message": "slow down"}})
    with upstream(busy, (503, b"oops"), (200, openai_answer(png()))) as fake:
        fake.headers["retry-after"] = "0"
        assert client(fake).picture(sample()).shape == (16, 16, 3)
    assert len(fake.asked) == 3


@pytest.mark.parametrize(
    ("answer", "said", "times"),
    [
        ((400, {"error": {"message": "no such size"}}), "answered 400: no such size", 1),
        ((401, {"error": {"message": "bad key"}}), "answered 401: bad key", 1),
        ((500, b"<html>"), r"answered 500: <html> \(3 attempts\)", 3),
        ((200, b"rubbish"), "not JSON", 1),
        ((200, [1]), "not a JSON object", 1),
        ((200, {"data": []}), "no b64_json", 1),
        ((200, {"data": [{"b64_json": "!!!"}]}), "broken", 1),
        ((200, openai_answer(b"GIF89a")), "broken", 1),
        ((200, openai_answer(png(size=(9000, 9000)))), "9000x9000", 1),
    ],
)
def test_what_goes_wrong_is_told_in_the_upstreams_words(
    answer: tuple[int, object], said: str, times: int
) -> None:
    with upstream(answer) as fake, pytest.raises(GenerationFailed, match=said) as failure:
        client(fake).picture(sample())
    assert len(fake.asked) == times
    assert failure.value.code == "upstream_failed"
    assert "secret" not in str(failure.value)


def test_nobody_there_is_told() -> None:
    with upstream((200, {})) as fake:
        pass
    with pytest.raises(GenerationFailed, match="cannot be reached"):
        client(fake).picture(sample())


def test_without_a_key_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="set OPENAI_API_KEY"):
        load_family(configuration.build({"model_path": "remote:openai/x", "device": "cpu"}))


def test_requests_of_a_batch_are_sent_at_once_and_fail_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    refused = (400, {"error": {"message": "not this one"}})
    with upstream(refused, (200, openai_answer(png()))) as fake:
        fake.together = threading.Barrier(3)
        path = f"remote:openai/x@{fake.url}"
        family = load_family(configuration.build({"model_path": path, "device": "cpu"}))
        assert isinstance(family, RemoteFamily)
        stepper = cases.Stepper(family, Mesh.single(cases.CPU))
        stepper.begin(*(sample(f"{i}.0") for i in range(3)))
        stepper.step("0.0", "1.0", "2.0")
        sessions = list(stepper.executor._sessions.values())
        failed = [s for s in sessions if s.failure is not None]
        assert len(failed) == 1
        with pytest.raises(GenerationFailed, match="not this one"):
            family.decode(failed)
        good = [s for s in sessions if s.failure is None]
        assert [frames.shape for frames in family.decode(good)] == [(1, 16, 16, 3)] * 2
    assert len(fake.asked) == 3


def test_the_card_says_what_only_the_upstream_knows() -> None:
    config = configuration.build({"model_path": "remote:openai/gpt-image-1"})
    card = load_card(config)
    assert card.name == "gpt-image-1"
    assert card.tasks == ("text-to-image", "image-to-image", "inpainting")
    assert "seed" in card.limits
    assert card.resolve({"width": 1536}).width == 1536
    for name, value in (("num_inference_steps", 20), ("guidance_scale", 3.0)):
        with pytest.raises(InvalidRequest, match="no effect"):
            card.resolve({name: value})
    assert not load_capabilities(config).sequence
    with pytest.raises(ConfigError, match="remote model gpt-image-1"):
        load_card(
            configuration.build({"model_path": "remote:openai/gpt-image-1", "ulysses_degree": 2})
        )


def test_a_warm_up_asks_nobody() -> None:
    card = load_card(configuration.build({"model_path": "remote:openai/gpt-image-1"}))
    assert warm_up(None, card, Mesh.single(cases.CPU)) == ()  # type: ignore[arg-type]


def header_only(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and no more."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    return b"\x89PNG\r\n\x1a\n" + chunk


@pytest.mark.parametrize("size", [(60_000, 60_000), (9000, 9000), (8, 8)])
def test_a_bomb_is_an_answer_that_cannot_be_used(size: tuple[int, int]) -> None:
    """It fails its sample; what is no `GenerationFailed` would end the rank."""
    with (
        upstream((200, openai_answer(header_only(*size)))) as fake,
        pytest.raises(GenerationFailed, match="cannot be used"),
    ):
        client(fake).picture(sample())


def test_an_answer_that_is_not_encoded_as_it_says_is_a_failure() -> None:
    with upstream((200, b"no gzip at all")) as fake:
        fake.headers = {"content-encoding": "gzip"}
        with pytest.raises(GenerationFailed, match="cannot be reached"):
            client(fake).picture(sample())


def test_an_answer_that_drips_is_given_up() -> None:
    """Every byte would begin a new timeout, and the watchdog would end the rank."""

    class Dripping:
        def iter_bytes(self) -> Iterator[bytes]:
            for _ in range(1000):
                time.sleep(0.01)
                yield b" "

    begun = time.monotonic()
    with pytest.raises(httpx2.ReadTimeout):
        _limited(Dripping(), begun + 0.1)  # type: ignore[arg-type]
    assert time.monotonic() - begun < 5
