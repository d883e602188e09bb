"""Input pictures over HTTP: every way to send them, what is made of them, what is left of them."""

from __future__ import annotations

import asyncio
import base64
import functools
import gc
import io
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
import pytest
from PIL import Image

from fakes import stack
from fakes.engine_peer import CARD
from safelight.config import ServerConfig
from safelight.entrypoint import inputs
from safelight.entrypoint.body import Body
from safelight.errors import ModelNotFound, Overloaded
from safelight.manager.building import choose
from safelight.manager.media import Decoded, Media, decode
from safelight.models.card import Range

EDIT, VIDEO = "/v1/images/edits", "/v1/videos"
EDITOR = msgspec.structs.replace(
    CARD,
    tasks=("text-to-image", "image-to-image", "inpainting", "text-to-video", "image-to-video"),
    parameters=("strength",),
    max_images=2,
    defaults={**CARD.defaults, "strength": 0.5},
    width=Range(16, 256, 16),
    height=Range(16, 256, 16),
)
SIZE = (8, 6)


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    data = tmp_path_factory.mktemp("data")
    with stack.running(data, card=EDITOR, max_input_pixels=1000) as running:
        yield running


@pytest.fixture
def client(editor: stack.Stack) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=editor.base_url, timeout=30) as client:
        yield client


def png(seed: int = 0, mode: str = "RGB", size: tuple[int, int] = SIZE) -> bytes:
    channels = {"RGB": 3, "RGBA": 4}[mode]
    shape = (size[1], size[0], channels)
    pixels = np.random.default_rng(seed).integers(0, 255, shape, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def pixels(data: bytes) -> bytes:
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_what_waits_to_be_decoded_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies are read faster than pictures are decoded, and all would be in memory."""
    server = ServerConfig(max_body_bytes=1024, fetch_max_bytes=1024)
    go_on = threading.Event()

    def decoded(sources: Any, max_pixels: int) -> Media:
        assert go_on.wait(60)
        return Media()

    async def burst() -> None:
        many = [Body({}, strict=True, files={"image": [bytes(1024)]}) for _ in range(10)]
        waiting = [asyncio.create_task(inputs.media_of(one, server)) for one in many[:8]]
        await asyncio.sleep(0)
        try:
            with pytest.raises(Overloaded):
                await inputs.media_of(many[8], server)
        finally:
            go_on.set()
        await asyncio.gather(*waiting)
        await inputs.media_of(many[9], server)

    monkeypatch.setattr(inputs, "_decoded", decoded)
    asyncio.run(burst())


class Seen:
    """The newest sample the scheduler got."""

    def __init__(self, editor: stack.Stack) -> None:
        self.spec = editor.peer.specs[-1]
        self.tasks = self.spec.task

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [picture.size for picture in self.spec.inputs.images]


PICTURE = png(1)
WAYS: list[dict[str, Any]] = [
    {"data": {"prompt": "x"}, "files": {"image": ("a.png", PICTURE, "image/png")}},
    {"data": {"prompt": "x"}, "files": [("image[]", ("a.png", PICTURE, "image/png"))]},
    {"json": {"prompt": "x", "image": f"data:image/png;base64,{text(PICTURE)}"}},
    {"json": {"prompt": "x", "image": text(PICTURE)}},
    {"json": {"prompt": "x", "images": [{"image_url": f"data:;base64,{text(PICTURE)}"}]}},
    {"json": {"prompt": "x", "image_url": {"url": f"data:;base64,{text(PICTURE)}"}}},
    {"json": {"prompt": "x", "url": [f"data:;base64,{text(PICTURE)}"]}},
    {"data": {"prompt": "x", "images[][image_url]": f"data:;base64,{text(PICTURE)}"}},
    {"json": {"prompt": "x", "image": base64.encodebytes(PICTURE).decode()}},
]


@pytest.mark.parametrize("body", WAYS)
def test_every_way_to_send_a_picture(
    client: httpx2.Client, editor: stack.Stack, body: dict[str, Any]
) -> None:
    assert client.post(EDIT, **body).status_code == 200
    seen = Seen(editor)
    assert seen.spec.task == "image-to-image"
    assert seen.sizes == [SIZE]


def test_ranks_find_the_pixels_and_they_go_with_the_job(manual_editor: stack.Stack) -> None:
    with httpx2.Client(base_url=manual_editor.base_url, timeout=30) as client:
        answer = client.post(
            VIDEO, data={"prompt": "x"}, files={"input_reference": ("a.png", PICTURE)}
        )
        assert answer.status_code == 200, answer.text
        (spec,) = manual_editor.call(manual_editor.peer.submitted())
        (picture,) = spec.inputs.images
        assert Path(picture.path).read_bytes() == pixels(PICTURE)
        assert client.delete(f"{VIDEO}/{answer.json()['id']}").status_code == 200
    assert not Path(picture.path).parent.exists()


@pytest.fixture
def manual_editor(tmp_path: Path) -> Iterator[stack.Stack]:
    with stack.running(tmp_path / "data", automatic=False, card=EDITOR) as running:
        yield running


def test_pictures_of_a_finished_job_are_not_kept(
    client: httpx2.Client, editor: stack.Stack
) -> None:
    answer = client.post(EDIT, json={"prompt": "x", "image": text(PICTURE)})
    (picture,) = Seen(editor).spec.inputs.images
    assert not Path(picture.path).exists()
    assert client.get(f"/v1/images/{answer.json()['id']}/content").status_code == 200


def test_pixels_do_not_wait_in_memory_with_the_client(manual_editor: stack.Stack) -> None:
    """They are on disk; hundreds of clients may wait for their pictures."""

    def ask() -> None:
        with httpx2.Client(base_url=manual_editor.base_url, timeout=30) as client:
            client.post(EDIT, data={"prompt": "x"}, files={"image": ("a.png", PICTURE)})

    waiting = threading.Thread(target=ask)
    waiting.start()
    (spec,) = manual_editor.call(manual_editor.peer.submitted())
    manual_editor.call(asyncio.sleep(0.1))
    gc.collect()
    held = [one for one in gc.get_objects() if type(one) in (Decoded, Body)]
    manual_editor.call(manual_editor.peer.fail(spec))
    waiting.join()
    assert [type(one) for one in held] == [Body]
    assert held[0].files == {}


def test_an_unfinished_job_finds_its_pictures_after_a_restart(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with (
        stack.running(data, automatic=False, card=EDITOR) as before,
        httpx2.Client(base_url=before.base_url, timeout=30) as client,
    ):
        body = {"prompt": "x", "input_reference": text(PICTURE)}
        assert client.post(VIDEO, json=body).status_code == 200
    with stack.running(data, automatic=False, card=EDITOR) as after:
        (spec,) = after.call(after.peer.submitted())
        (picture,) = spec.inputs.images
        assert Path(picture.path).read_bytes() == pixels(PICTURE)


def test_a_picture_makes_a_video_where_one_is_asked_for(
    client: httpx2.Client, editor: stack.Stack
) -> None:
    body = {"prompt": "x", "input_reference": text(PICTURE)}
    job = client.post(VIDEO, json=body).json()["id"]
    editor.call(editor.manager.wait(job))
    assert Seen(editor).spec.task == "image-to-video"


@pytest.mark.parametrize("own_mask", [True, False])
def test_a_mask_or_transparency_means_inpainting(
    client: httpx2.Client, editor: stack.Stack, own_mask: bool
) -> None:
    image = png(2, "RGB" if own_mask else "RGBA")
    files = {"image": ("a.png", image)} | ({"mask": ("m.png", png(3, "RGBA"))} if own_mask else {})
    assert client.post(EDIT, data={"prompt": "x"}, files=files).status_code == 200
    seen = Seen(editor)
    assert seen.spec.task == "inpainting"
    assert seen.spec.inputs.mask is not None
    assert seen.spec.inputs.mask.size == SIZE
    assert seen.spec.delivery.outside == seen.spec.inputs


def test_two_pictures_keep_their_order(client: httpx2.Client, editor: stack.Stack) -> None:
    files = [
        ("image[]", ("a.png", png(4, size=(8, 6)))),
        ("image[]", ("b.png", png(5, size=(4, 4)))),
    ]
    assert client.post(EDIT, data={"prompt": "x"}, files=files).status_code == 200
    assert Seen(editor).sizes == [(8, 6), (4, 4)]


@pytest.mark.parametrize(
    ("route", "fields", "param", "said"),
    [
        (EDIT, {}, "image", "missing"),
        (EDIT, {"image": "http://10.0.0.1/a.png"}, "image", "--fetch-urls switches it on"),
        (EDIT, {"images": [{"image_url": "HTTPS://a.b/c.png"}]}, "images", "does not fetch"),
        (EDIT, {"images": [{"file_id": "file-1"}]}, "images", "keeps no uploaded files"),
        (EDIT, {"image": text(PICTURE), "mask": {"file_id": "file-1"}}, "mask", "no uploaded"),
        (EDIT, {"url": "image_url.jpg"}, "url", "no URL that begins with http"),
        (EDIT, {"image": text(PICTURE), "mask": "x", "mask_image": "x"}, "mask", "neither"),
        (EDIT, {"image": "%%%"}, "image", "neither"),
        (EDIT, {"image": 7}, "image", "not a picture"),
        (EDIT, {"image": text(b"<svg/>")}, "image", "not a PNG"),
        (EDIT, {"image": text(PICTURE[:60])}, "image", "broken"),
        (EDIT, {"image": text(png(size=(40, 40)))}, "image", "1600 pixels"),
        (EDIT, {"images": [text(PICTURE)] * 3}, "image", "at most 2"),
        (EDIT, {"images": ["not decoded"] * 33}, "images", "33 input pictures"),
        (EDIT, {"image": text(PICTURE), "mask": text(png(size=(4, 4)))}, "mask", "4x4"),
        (EDIT, {"image": text(PICTURE), "strength": 3}, "strength", "got 3"),
        (VIDEO, {"mask": text(PICTURE)}, "mask", "without an image"),
        (
            VIDEO,
            {"input_reference": text(PICTURE), "mask": text(PICTURE)},
            "model",
            "cannot make video from a mask",
        ),
        (EDIT, {"image": text(PICTURE), "size": "100x64"}, "size", "96 or 112"),
        (EDIT, {"image": text(PICTURE), "seed": [1, 2]}, "seed", "2 seeds for 1"),
    ],
)
def test_what_is_wrong_is_named(
    client: httpx2.Client, route: str, fields: dict[str, Any], param: str, said: str
) -> None:
    answer = client.post(route, json={"prompt": "x", **fields})
    assert answer.status_code == 400, answer.text
    failure = answer.json()["error"]
    assert failure["param"] == param
    assert said in failure["message"]


def test_a_file_that_would_be_ignored_is_refused(client: httpx2.Client) -> None:
    files = {"image": ("a.png", PICTURE), "control_image": ("c.png", PICTURE)}
    answer = client.post(EDIT, data={"prompt": "x"}, files=files)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "control_image"


def test_without_a_name_the_first_model_that_can_do_it_is_taken() -> None:
    cards = {"plain": CARD, "editor": EDITOR}
    picture = decode([("image", PICTURE)], None, max_pixels=1000)
    assert choose(cards, None, "image") is CARD
    assert choose(cards, None, "image", picture) is EDITOR
    assert choose(cards, None, "video", picture) is EDITOR
    assert choose({"plain": CARD}, None, "image", picture) is CARD  # which says why it cannot
    with pytest.raises(ModelNotFound, match="'plain', 'editor'"):
        choose(cards, "other")


def test_sizes_are_rounded_on_request(client: httpx2.Client, editor: stack.Stack) -> None:
    body = {"prompt": "x", "image": text(PICTURE), "size": "100x66", "round_size": True}
    assert client.post(EDIT, json=body).json()["size"] == "96x64"
    sampling = Seen(editor).spec.sampling
    assert (sampling.width, sampling.height) == (96, 64)


def test_seeds_may_be_listed(client: httpx2.Client, editor: stack.Stack) -> None:
    answer = client.post("/v1/images/generations", json={"prompt": "x", "n": 3, "seed": [9, 2, 9]})
    assert answer.json()["seeds"] == [9, 2, 9]
    assert [spec.sampling.seed for spec in editor.peer.specs[-3:]] == [9, 2, 9]


def test_what_is_no_url_is_ignored_beside_an_upload(
    client: httpx2.Client, editor: stack.Stack
) -> None:
    """As a manual of SGLang Diffusion has it."""
    fields = {"prompt": "x", "url": "image_url.jpg", "size": "64x64"}
    answer = client.post(EDIT, data=fields, files={"image": ("a.png", PICTURE)})
    assert answer.status_code == 200, answer.text
    assert Seen(editor).sizes == [SIZE]
    assert answer.json()["warnings"] == ["'url' is no URL and was ignored: an upload is there."]


def test_vllm_omnis_name_of_a_mask(client: httpx2.Client, editor: stack.Stack) -> None:
    files = {"image": ("a.png", PICTURE), "mask_image": ("m.png", png(3, "RGBA"))}
    assert client.post(EDIT, data={"prompt": "x"}, files=files).status_code == 200
    assert Seen(editor).spec.task == "inpainting"


def test_a_markup_is_refused(client: httpx2.Client) -> None:
    files = {"image": ("a.png", PICTURE), "markup": ("m.png", png(3, "RGBA"))}
    answer = client.post(EDIT, data={"prompt": "x"}, files=files)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "markup")


def test_variations_need_a_picture_and_no_prompt(
    client: httpx2.Client, editor: stack.Stack
) -> None:
    """LiteLLM sends nothing but the picture."""
    answer = client.post("/v1/images/variations", files={"image": ("a.png", PICTURE)})
    assert answer.status_code == 200, answer.text
    seen = Seen(editor)
    assert (seen.spec.task, seen.spec.prompt) == ("image-to-image", "")
    assert seen.spec.sampling.strength == 0.5
    fields = {"n": "2", "size": "64x64", "response_format": "url", "user": "me"}
    some = client.post("/v1/images/variations", data=fields, files={"image": ("a.png", PICTURE)})
    assert [list(image) for image in some.json()["data"]] == [["url"]] * 2
    without = client.post("/v1/images/variations", data={"n": "1"})
    assert (without.status_code, without.json()["error"]["param"]) == (400, "image")
    bare = client.post(EDIT, files={"image": ("a.png", PICTURE)})
    assert (bare.status_code, bare.json()["error"]["param"]) == (400, "prompt")


# ------------------------------------------------------------------------------------------- URLs


@pytest.fixture
def fetcher(tmp_path: Path) -> Iterator[httpx2.Client]:
    """A client of a server that fetches, from this machine too, at most 5000 bytes."""
    fetching = {"fetch_urls": True, "fetch_private": True, "fetch_max_bytes": 5000}
    with (
        stack.running(tmp_path / "data", card=EDITOR, **fetching) as running,
        httpx2.Client(base_url=running.base_url, timeout=30) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a web server with pictures."""
    root = tmp_path_factory.mktemp("site")
    (root / "a.png").write_bytes(PICTURE)
    (root / "large.png").write_bytes(PICTURE + b"\0" * 4900)
    (root / "page.html").write_text("secret")
    handler = functools.partial(Quiet, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Not into the tests' output."""


@pytest.mark.parametrize(
    "body",
    [
        {"data": {"prompt": "x", "url": "{}/a.png"}},
        {"data": {"prompt": "x", "url[]": "{}/a.png"}},
        {"data": {"prompt": "x", "image": "{}/a.png"}},
        {"json": {"prompt": "x", "images": [{"image_url": "{}/a.png"}]}},
        {"json": {"prompt": "x", "image_urls": ["{}/a.png"]}},
    ],
)
def test_pictures_are_fetched(fetcher: httpx2.Client, site: str, body: dict[str, Any]) -> None:
    answer = fetcher.post(EDIT, **json.loads(json.dumps(body).replace("{}", site)))
    assert answer.status_code == 200, answer.text


def test_a_mask_is_fetched_and_so_is_a_videos_picture(fetcher: httpx2.Client, site: str) -> None:
    fields = {"prompt": "x", "image": f"{site}/a.png", "mask": {"image_url": f"{site}/a.png"}}
    assert fetcher.post(EDIT, json=fields).status_code == 200
    fields = {"prompt": "x", "reference_url": f"{site}/a.png"}
    assert fetcher.post(VIDEO, json=fields).status_code == 200


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (["{}/missing.png"], "did not send it"),
        (["{}/page.html"], "not a PNG"),
        (["{}/large.png"], "larger than"),
        # Their sum counts.
        (["{}/a.png"] * (5000 // len(PICTURE) + 1), "larger than"),
        (["http://127.0.0.1:1/a.png"], "the connection failed"),
        (["http://0177.0.0.1/a.png"], "cannot be read"),
    ],
)
def test_what_cannot_be_fetched(
    fetcher: httpx2.Client, site: str, images: list[str], said: str
) -> None:
    fields = {"prompt": "x", "images": [url.replace("{}", site) for url in images]}
    answer = fetcher.post(EDIT, json=fields)
    assert answer.status_code == 400, answer.text
    failure = answer.json()["error"]
    assert failure["param"] == "images" and said in failure["message"]
    assert "secret" not in failure["message"]


def test_inside_is_out_of_reach_unless_it_is_switched_on(tmp_path: Path, site: str) -> None:
    with (
        stack.running(tmp_path / "data", card=EDITOR, fetch_urls=True) as running,
        httpx2.Client(base_url=running.base_url, timeout=30) as client,
    ):
        for url in (f"{site}/a.png", "http://127.0.0.1/a.png", "http://localhost/a.png"):
            answer = client.post(EDIT, json={"prompt": "x", "image": url})
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "invalid_url"


def test_a_model_that_takes_no_picture_says_so(tmp_path: Path) -> None:
    with (
        stack.running(tmp_path / "data") as plain,
        httpx2.Client(base_url=plain.base_url, timeout=30) as client,
    ):
        answer = client.post(EDIT, json={"prompt": "x", "image": text(PICTURE)})
    assert answer.status_code == 400
    assert "cannot make image from an input image" in answer.json()["error"]["message"]
