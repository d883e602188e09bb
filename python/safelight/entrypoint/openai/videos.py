"""`/v1/videos`: jobs that are polled. What is made from finished ones is in `derived`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from safelight.entrypoint import schema
from safelight.entrypoint.context import Config, Manager, ParsedBody
from safelight.entrypoint.inputs import media_of
from safelight.entrypoint.media import MediaResponse, media_response
from safelight.entrypoint.openai import parsing, variants
from safelight.entrypoint.openai.events import job_of_kind
from safelight.entrypoint.openai.polling import (
    After,
    Limit,
    Order,
    Prefer,
    facts,
    listed,
    say_when_to_ask,
    waited,
)
from safelight.entrypoint.openai.video_parsing import video_request
from safelight.entrypoint.waiting import CLIENT_CLOSED, finished, raise_unless_completed
from safelight.manager.events import JobView
from safelight.request import TASKS, GenerationRequest

router = APIRouter(prefix="/videos", tags=["videos"], responses=schema.ERRORS)

VideoId = Annotated[str, Path(description="The id that `POST /v1/videos` returned.")]


@router.post(
    "",
    response_model=schema.Video,
    response_model_exclude_unset=True,
    openapi_extra={"requestBody": schema.request_body(schema.VideoBody)},
)
async def create(
    body: ParsedBody, manager: Manager, config: Config, response: Response
) -> dict[str, Any]:
    """Accept a video job. It is durable when this answers; poll it until it is completed."""
    found = await media_of(body, config.server)
    request = video_request(body, found, manager.card, config.server.max_outputs)
    return polled(await manager.submit(request, media=found), response)


@router.post(
    "/sync",
    response_class=MediaResponse,
    responses={200: {"content": {"video/mp4": {}}}},
    openapi_extra={"requestBody": schema.request_body(schema.VideoBody)},
)
async def create_and_wait(
    body: ParsedBody, manager: Manager, config: Config, http: Request
) -> Response:
    """Make one video and answer with the file (vLLM-Omni). A client that leaves cancels the job."""
    found = await media_of(body, config.server)
    request = video_request(body, found, manager.card, max_outputs=1)
    await manager.submit(request, media=found)
    del found  # its pixels shall not wait with the client
    view = await finished(manager, request.id, http)
    if view is None:
        return Response(status_code=CLIENT_CLOSED)
    raise_unless_completed(view)
    answer = await media_response(manager, view, 0)
    answer.headers["x-video-id"] = view.id
    return answer


@router.get("", response_model=schema.VideoList, response_model_exclude_unset=True)
async def page(
    manager: Manager, limit: Limit = 20, after: After = None, order: Order = "desc"
) -> dict[str, Any]:
    """A page of video jobs, newest first."""
    found = await manager.list(TASKS["video"], limit=limit, after=after, order=order)
    return listed(found, as_video)


@router.get("/{video_id}", response_model=schema.Video, response_model_exclude_unset=True)
async def retrieve(
    video_id: VideoId, manager: Manager, response: Response, prefer: Prefer = None
) -> dict[str, Any]:
    """The job as it is now. A job that failed is found, with `status` failed.

    With `Prefer: wait=N` the answer comes when the job has ended, or after N seconds: one request
    instead of many polls.
    """
    view = await waited(manager, await job_of_kind(manager, video_id, "video"), prefer, response)
    return polled(view, response)


@router.delete("/{video_id}", response_model=schema.VideoDeleted)
async def delete(video_id: VideoId, manager: Manager) -> schema.VideoDeleted:
    """Stop the job if it runs; remove it and its file."""
    await job_of_kind(manager, video_id, "video")
    await manager.delete(video_id)
    return schema.VideoDeleted(id=video_id)


@router.head("/{video_id}/content", include_in_schema=False)
@router.get(
    "/{video_id}/content",
    response_class=MediaResponse,
    responses={200: {"content": {"video/mp4": {}, "image/webp": {}, "image/jpeg": {}}}},
)
async def content(
    video_id: VideoId,
    manager: Manager,
    variant: Annotated[
        str,
        Query(
            description="`video`, `thumbnail` (WebP) or `spritesheet` (JPEG of up to 16 frames); a "
            "number is an `index`."
        ),
    ] = "video",
    index: Annotated[int, Query(ge=0, description="Which video of the job, from 0.")] = 0,
) -> MediaResponse:
    """The finished file, or a picture of it. Takes `Range` and `If-None-Match`."""
    if variant.isascii() and variant.isdecimal():  # SGLang Diffusion's way to name an output
        variant, index = "video", int(variant[:9])
    view = await job_of_kind(manager, video_id, "video")
    if variant == "video":
        return await media_response(manager, view, index)
    return await variants.response(manager, view, index, variant)


def polled(view: JobView, response: Response) -> dict[str, Any]:
    """The video object, and when to ask again."""
    say_when_to_ask(view, response)
    return as_video(view)


def as_video(view: JobView) -> dict[str, Any]:
    """The contract's 13 keys, always, then what only Safelight says."""
    request, sampling = view.request, view.request.sampling
    video = facts(view) | {
        "object": "video",
        "expires_at": None,
        "seconds": seconds_of(request),
        "remixed_from_video_id": parsing.echo(request, "remixed_from_video_id", str),
        "num_frames": sampling.num_frames,
        "fps": sampling.fps,
    }
    if request.n > 1:
        video |= {"n": request.n, "seeds": [request.seed_of(i) for i in range(request.n)]}
    if continued := parsing.echo(request, "extended_from_video_id", str):
        video["extended_from_video_id"] = continued
    return video


def seconds_of(request: GenerationRequest) -> str:
    """The length that was asked for, or the one that follows from the frames."""
    sampling = request.sampling
    return parsing.echo(request, "seconds", str) or f"{sampling.num_frames / sampling.fps:g}"
