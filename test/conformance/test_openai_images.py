"""Images with OpenAI's SDK for Python: against a real server of a tiny random model that edits,
and, where only the protocol counts, against one whose engine is played."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
import pytest
from openai import AzureOpenAI, BadRequestError, NotFoundError, OpenAI
from PIL import Image

from fakes import stack
from fakes.cases import Checkpoints
from fakes.engine_peer import CARD
from fakes.pipelines import CASES
from fakes.server import Server, serving

# Variations are marked deprecated in the SDK; clients have them still.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

EDITOR = msgspec.structs.replace(
    CARD,
    tasks=("text-to-image", "image-to-image", "inpainting"),
    parameters=(*CARD.parameters, "strength"),
    max_images=3,
    defaults={**CARD.defaults, "strength": 0.5},
)


def png(seed: int = 0, alpha: np.ndarray | None = None) -> bytes:
    """A smooth picture of 64 x 64 pixels, transparent where `alpha` [64, 64] is 0."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)
    if alpha is not None:
        picture.putalpha(Image.fromarray(alpha))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3]"""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def made(answer: Any) -> list[bytes]:
    return [base64.b64decode(image.b64_json) for image in answer.data]


def client_of(base_url: str, **options: Any) -> OpenAI:
    options = {"api_key": "any", "max_retries": 0, **options}
    return OpenAI(base_url=f"{base_url}/v1", _strict_response_validation=True, **options)


# ------------------------------------------------------------------------------------- the protocol


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    with stack.running(tmp_path_factory.mktemp("data"), card=EDITOR) as running:
        yield running


@pytest.fixture
def client(played: stack.Stack) -> Iterator[OpenAI]:
    with client_of(played.base_url) as client:
        yield client


def seen(played: stack.Stack) -> Any:
    """The newest sample that the engine was given."""
    return played.peer.specs[-1]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_edit_of_one_picture_or_a_list(client: OpenAI, played: stack.Stack, count: int) -> None:
    """One is sent as `image`, a list, even of one, as `image[]`."""
    image: Any = [png(seed) for seed in range(count)] if count else png()
    answer = client.images.edit(image=image, prompt="x", n=2, size="64x64", quality="auto")  # type: ignore[arg-type]
    assert len(made(answer)) == 2 and answer.size == "64x64"
    assert (answer.background, answer.quality, answer.usage) == ("opaque", None, None)
    spec = seen(played)
    assert (spec.task, len(spec.inputs.images)) == ("image-to-image", max(1, count))


def test_a_mask_and_everything_else_the_sdk_knows(client: OpenAI, played: stack.Stack) -> None:
    alpha = np.full((64, 64), 255, np.uint8)
    alpha[16:48, 16:48] = 0
    answer = client.images.edit(
        image=png(),
        mask=png(1, alpha),
        prompt="x",
        background="opaque",
        input_fidelity="high",
        output_format="jpeg",
        output_compression=40,
        response_format="b64_json",
        user="me",
        extra_body={"seed": 7, "strength": 0.9},
    )
    assert (answer.output_format, answer.safety_identifier) == ("jpeg", "me")
    assert answer.data is not None and answer.data[0].url is None
    spec = seen(played)
    assert (spec.task, spec.delivery.compression) == ("inpainting", 40)
    assert (spec.sampling.seed, spec.sampling.strength) == (7, 0.9)


def test_a_path_and_an_open_file(client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "a picture.png"
    path.write_bytes(png())
    assert made(client.images.edit(image=path, prompt="x"))
    with path.open("rb") as file:
        assert made(client.images.edit(image=file, prompt="x"))


def test_variations(client: OpenAI, played: stack.Stack) -> None:
    answer = client.images.create_variation(image=png(), n=2, response_format="url")
    assert answer.data is not None
    for image in answer.data:
        assert image.url is not None
        assert Image.open(io.BytesIO(httpx2.get(image.url).content)).size == (64, 64)
    assert (seen(played).task, seen(played).prompt) == ("image-to-image", "")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"background": "transparent"}, "background"),
        ({"output_format": "gif"}, "output_format"),
        ({"extra_body": {"images": [{"file_id": "file-1"}]}}, "images"),
        ({"extra_body": {"markup": "x"}}, "markup"),
        ({"mask": b"<svg/>"}, "mask"),
        ({"size": "63x64"}, "size"),
    ],
)
def test_what_cannot_be_done_is_said(client: OpenAI, options: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.images.edit(image=png(), prompt="x", **options)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
    assert caught.value.code


def test_a_job_instead_of_an_answer(client: OpenAI, played: stack.Stack) -> None:
    with OpenAI(base_url=f"{played.base_url}/v1", api_key="any", max_retries=0) as lenient:
        accepted: Any = lenient.images.generate(prompt="x", n=2, extra_body={"async": True})
    job: Any = client.get(
        f"/images/{accepted.id}", cast_to=object, options={"headers": {"prefer": "wait=20"}}
    )
    assert (job["status"], len(job["data"])) == ("completed", 2)
    assert job["id"] in [one["id"] for one in client.get("/images", cast_to=dict)["data"]]
    assert client.delete(f"/images/{accepted.id}", cast_to=dict)["deleted"] is True
    with pytest.raises(NotFoundError):
        client.get(f"/images/{accepted.id}", cast_to=object)


def test_azures_client(played: stack.Stack) -> None:
    options: dict[str, Any] = {"api_key": "any", "api_version": "2026-01-01", "max_retries": 0}
    with AzureOpenAI(azure_endpoint=played.base_url, **options) as client:
        answer: Any = client.images.generate(prompt="x", model="lab/tiny")
        assert answer.model == "lab/tiny"
    with AzureOpenAI(
        azure_endpoint=played.base_url, azure_deployment="lab/tiny", **options
    ) as client:
        assert made(client.images.edit(image=png(), prompt="x"))


def test_azures_client_has_its_own_header(tmp_path: Path) -> None:
    options: dict[str, Any] = {"api_version": "2026-01-01", "max_retries": 0}
    with (
        stack.running(tmp_path / "data", api_key="secret") as running,
        AzureOpenAI(azure_endpoint=running.base_url, api_key="secret", **options) as client,
    ):
        assert made(client.images.generate(prompt="x", model="lab/tiny"))


# ----------------------------------------------------------------------------------- a model's work


@pytest.fixture(scope="module")
def editing(tmp_path_factory: pytest.TempPathFactory, checkpoints: Checkpoints) -> Iterator[Server]:
    """A real server of a tiny random model that makes pictures from text and from pictures."""
    case = next(one for one in CASES if (one.name, one.task) == ("SDXL", "inpainting"))
    data = tmp_path_factory.mktemp("images") / "data"
    with serving(data, "--model-path", str(checkpoints.of(case))) as server:
        yield server


@pytest.fixture
def editor(editing: Server) -> Iterator[OpenAI]:
    with client_of(editing.base_url, timeout=120) as client:
        yield client


STEPS = {"num_inference_steps": 3, "seed": 5, "width": 64, "height": 64}


def test_an_edit_changes_only_what_is_transparent_in_the_mask(editor: OpenAI) -> None:
    alpha = np.full((64, 64), 255, np.uint8)
    alpha[16:48, 24:56] = 0
    original = pixels(png(3))
    (data,) = made(
        editor.images.edit(
            image=png(3), mask=png(4, alpha), prompt="a red circle", extra_body=STEPS
        )
    )
    image = pixels(data)
    assert np.array_equal(image[alpha == 255], original[alpha == 255])
    assert (image[alpha == 0] != original[alpha == 0]).mean() > 0.5


def test_variations_follow_strength_and_seed(editor: OpenAI) -> None:
    images = []
    for strength in (0.34, 1.0, 1.0):
        fields = {**STEPS, "strength": strength}
        images += made(editor.images.create_variation(image=png(3), extra_body=fields))
    assert images[0] != images[1]
    assert np.array_equal(pixels(images[1]), pixels(images[2]))


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_presets_make_files_of_other_sizes(editor: OpenAI, kind: Any) -> None:
    """Of the same image."""
    sizes = []
    for quality in ("low", "medium", "high", "maximum"):
        answer = editor.images.generate(
            prompt="a red circle",
            output_format=kind,
            extra_body={**STEPS, "output_quality": quality},
        )
        sizes.append(len(made(answer)[0]))
    assert sizes == sorted(set(sizes))
