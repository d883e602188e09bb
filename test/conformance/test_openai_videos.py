"""`client.videos` of the official SDK, every method: against a server of a model that takes
OpenAI's sizes and makes its videos at once, real ones where a test looks into them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx2
import msgspec
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from PIL import Image

from fakes import clips, stack
from fakes.engine_peer import CARD, file_of
from safelight.models.card import Range

# Every `videos` method of the SDK is marked deprecated; it is what clients have.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SORA = msgspec.structs.replace(
    CARD,
    name="sora-2",
    tasks=("text-to-video", "image-to-video"),
    max_images=1,
    defaults={**CARD.defaults, "width": 720, "height": 1280, "num_frames": 5, "fps": 1},
    width=Range(64, 1792, 16),
    height=Range(64, 1792, 16),
    num_frames=Range(1, 13, 4),
    max_tokens=1_000_000,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    with stack.running(tmp_path_factory.mktemp("sora"), card=SORA) as running:
        yield running


@contextmanager
def filming(server: stack.Stack) -> Iterator[None]:
    """Videos that are created meanwhile are real."""
    server.peer.makes = clips.made
    try:
        yield
    finally:
        server.peer.makes = file_of


@pytest.fixture(scope="module")
def strict(server: stack.Stack) -> Iterator[OpenAI]:
    """Refuses answers that are not exactly of the SDK's types."""
    with OpenAI(
        base_url=f"{server.base_url}/v1",
        api_key="any",
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client


@pytest.fixture(scope="module")
def finished(strict: OpenAI, server: stack.Stack) -> Any:
    with filming(server):
        return strict.videos.create_and_poll(
            prompt="a red circle", model="sora-2", seconds="4", size="720x1280"
        )


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (720, 1280), (200, 30, 60)).save(out, "png")
    return out.getvalue()


def test_create_and_poll(finished: Any) -> None:
    assert (finished.status, finished.progress, finished.error) == ("completed", 100, None)
    assert (finished.seconds, finished.size, finished.object) == ("4", "720x1280", "video")
    assert finished.expires_at is None and finished.remixed_from_video_id is None
    assert finished.completed_at >= finished.created_at


@pytest.mark.parametrize("size", ["720x1280", "1280x720", "1024x1792", "1792x1024"])
def test_create_takes_every_size_and_length_of_the_sdk(strict: OpenAI, size: Any) -> None:
    for seconds in ("4", "8", "12"):
        video = strict.videos.create(prompt="a red circle", size=size, seconds=cast(Any, seconds))
        assert (video.size, video.seconds) == (size, seconds)
        strict.videos.delete(video.id)


@pytest.mark.parametrize("kind", ["bytes", "named", "path", "brackets", "json"])
def test_create_with_a_first_picture(
    strict: OpenAI, server: stack.Stack, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "first.png").write_bytes(picture())
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    shapes: dict[str, dict[str, Any]] = {
        "bytes": {"input_reference": picture()},
        "named": {"input_reference": ("first.png", picture(), "image/png")},
        "path": {"input_reference": tmp_path / "first.png"},
        "brackets": {"extra_body": {"input_reference": {"image_url": url}}},
        "json": {
            "extra_body": {"input_reference": {"image_url": url}},
            "extra_headers": {"Content-Type": "application/json"},
        },
    }
    video = strict.videos.create(prompt="it moves", **shapes[kind])
    server.call(server.manager.wait(video.id))
    spec = next(spec for spec in server.peer.specs if spec.id == f"{video.id}.0")
    assert [one.size for one in spec.inputs.images] == [(720, 1280)]
    assert spec.task == "image-to-video"


def test_retrieve_list_and_delete(strict: OpenAI, finished: Any) -> None:
    assert strict.videos.retrieve(finished.id) == finished
    made = [strict.videos.create(prompt=f"circle {i}").id for i in range(3)]
    page = strict.videos.list(limit=2)
    assert ([v.id for v in page.data], page.has_more) == (made[:0:-1], True)
    assert page.last_id == made[1]
    ids = [video.id for video in strict.videos.list(limit=2)]
    assert ids[:3] == made[::-1] and finished.id in ids
    assert [video.id for video in strict.videos.list(limit=2, order="asc")] == ids[::-1]
    assert strict.videos.list(limit=0).data == []
    for one in made:
        assert strict.videos.delete(one).deleted
    with pytest.raises(NotFoundError):
        strict.videos.retrieve(made[0])


@pytest.mark.parametrize(
    ("variant", "kind", "form"),
    [("thumbnail", "image/webp", "WEBP"), ("spritesheet", "image/jpeg", "JPEG")],
)
def test_download_of_pictures(
    strict: OpenAI, finished: Any, variant: Any, kind: str, form: str
) -> None:
    content = strict.videos.download_content(finished.id, variant=variant)
    assert content.response.headers["content-type"] == kind
    with Image.open(io.BytesIO(content.read())) as image:
        image.load()
        assert image.format == form
    whole = strict.videos.download_content(finished.id, variant="video").read()
    assert whole == strict.videos.download_content(finished.id).read()


def named(source: str) -> dict[str, Any]:
    """How `videos.edit` and `videos.extend` can be given an id: the SDK declares `video={"id": …}`,
    but raises for it before anything is sent."""
    return {"video": b"", "extra_body": {"video": {"id": source}}}


def test_remix_and_edit(strict: OpenAI, finished: Any) -> None:
    for video in (
        strict.videos.remix(finished.id, prompt="a blue circle"),
        strict.videos.edit(prompt="a blue circle", **named(finished.id)),
    ):
        assert video.remixed_from_video_id == finished.id
        assert (video.prompt, video.size, video.seconds) == ("a blue circle", "720x1280", "4")
        assert strict.videos.poll(video.id).status == "completed"


def test_extend(strict: OpenAI, server: stack.Stack, finished: Any) -> None:
    with filming(server):
        video = strict.videos.extend(prompt="it goes on", seconds="8", **named(finished.id))
        done = strict.videos.poll(video.id)
    assert (done.status, done.seconds, done.size) == ("completed", "12", "720x1280")


def test_what_is_refused_is_a_bad_request(strict: OpenAI, finished: Any) -> None:
    upload = ("clip.mp4", b"\0\0\0\x18ftypmp42", "video/mp4")
    calls: dict[str, Any] = {
        "video": lambda: strict.videos.edit(prompt="x", video=upload),
        "seconds": lambda: strict.videos.extend(
            prompt="x", seconds=cast(Any, "20"), **named(finished.id)
        ),
        "variant": lambda: strict.videos.download_content(finished.id, variant=cast(Any, "poster")),
    }
    for param, call in calls.items():
        with pytest.raises(BadRequestError) as caught:
            call()
        assert caught.value.param == param
    characters: tuple[Any, ...] = (
        lambda: strict.videos.create_character(name="Ada", video=upload),
        lambda: strict.videos.get_character("char_1"),
    )
    for character in characters:
        with pytest.raises(BadRequestError) as refused:
            character()
        assert refused.value.code == "unsupported"


def test_content_by_ranges_and_head(server: stack.Stack, finished: Any) -> None:
    url = f"{server.base_url}/v1/videos/{finished.id}/content"
    whole = httpx2.get(url, headers={"accept": "application/binary"})
    head = httpx2.head(url)
    assert head.headers["content-length"] == str(len(whole.content))
    part = httpx2.get(url, headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
