"""What programs do with OpenAI's SDK for Python, of version 2 or later: `URL MODEL`.

Prints a line for everything that went well; an exception ends it.
"""

import base64
import io
import sys
import warnings
from pathlib import Path

import openai
from openai import BadRequestError, NotFoundError, OpenAI

warnings.simplefilter("ignore", DeprecationWarning)
PICTURE = Path("input.png")


def main(url: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    done(f"openai {openai.__version__}")
    model = client.models.list().data[0].id
    assert client.models.retrieve(model).id == model
    done("models")
    images(client, model)
    edits(client, model)
    streams(client, model)
    videos(client, model)
    errors(client)


def done(what: str) -> None:
    print(what, flush=True)


def images(client: OpenAI, model: str) -> None:
    made = client.images.generate(
        prompt="a cat", model=model, n=2, size="64x64", response_format="b64_json"
    )
    assert [base64.b64decode(one.b64_json)[:4] for one in made.data] == [b"\x89PNG"] * 2
    linked = client.images.generate(
        prompt="a cat", response_format="url", extra_body={"seed": 5, "num_inference_steps": 2}
    )
    assert linked.data[0].url.startswith(url_of(client))
    done("images.generate")


def url_of(client: OpenAI) -> str:
    return str(client.base_url).removesuffix("/v1/")


def edits(client: OpenAI, model: str) -> None:
    data = PICTURE.read_bytes()
    for image in (PICTURE, [PICTURE], data, io.BytesIO(data), ("a.png", data, "image/png")):
        made = client.images.edit(image=image, prompt="a dog", model=model, size="64x64")
        assert made.data[0].b64_json
    masked = client.images.edit(image=PICTURE, mask=Path("mask.png"), prompt="a dog")
    assert masked.data[0].b64_json
    done("images.edit")
    varied = client.images.create_variation(image=PICTURE, model=model)
    assert varied.data[0].b64_json or varied.data[0].url
    done("images.create_variation")


def streams(client: OpenAI, model: str) -> None:
    events = list(client.images.generate(prompt="a cat", model=model, stream=True))
    assert events[-1].type == "image_generation.completed"
    assert base64.b64decode(events[-1].b64_json)[:4] == b"\x89PNG"
    done("images.generate(stream=True)")


def videos(client: OpenAI, model: str) -> None:
    video = client.videos.create_and_poll(
        prompt="a cat", model=model, size="64x64", seconds="1", poll_interval_ms=50
    )
    assert (video.status, video.progress) == ("completed", 100)
    assert client.videos.download_content(video.id).read()[4:8] == b"ftyp"
    assert client.videos.retrieve(video.id).id == video.id
    done("videos.create_and_poll, download_content, retrieve")
    for reference in (PICTURE, PICTURE.read_bytes()):
        client.videos.create(prompt="a cat", input_reference=reference)
    remixed = client.videos.remix(video.id, prompt="a dog")
    assert client.videos.poll(remixed.id, poll_interval_ms=50).status == "completed"
    assert len([one.id for one in client.videos.list(limit=1)]) == 4
    assert client.videos.delete(remixed.id).deleted
    done("videos.create with a picture, remix, list, delete")


def errors(client: OpenAI) -> None:
    try:
        client.images.generate(prompt="a cat", size="1x1")
        raise AssertionError("a picture of one pixel")
    except BadRequestError as failure:
        assert failure.param == "size"
    try:
        client.videos.retrieve("video_none")
        raise AssertionError("a video that is not there")
    except NotFoundError as failure:
        assert failure.code
    done("errors")


main(sys.argv[1])
