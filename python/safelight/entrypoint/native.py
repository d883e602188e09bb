"""`POST /generate`: cache-dit's and FLUX API's way to ask for images, and for videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response

from safelight.entrypoint import schema
from safelight.entrypoint.body import Body
from safelight.entrypoint.context import Config, Manager, ParsedBody
from safelight.entrypoint.inputs import media_of
from safelight.entrypoint.native_schema import GenerateBody, Generated
from safelight.entrypoint.openai import parsing
from safelight.entrypoint.openai.events import encoded
from safelight.entrypoint.openai.polling import content_url
from safelight.entrypoint.waiting import CLIENT_CLOSED, finished, raise_unless_completed
from safelight.errors import GenerationFailed, InvalidRequest
from safelight.manager.building import build_request, output_of
from safelight.manager.events import JobView
from safelight.manager.media import Media
from safelight.models.card import frame_count
from safelight.request import GenerationRequest, ImageFormat, Output

router = APIRouter(tags=["native"], responses=schema.ERRORS)


@router.post(
    "/generate",
    response_model=Generated,
    response_model_exclude_unset=True,
    openapi_extra={"requestBody": schema.request_body(GenerateBody)},
)
async def generate(body: ParsedBody, manager: Manager, config: Config, http: Request) -> Any:
    """Generate images, or a video, and answer when they are there: in base64 as `images` or
    `video`, and under an address. A client that leaves cancels the job.

    What is made follows from the model, the pictures and `num_frames`, of which 1 makes an image.
    """
    found = await media_of(body, config.server)
    request, asked = native_request(body, found, manager.card, config.server.max_outputs)
    await manager.submit(request, media=found)
    del found  # its pixels shall not wait with the client
    view = await finished(manager, request.id, http)
    if view is None:
        return Response(status_code=CLIENT_CLOSED)
    raise_unless_completed(view)
    return await _answer(view, asked, http)


def native_request(
    body: Body, media: Media, choose: parsing.Choose, max_outputs: int
) -> tuple[GenerationRequest, GenerateBody]:
    """Raises `RequestError` naming the field."""
    parts = parsing.split(body, GenerateBody)
    own, sampling = parts.own, parts.sampling
    if isinstance(own.seed, int):
        sampling["seed"] = own.seed
    with_size = parsing.apply_size(own.size, sampling, strict=body.strict)
    try:
        request = build_request(
            choose(own.model, _wanted(sampling), media),
            own.prompt,
            sampling,
            strict=body.strict,
            media=media,
            seeds=own.seed if isinstance(own.seed, list) else (),
            format=_format(own),
            n=_count(own),
            max_outputs=max_outputs,
            priority=own.priority,
            round_size=own.round_size,
            adapters=parts.adapters,
            extra=parts.extra,
        )
    except InvalidRequest as failure:
        raise parsing.blame_size(failure, with_size) from failure
    if output_of(request.task) == "video" and request.n > 1:
        raise InvalidRequest(
            f"'num_images' is {request.n}; a request makes one video.", param="num_images"
        )
    return request, own


def _wanted(sampling: dict[str, Any]) -> Output | None:
    """What a number of frames asks for, of a server with several models."""
    frames = frame_count(sampling.get("num_frames"))
    return None if frames is None else "image" if frames == 1 else "video"


def _format(own: GenerateBody) -> ImageFormat | None:
    match own.output_format:
        case "png" | "jpeg" | "webp" as format:
            return format
        case _:
            return None


def _count(own: GenerateBody) -> int:
    counts = {value for value in (own.num_images, own.n) if value is not None}
    if len(counts) > 1:
        raise InvalidRequest(f"'num_images' is {own.num_images}, but 'n' is {own.n}.", param="n")
    return counts.pop() if counts else 1


async def _answer(view: JobView, asked: GenerateBody, http: Request) -> dict[str, Any]:
    request, kind = view.request, output_of(view.request.task)
    urls = [content_url(http, kind, view.id, index) for index in range(len(view.outputs))]
    files = urls
    if asked.output_format != "path":
        paths = [Path(output.path) for output in view.outputs]
        files = [await _base64(path) for path in paths]
    answer = _parameters(view) | {
        "id": view.id,
        "model": request.model,
        "image_url": urls[0],
        "download_url": urls[0],
        "time_cost": (view.completed_at or view.created_at) - view.created_at,
    }
    answer |= {"images": files} if kind == "image" else {"images": [], "video": files[0]}
    if request.adapters:
        answer["lora_applied"] = ", ".join(one.name for one in request.adapters)
    if asked.include_stats:
        answer["stats"] = _stats(view)
    if warnings := parsing.echo(request, "warnings", list[str]):
        answer["warnings"] = warnings
    return answer


def _parameters(view: JobView) -> dict[str, Any]:
    """What it was made with."""
    sampling = view.request.sampling
    return {
        "seed": view.request.seed_of(0),
        "seeds": [output.seed for output in view.outputs],
        "width": sampling.width,
        "height": sampling.height,
        "num_frames": sampling.num_frames,
        "fps": sampling.fps,
        "num_inference_steps": sampling.num_inference_steps,
        "guidance_scale": sampling.guidance_scale,
    }


def _stats(view: JobView) -> dict[str, Any]:
    """Of a completed job. One that ended before it was seen to begin never waited."""
    ended = view.completed_at or view.created_at
    began = min(view.started_at or view.created_at, ended)
    return {
        "queued": max(0.0, began - view.created_at),
        "generating": ended - began,
        "steps": view.steps_total,
        "attempt": view.attempt,
    }


async def _base64(path: Path) -> str:
    data = await encoded(path)
    if data is None:
        raise GenerationFailed("The file was removed before it was sent.", code="content_gone")
    return data
