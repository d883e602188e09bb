"""The official OpenAI SDK for Python against `live_server` (of `test/conftest.py`)."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx2
import numpy as np
import pytest
import torch
from openai import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    OpenAI,
)
from PIL import Image

from fakes import probe
from safelight.builtin.training import world
from safelight.builtin.training.judge import classify

# Every `videos` method of the SDK is marked deprecated; it is what clients have.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def client(live_server: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live_server.base_url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def strict(live_server: Any) -> Iterator[OpenAI]:
    """Refuses answers that are not exactly of the SDK's types."""
    with OpenAI(
        base_url=f"{live_server.base_url}/v1/",
        api_key="any",
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client


@pytest.fixture(scope="module")
def model(client: OpenAI) -> str:
    (only,) = client.models.list().data
    return only.id


@pytest.fixture(scope="module")
def finished(client: OpenAI, model: str) -> Any:
    """A video that was created and polled to its end."""
    return client.videos.create_and_poll(
        prompt="a red circle moving left on a black background",
        model=model,
        seconds="1",  # type: ignore[arg-type]  # the SDK lists Sora's lengths
        extra_body={"seed": 3, "num_inference_steps": 2},
    )


def test_create_answers_at_once_with_a_job(client: OpenAI, model: str) -> None:
    video = client.videos.create(prompt="a blue square", extra_body={"num_inference_steps": 2})
    assert video.object == "video"
    assert video.id.startswith("video_")
    assert video.model == model
    assert video.status in ("queued", "in_progress")
    assert type(video.progress) is int
    assert isinstance(video.seconds, str)
    assert video.prompt == "a blue square"
    assert video.error is None and video.completed_at is None
    assert video._request_id
    client.videos.delete(video.id)


def test_create_and_poll_ends_completed(finished: Any) -> None:
    assert (finished.status, finished.progress, finished.error) == ("completed", 100, None)
    assert finished.seconds == "1"
    assert finished.completed_at >= finished.created_at
    assert finished.seed == 3  # an extension
    assert finished.num_inference_steps == 2


def as_clip(frames: Any) -> torch.Tensor:
    """uint8 [T, H, W, 3] as the judge takes it: [3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(frames.copy()).permute(3, 0, 1, 2) / 127.5 - 1


def test_the_clip_that_arrives_is_the_clip_that_was_asked_for(
    client: OpenAI, tmp_path: Path
) -> None:
    """Size, frames and rate by ffmpeg's word; colour, shape and motion by the judge's."""
    scene = world.all_held_out_scenes()[3]
    video = client.videos.create(
        prompt=world.canonical_caption(scene), size=cast(Any, "64x64"), extra_body={"seed": 5}
    )
    assert client.videos.poll(video.id).status == "completed"
    path = tmp_path / "clip.mp4"
    client.videos.download_content(video.id).write_to_file(path)
    stream = probe.video(path)
    assert (stream.codec, stream.width, stream.height, stream.fps) == ("h264", 64, 64, 8.0)
    frames = probe.decode(path)
    assert frames.shape == (9, 64, 64, 3)
    assert classify(as_clip(frames)) == scene


def test_the_picture_that_arrives_is_the_picture_that_was_asked_for(
    client: OpenAI, tmp_path: Path
) -> None:
    scene = world.all_held_out_scenes()[7]
    made = client.images.generate(
        prompt=world.canonical_caption(scene),
        response_format="b64_json",
        extra_body={"seed": 6},
    )
    assert made.data is not None
    with Image.open(io.BytesIO(base64.b64decode(str(made.data[0].b64_json)))) as picture:
        assert (picture.format, picture.size) == ("PNG", (64, 64))
        judged = classify(as_clip(np.asarray(picture)[None]))
    assert judged._replace(motion=scene.motion) == scene  # one frame does not move


def test_download_content(client: OpenAI, finished: Any) -> None:
    content = client.videos.download_content(finished.id)
    data = content.read()
    assert content.response.headers["content-type"] == "video/mp4"
    assert data[4:8] == b"ftyp"
    assert client.videos.download_content(finished.id, variant="video").read() == data
    with client.videos.with_streaming_response.download_content(finished.id) as streamed:
        assert b"".join(streamed.iter_bytes()) == data


def test_download_of_pictures(client: OpenAI, finished: Any) -> None:
    for variant, kind in (("thumbnail", "WEBP"), ("spritesheet", "JPEG")):
        data = client.videos.download_content(finished.id, variant=cast(Any, variant)).read()
        assert opened(data).format == kind
    with pytest.raises(BadRequestError) as caught:
        client.videos.download_content(finished.id, variant=cast(Any, "poster"))
    assert caught.value.param == "variant"


def test_the_same_seed_makes_the_same_video(client: OpenAI, finished: Any, model: str) -> None:
    again = client.videos.create_and_poll(
        prompt=finished.prompt,
        model=model,
        extra_body={"num_frames": finished.num_frames, "seed": 3, "num_inference_steps": 2},
    )
    first, second = (client.videos.download_content(v.id).read() for v in (finished, again))
    assert first == second


def test_retrieve(client: OpenAI, finished: Any) -> None:
    assert client.videos.retrieve(finished.id) == finished


def test_lists_are_paged_through(client: OpenAI, finished: Any) -> None:
    made = [
        client.videos.create(prompt="a green circle", extra_body={"num_inference_steps": 1}).id
        for _ in range(3)
    ]
    newest = client.videos.list(limit=2)
    assert [video.id for video in newest.data] == [made[2], made[1]]
    assert newest.has_more
    paged = [video.id for video in client.videos.list(limit=2)]  # follows the pages
    assert paged[:3] == made[::-1]
    assert finished.id in paged
    assert len(set(paged)) == len(paged)
    upwards = [video.id for video in client.videos.list(limit=3, order="asc")]
    assert upwards == paged[::-1]
    for job in made:
        client.videos.delete(job)


def test_delete(client: OpenAI, strict: OpenAI) -> None:
    video = client.videos.create(prompt="a yellow square")
    deleted = strict.videos.delete(video.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (video.id, "video.deleted", True)
    calls: list[Callable[[str], object]] = [
        client.videos.retrieve,
        client.videos.delete,
        client.videos.download_content,
    ]
    for call in calls:
        with pytest.raises(NotFoundError) as caught:
            call(video.id)
        assert caught.value.code == "not_found"


# ------------------------------------------------------------------------------------- images


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def generate(client: OpenAI, model: str, **options: Any) -> Any:
    return client.images.generate(
        prompt="a red circle on a black background",
        model=model,
        extra_body={"num_inference_steps": 2, "seed": 1, **options.pop("extra_body", {})},
        **options,
    )


def test_images_both_ways(strict: OpenAI, model: str, live_server: Any) -> None:
    answer = generate(strict, model, n=2, size="64x64", user="me", quality="high")
    assert (answer.size, answer.output_format, answer.usage) == ("64x64", "png", None)
    assert answer.safety_identifier == "me"
    assert len(answer.data) == 2
    assert answer.seeds == [1, 2]
    for image in answer.data:
        data = base64.b64decode(image.b64_json)
        assert opened(data).size == (64, 64)
        assert image.url.startswith(live_server.base_url)
        fetched = httpx2.get(image.url)
        assert fetched.headers["content-type"] == "image/png"
        assert fetched.content == data


@pytest.mark.parametrize("asked", ["b64_json", "url"])
def test_images_one_way(strict: OpenAI, model: str, asked: str) -> None:
    (image,) = generate(strict, model, response_format=asked).data
    assert (image.b64_json is None, image.url is None) == (asked == "url", asked == "b64_json")


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_image_formats(strict: OpenAI, model: str, kind: str) -> None:
    answer = generate(strict, model, output_format=kind, output_compression=70)
    assert answer.output_format == kind
    assert opened(base64.b64decode(answer.data[0].b64_json)).format == kind.upper()


def test_null_options_are_left_out(strict: OpenAI, model: str) -> None:
    assert len(generate(strict, model, n=None, size=None, response_format=None).data) == 1


# ------------------------------------------------------------------------------------- models


def test_models(strict: OpenAI, model: str) -> None:
    assert [one.id for one in strict.models.list()] == [model]
    one = strict.models.retrieve(model)
    assert (one.id, one.object) == (model, "model")
    with pytest.raises(NotFoundError) as caught:
        strict.models.retrieve("black-forest-labs/none")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"size": "10x10"}, "size"),
        ({"size": "large"}, "size"),
        ({"n": 999}, "n"),
        ({"output_format": "svg"}, "output_format"),
        ({"extra_body": {"num_inference_steps": 0}}, "num_inference_steps"),
        ({"extra_body": {"guidance_scale": "much"}}, "guidance_scale"),
    ],
)
def test_bad_image_requests_name_the_field(
    client: OpenAI, model: str, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        generate(client, model, **options)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code
    assert caught.value.request_id


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"seconds": "10000"}, "seconds"),
        ({"size": "1x1"}, "size"),
        ({"extra_body": {"num_frames": 0}}, "num_frames"),
        ({"input_reference": b"\x89PNG"}, "input_reference"),
    ],
)
def test_bad_video_requests_name_the_field(
    client: OpenAI, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.videos.create(prompt="x", **options)
    assert caught.value.param == param


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    for call in (client.videos.create, client.images.generate):
        with pytest.raises(NotFoundError) as caught:
            call(prompt="x", model="sora-2")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_unknown_routes_are_understood_too(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.chat.completions.create(model="x", messages=[])
    assert caught.value.code == "not_found"
    with pytest.raises(APIStatusError) as wrong_method:
        client.put("/videos", cast_to=object)
    assert wrong_method.value.status_code == 405
    assert not isinstance(wrong_method.value, AuthenticationError)
