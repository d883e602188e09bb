"""Videos made from finished videos of this server: remixes, edits, extensions.

There are no models here that take a video, so an edit is what a remix is: the same request with
another prompt. An extension is made from the last frame, where a model makes videos from pictures,
and its file begins with the video that it continues.
"""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Response
from msgspec import Meta

from safelight import fields
from safelight.config import EngineConfig
from safelight.entrypoint import schema
from safelight.entrypoint.body import Body
from safelight.entrypoint.context import Config, Manager, ParsedBody
from safelight.entrypoint.inputs import media_of
from safelight.entrypoint.media import finished_output
from safelight.entrypoint.openai import video_parsing
from safelight.entrypoint.openai.events import job_of_kind
from safelight.entrypoint.openai.parsing import agree
from safelight.entrypoint.openai.variants import DECODERS
from safelight.entrypoint.openai.videos import VideoId, polled, seconds_of
from safelight.errors import InvalidRequest, NotFound
from safelight.manager.events import JobView
from safelight.manager.manager import RequestManager
from safelight.manager.media import Decoded, Media, decoded_pixels
from safelight.models.card import ALWAYS, ModelCard
from safelight.output import clips
from safelight.output.frames import MAX_FRAMES
from safelight.request import Clip, GenerationRequest
from safelight.store.jobs import Output
from safelight.store.tables import Status

router = APIRouter(prefix="/videos", tags=["videos"], responses=schema.ERRORS)

_SIZE = ("width", "height")


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A finished video of this server."""

    id: str
    index: Annotated[int, Meta(ge=0, description="Which of a job's videos, from 0.")] = 0


@router.post(
    "/edits",
    response_model=schema.Video,
    response_model_exclude_unset=True,
    openapi_extra={"requestBody": schema.request_body(schema.VideoEditBody)},
)
async def edit(
    body: ParsedBody, manager: Manager, config: Config, response: Response
) -> dict[str, Any]:
    """Make a finished video again with another prompt; fields that are given replace its own."""
    view = await _completed(manager, _source(body).id, "video")
    return polled(await _again(view, body, manager, config), response)


@router.post(
    "/extensions",
    response_model=schema.Video,
    response_model_exclude_unset=True,
    openapi_extra={"requestBody": schema.request_body(schema.VideoEditBody)},
)
async def extend(
    body: ParsedBody, manager: Manager, config: Config, response: Response
) -> dict[str, Any]:
    """Continue a finished video by `seconds`. The new file begins with the old one, and `seconds`
    of the answer is the length of both."""
    source = _source(body)
    view = await _completed(manager, source.id, "video")
    output = finished_output(view, source.index)
    return polled(await _continued(view, output, source, body, manager, config), response)


@router.post("/characters", status_code=400, response_model=schema.ErrorEnvelope)
async def create_character() -> None:
    """Not supported: no model here keeps a character."""
    raise _no_characters()


@router.get("/characters/{character_id}", status_code=400, response_model=schema.ErrorEnvelope)
async def get_character(character_id: str) -> None:
    """Not supported: no model here keeps a character."""
    raise _no_characters()


@router.post(
    "/{video_id}/remix",
    response_model=schema.Video,
    response_model_exclude_unset=True,
    openapi_extra={"requestBody": schema.request_body(schema.VideoBody)},
)
async def remix(
    video_id: VideoId, body: ParsedBody, manager: Manager, config: Config, response: Response
) -> dict[str, Any]:
    """Make a finished video again with another prompt: with its model, size, length, seed and
    input picture; fields that are given replace its own."""
    view = await _completed(manager, video_id, "video_id")
    return polled(await _again(view, body, manager, config), response)


def _no_characters() -> InvalidRequest:
    return InvalidRequest(
        "Characters are not supported: no model of this server keeps one. To begin with a "
        "character's picture, create a video with input_reference.",
        code="unsupported",
    )


# ---------------------------------------------------------------------------------- the source


def _source(body: Body) -> Source:
    """Taken out of the body. Raises `InvalidRequest`."""
    # An empty one is how users of OpenAI's SDK for Python, which demands a file, can name an id.
    if any(body.files.pop("video", ())):
        raise InvalidRequest(
            "'video' is an upload; this server works on videos of its own: name a finished one as "
            '{"id": "video_…"}. To begin with a picture of yours, create a video with '
            "input_reference.",
            param="video",
            code="unsupported_parameter",
        )
    value = body.values.pop("video", None)
    named = {"id": value} if isinstance(value, str) else value
    if not isinstance(named, dict) or not named.get("id"):
        raise InvalidRequest(
            '\'video\' is missing: name a finished video of this server as {"id": "video_…"}.',
            param="video",
        )
    try:
        return fields.convert(Source, named, strict=body.strict)
    except InvalidRequest as failure:
        raise InvalidRequest(f"'video': {failure.message}", param="video") from failure


async def _completed(manager: RequestManager, video_id: str, param: str) -> JobView:
    """Raises `NotFound`, or `InvalidRequest` if it is not there to be worked on. (Not 409, which
    the SDKs send again at once.)"""
    view = await job_of_kind(manager, video_id, "video")
    if view.status is not Status.COMPLETED:
        ended = f"has failed: {view.error_message}" if view.status.final else "is not finished yet."
        code = "video_failed" if view.status.final else "video_not_ready"
        raise InvalidRequest(f"{view.id} {ended}", param=param, code=code)
    return view


# ------------------------------------------------------------------------------ remixes and edits


async def _again(
    view: JobView, body: Body, manager: RequestManager, config: EngineConfig
) -> JobView:
    """The job of the same request with what `body` has in place of its own."""
    request = view.request
    if request.continues is not None:
        raise InvalidRequest(
            f"{view.id} is an extension, which cannot be made again: work on the video that it "
            "continues, and extend that.",
            param="video",
            code="unsupported",
        )
    found = await media_of(body, config.server)
    if not found.images:
        found = await asyncio.to_thread(_kept, manager, request)
    card = _card(body, request, manager)
    extra = {"remixed_from_video_id": view.id}
    if not {"seconds", "num_frames", "fps"} & body.values.keys():
        extra["seconds"] = seconds_of(request)
    asked = _with(body, _repeated(request, card, body))
    limit = config.server.max_outputs
    made = video_parsing.video_request(asked, found, manager.card, limit, **extra)
    return await manager.submit(made, media=found)


def _card(body: Body, request: GenerationRequest, manager: RequestManager) -> ModelCard:
    """Of the model that is named, or else of the one that made the video. Raises
    `ModelNotFound`."""
    named = body.values.get("model")
    return manager.card(named if isinstance(named, str) else request.model)


def _repeated(request: GenerationRequest, card: ModelCard, body: Body) -> dict[str, Any]:
    """What was asked for, as fields of a body."""
    another_count = {"n", "num_outputs_per_prompt"} & body.values.keys()
    return {
        **_sampled(request, card),
        **_adapted(request, card),
        "model": card.name,
        "n": request.n,
        "seed": request.seed_of(0) if another_count else list(request.seeds) or request.seed_of(0),
        "output_compression": request.compression,
    }


def _adapted(request: GenerationRequest, card: ModelCard) -> dict[str, Any]:
    """The adapters of a request: they are of one model."""
    if card.name != request.model:
        return {}
    named = [{"name": a.name, "scale": a.scale, "target": a.target} for a in request.adapters]
    return {"lora": named}


def _sampled(request: GenerationRequest, card: ModelCard) -> dict[str, Any]:
    """The sampling parameters of a request that `card` has a use for."""
    values = msgspec.structs.asdict(request.sampling)
    used = {*ALWAYS, *card.parameters} - {"seed"}
    return {name: value for name, value in values.items() if name in used and value is not None}


def _with(body: Body, values: dict[str, Any]) -> Body:
    """The body, its fields before `values`; other names of the same thing count as well."""
    for name, others in _OTHER_NAMES.items():
        if name in body.values:
            values = {key: value for key, value in values.items() if key not in others}
    return dataclasses.replace(body, values=values | body.values)


_OTHER_NAMES = {
    "size": _SIZE,
    "seconds": ("num_frames",),
    "num_outputs_per_prompt": ("n",),
    "output_quality": ("output_compression",),
    "loras": ("lora",),
    "lora_name": ("lora",),
}


def _kept(manager: RequestManager, request: GenerationRequest) -> Media:
    """In a thread: the input pictures of a finished video. Raises `InvalidRequest` if they were
    not kept."""
    found = []
    try:
        for picture in request.inputs.images:
            pixels = manager.content_store.retained(picture.path)
            found.append(decoded_pixels(pixels, picture.size))
    except NotFound as failure:
        raise InvalidRequest(
            f"The input picture of {request.id} was not kept; send it again as input_reference.",
            param="input_reference",
            code="input_gone",
        ) from failure
    return Media(images=tuple(found))


# ------------------------------------------------------------------------------------- extensions


async def _continued(
    view: JobView,
    output: Output,
    source: Source,
    body: Body,
    manager: RequestManager,
    config: EngineConfig,
) -> JobView:
    """The job of the continuation. Raises `InvalidRequest` if there is no model for it."""
    request = view.request
    card = _continuing(body, request, manager)
    values = _continuation(view, source, card, body)
    added = body.values.pop("seconds", None)
    if added is not None:
        frames, said = _frames(added, output, card), f"'seconds' is {added}"
        agree("num_frames", frames, body.values, given_as=said, strict=body.strict)
    last = await _last_frame(output, request)
    asked, limit = _with(body, values), config.server.max_outputs
    made = video_parsing.video_request(asked, last, manager.card, limit)
    made = _joined(made, view, output, added)
    return await manager.submit(made, media=last, clip=Path(output.path))


def _continuing(body: Body, request: GenerationRequest, manager: RequestManager) -> ModelCard:
    """Of the model that is named, or the one that made the video, or else the first that can."""
    named = body.values.get("model")
    if isinstance(named, str):
        cards = [manager.card(named)]
    else:
        first = manager.cards.get(request.model)
        cards = [*([] if first is None else [first]), *manager.cards.values()]
    able = [card for card in cards if "image-to-video" in card.tasks and card.min_images <= 1]
    if not able:
        names = ", ".join(sorted({card.name for card in cards}))
        raise InvalidRequest(
            "A video is continued from its last frame, by a model that makes videos from a "
            f"picture; {names} cannot.",
            param="model",
            code="unsupported",
        )
    return able[0]


def _continuation(view: JobView, source: Source, card: ModelCard, body: Body) -> dict[str, Any]:
    """Fields of the body: of the size and rate of what it continues; the same model goes on with
    the same parameters."""
    request = view.request
    sampled = _sampled(request, card)
    if card.name != request.model:
        sampled = {name: sampled[name] for name in (*_SIZE, "fps") if name in sampled}
    sampled.pop("num_frames", None)
    return {
        **sampled,
        **_adapted(request, card),
        "model": card.name,
        "seed": request.seed_of(source.index),
        "output_compression": request.compression,
    }


def _frames(seconds: Any, output: Output, card: ModelCard) -> int:
    """Of the continuation, its first included. Raises `InvalidRequest`."""
    if not isinstance(seconds, int | float | str) or isinstance(seconds, bool):
        raise InvalidRequest(f"'seconds' is {seconds!r:.80}; give a number.", param="seconds")
    return video_parsing.frames_for(seconds, output.fps, card, more=1)


async def _last_frame(output: Output, request: GenerationRequest) -> Media:
    size = (request.sampling.width, request.sampling.height)
    loop = asyncio.get_running_loop()
    picture = await loop.run_in_executor(DECODERS, _frame, output, size)
    return Media(images=(picture,))


def _frame(output: Output, size: tuple[int, int]) -> Decoded:
    """In a thread: the last one."""
    return decoded_pixels(clips.frame(Path(output.path), output.num_frames - 1, size), size)


def _joined(
    made: GenerationRequest, view: JobView, output: Output, added: Any
) -> GenerationRequest:
    """The request with what it continues. Raises `InvalidRequest` if they do not fit together."""
    new, old = made.sampling, view.request.sampling
    if (new.width, new.height, new.fps) != (old.width, old.height, old.fps):
        raise InvalidRequest(
            f"A continuation of {view.id} has its size and rate: {old.width}x{old.height} at "
            f"{old.fps} frames per second, not {new.width}x{new.height} at {new.fps}.",
            param="size",
        )
    total = output.num_frames + new.num_frames - 1
    if not output.num_frames < total <= MAX_FRAMES:
        raise InvalidRequest(
            f"The continued video would have {total} frames after {output.num_frames}; it must be "
            f"longer, with at most {MAX_FRAMES}.",
            param="seconds",
        )
    length = total / new.fps if added is None else float(seconds_of(view.request)) + float(added)
    extra = {**made.extra, "seconds": f"{length:g}", "extended_from_video_id": view.id}
    clip = Clip(path=f"{made.id}/clip.raw", num_frames=output.num_frames)
    return msgspec.structs.replace(made, continues=clip, extra=extra)
