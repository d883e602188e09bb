"""`/v1/images`: requests that wait for their pictures, unless they ask for a job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi import Path as InPath
from fastapi.responses import JSONResponse

from safelight.config import EngineConfig
from safelight.entrypoint import schema
from safelight.entrypoint.body import Body
from safelight.entrypoint.context import Config, Manager, ParsedBody
from safelight.entrypoint.inputs import media_of
from safelight.entrypoint.openai import parsing, streaming
from safelight.entrypoint.openai.events import encoded
from safelight.entrypoint.openai.image_jobs import as_job
from safelight.entrypoint.openai.image_parsing import image_request
from safelight.entrypoint.openai.polling import content_url, say_when_to_ask, wants_async
from safelight.entrypoint.waiting import CLIENT_CLOSED, finished, raise_unless_completed
from safelight.errors import GenerationFailed, InvalidRequest
from safelight.manager.events import JobView
from safelight.manager.manager import RequestManager
from safelight.request import GenerationRequest
from safelight.store.jobs import Output

router = APIRouter(prefix="/images", tags=["images"], responses=schema.ERRORS)
azure = APIRouter(
    prefix="/openai/deployments/{model:path}/images", tags=["azure"], responses=schema.ERRORS
)
"""Where Azure's clients look for the same routes, under a model each."""

Prefer = Annotated[
    str | None,
    Header(description="`respond-async` (RFC 7240): answer 202 with a job that can be polled."),
]
Model = Annotated[str, InPath(description="The model that a body without one means.")]

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": schema.EVENT_STREAM},
    202: {"model": schema.ImageJob, "description": "The job, where one was asked for."},
}
_ROUTE: dict[str, Any] = {
    "response_model": schema.ImagesResponse,
    "response_model_exclude_unset": True,
    "responses": _ANSWERS,
}


@dataclass(frozen=True)
class _Way:
    """One of the ways to ask for images."""

    kind: streaming.Kind
    needs_picture: bool
    needs_prompt: bool = True


_GENERATION = _Way("image_generation", needs_picture=False)
_EDIT = _Way("image_edit", needs_picture=True)
_VARIATION = _Way("image_edit", needs_picture=True, needs_prompt=False)


@router.post(
    "/generations",
    openapi_extra={"requestBody": schema.request_body(schema.ImageBody)},
    **_ROUTE,
)
async def generate(
    body: ParsedBody, manager: Manager, config: Config, http: Request, prefer: Prefer = None
) -> Any:
    """Generate images and answer when they are there. A client that leaves cancels the job.

    With `stream` they come as events, with `async` (or `Prefer: respond-async`) the answer is 202
    and a job that is polled at `/v1/images/{id}`.
    """
    return await _made(_GENERATION, body, manager, config, http, prefer)


@router.post(
    "/edits",
    openapi_extra={"requestBody": schema.request_body(schema.ImageEditBody)},
    **_ROUTE,
)
async def edit(
    body: ParsedBody, manager: Manager, config: Config, http: Request, prefer: Prefer = None
) -> Any:
    """Make images from one or several input images and a prompt; with a mask, only where it is
    transparent (or white, if it is opaque) is anything changed."""
    return await _made(_EDIT, body, manager, config, http, prefer)


@router.post(
    "/variations",
    openapi_extra={"requestBody": schema.request_body(schema.ImageVariationBody, required=())},
    **_ROUTE,
)
async def vary(
    body: ParsedBody, manager: Manager, config: Config, http: Request, prefer: Prefer = None
) -> Any:
    """Make images like the input image, which needs no prompt; `strength` says how far from it."""
    return await _made(_VARIATION, body, manager, config, http, prefer)


@azure.post(
    "/generations",
    openapi_extra={"requestBody": schema.request_body(schema.ImageBody)},
    **_ROUTE,
)
async def generate_by_deployment(
    body: ParsedBody, manager: Manager, config: Config, http: Request, model: Model
) -> Any:
    """As `/v1/images/generations`."""
    body.values.setdefault("model", model)
    return await _made(_GENERATION, body, manager, config, http, None)


@azure.post(
    "/edits",
    openapi_extra={"requestBody": schema.request_body(schema.ImageEditBody)},
    **_ROUTE,
)
async def edit_by_deployment(
    body: ParsedBody, manager: Manager, config: Config, http: Request, model: Model
) -> Any:
    """As `/v1/images/edits`."""
    body.values.setdefault("model", model)
    return await _made(_EDIT, body, manager, config, http, None)


async def _made(
    way: _Way,
    body: Body,
    manager: RequestManager,
    config: EngineConfig,
    http: Request,
    prefer: str | None,
) -> Any:
    view, asked = await _accepted(way, body, manager, config)
    if asked.stream:
        hints = _common(view.request) | {"background": "opaque", "quality": "auto"}
        return streaming.respond(manager, view.request, way.kind, hints)
    if asked.respond_async or wants_async(prefer):
        return _job(view, http)
    ended = await finished(manager, view.id, http)
    if ended is None:
        return Response(status_code=CLIENT_CLOSED)
    raise_unless_completed(ended)
    return await _answer(ended, asked, http)


async def _accepted(
    way: _Way, body: Body, manager: RequestManager, config: EngineConfig
) -> tuple[JobView, schema.ImageBody]:
    """The job. Its pictures are nowhere but on disk when this returns: they shall not wait in
    memory with the client."""
    found = await media_of(body, config.server)
    if way.needs_picture and not found.images:
        raise InvalidRequest("'image' is missing: send the picture to edit.", param="image")
    request, asked = image_request(
        body,
        found,
        manager.card,
        config.server.max_outputs,
        needs_prompt=way.needs_prompt,
    )
    return await manager.submit(request, media=found), asked


def _job(view: JobView, http: Request) -> Response:
    answer = JSONResponse(as_job(view, http), 202)
    answer.headers["location"] = f"{http.base_url}v1/images/{view.id}"
    answer.headers["preference-applied"] = "respond-async"
    say_when_to_ask(view, answer)
    return answer


def _common(request: GenerationRequest) -> dict[str, str]:
    """What holds for all images of a request."""
    sampling = request.sampling
    return {"output_format": request.format, "size": f"{sampling.width}x{sampling.height}"}


async def _answer(view: JobView, asked: schema.ImageBody, http: Request) -> dict[str, Any]:
    request = view.request
    answer = {
        "created": int(view.completed_at or view.created_at),
        "data": [
            await _image(output, asked, content_url(http, "image", view.id, index))
            for index, output in enumerate(view.outputs)
        ],
        **_common(request),
        "background": "opaque",
        "id": view.id,
        "model": request.model,
        "seed": request.seed_of(0),
        "seeds": [output.seed for output in view.outputs],
    }
    for name, kind in (("warnings", list[str]), ("safety_identifier", str)):
        if value := parsing.echo(request, name, kind):
            answer[name] = value
    return answer


async def _image(output: Output, asked: schema.ImageBody, url: str) -> dict[str, str]:
    image: dict[str, str] = {}
    if asked.response_format != "url":
        data = await encoded(Path(output.path))
        if data is None:
            raise GenerationFailed("The image was removed before it was sent.", code="content_gone")
        image["b64_json"] = data
    if asked.response_format != "b64_json":
        image["url"] = url
    return image
