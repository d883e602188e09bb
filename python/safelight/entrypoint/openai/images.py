"""`/v1/images`: requests that wait for their pictures."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from safelight.config import EngineConfig
from safelight.entrypoint import schema
from safelight.entrypoint.body import Body
from safelight.entrypoint.context import Config, Manager, ParsedBody
from safelight.entrypoint.inputs import media_of
from safelight.entrypoint.media import MediaResponse, media_response
from safelight.entrypoint.openai import parsing, streaming
from safelight.entrypoint.waiting import CLIENT_CLOSED, finished, raise_unless_completed
from safelight.errors import GenerationFailed, InvalidRequest, NotFound
from safelight.manager.events import JobView
from safelight.manager.manager import RequestManager
from safelight.manager.media import Media
from safelight.request import TASKS, GenerationRequest
from safelight.store.jobs import Output

router = APIRouter(prefix="/images", tags=["images"], responses=schema.ERRORS)


@router.post(
    "/generations",
    response_model=schema.ImagesResponse,
    response_model_exclude_unset=True,
    openapi_extra={"requestBody": schema.request_body(schema.ImageBody)},
)
async def generate(body: ParsedBody, manager: Manager, config: Config, http: Request) -> Any:
    """Generate images and answer when they are there. A client that leaves cancels the job."""
    found = await _pictures(body, config)
    return await _make(body, found, manager, config, http, "image_generation")


@router.post(
    "/edits",
    response_model=schema.ImagesResponse,
    response_model_exclude_unset=True,
    openapi_extra={"requestBody": schema.request_body(schema.ImageEditBody)},
)
async def edit(body: ParsedBody, manager: Manager, config: Config, http: Request) -> Any:
    """Make images from one or several input images and a prompt; with a mask, only where it is
    transparent (or white, if it is opaque) is anything changed."""
    found = await _pictures(body, config, required=True)
    return await _make(body, found, manager, config, http, "image_edit")


async def _pictures(body: Body, config: EngineConfig, *, required: bool = False) -> Media:
    found = await media_of(body, config.server)
    if required and not found.images:
        raise InvalidRequest("'image' is missing: send the picture to edit.", param="image")
    return found


async def _make(
    body: Body,
    found: Media,
    manager: RequestManager,
    config: EngineConfig,
    http: Request,
    kind: streaming.Kind,
) -> Any:
    """`found` must be held by nobody else: its pixels shall not wait with the client."""
    limit = config.server.max_outputs
    request, asked = parsing.image_request(body, found, manager.card, limit)
    await manager.submit(request, media=found)
    del found
    if asked.stream:
        return streaming.respond(manager, request, kind, _common(request))
    view = await finished(manager, request.id, http)
    if view is None:
        return Response(status_code=CLIENT_CLOSED)
    raise_unless_completed(view)
    return await _answer(view, asked, http)


@router.get("/{image_id}/content", response_class=MediaResponse)
async def content(
    image_id: str, manager: Manager, index: Annotated[int, Query(ge=0)] = 0
) -> MediaResponse:
    """One finished image, as the `url` of an answer names it."""
    view = await manager.job(image_id)
    if view.request.task not in TASKS["image"]:
        raise NotFound(f"There is no image '{image_id}'.", param="id")
    return await media_response(manager, view, index)


def _common(request: GenerationRequest) -> dict[str, str]:
    """What holds for all images of a request."""
    sampling = request.sampling
    return {"output_format": request.format, "size": f"{sampling.width}x{sampling.height}"}


async def _answer(view: JobView, asked: schema.ImageBody, http: Request) -> dict[str, Any]:
    request = view.request
    data = [await _image(output, asked, _url(http, view.id, i)) for i, output in _numbered(view)]
    answer = {
        "created": int(view.completed_at or view.created_at),
        "data": data,
        **_common(request),
        "id": view.id,
        "model": request.model,
        "seed": request.seed_of(0),
        "seeds": [output.seed for output in view.outputs],
    }
    for name, kind in (("warnings", list[str]), ("safety_identifier", str)):
        if value := parsing.echo(request, name, kind):
            answer[name] = value
    return answer


def _numbered(view: JobView) -> list[tuple[int, Output]]:
    return list(enumerate(view.outputs))


def _url(http: Request, job_id: str, index: int) -> str:
    """Absolute, as clients need it, by the name under which this client reached the server."""
    return f"{http.base_url}v1/images/{job_id}/content?index={index}"


async def _image(output: Output, asked: schema.ImageBody, url: str) -> dict[str, str]:
    image: dict[str, str] = {}
    if asked.response_format != "url":
        image["b64_json"] = await asyncio.to_thread(_base64, Path(output.path))
    if asked.response_format != "b64_json":
        image["url"] = url
    return image


def _base64(path: Path) -> str:
    try:
        return base64.b64encode(path.read_bytes()).decode("ascii")
    except FileNotFoundError as failure:
        raise GenerationFailed(
            "The image was removed before it was sent.", code="content_gone"
        ) from failure
