"""What happens to a job, as it happens: `/v1/videos/{id}/events` and `/v1/images/{id}/events`.

An extension of OpenAI's protocol, in its manner. Every event says all that is known of the job, and
has a number as its id: a client that was cut off sends the last one it saw as `Last-Event-ID`, and
gets what it missed, from whatever happened meanwhile to the connection or the server.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi import Path as InPath
from starlette.responses import FileResponse, Response, StreamingResponse

from safelight.entrypoint import schema, sse
from safelight.entrypoint.context import Manager
from safelight.errors import NotFound
from safelight.manager.building import output_of
from safelight.manager.events import JobView
from safelight.manager.manager import RequestManager
from safelight.request import Output
from safelight.store.content import media_type_of
from safelight.store.journal import JobEvent, Preview
from safelight.store.tables import Status

router = APIRouter(responses=schema.ERRORS)

JobId = Annotated[str, InPath(description="The id of the job.")]
LastEventId = Annotated[
    str | None, Header(description="The id of the last event that was seen, after a reconnection.")
]
After = Annotated[
    int | None, Query(ge=0, description="As Last-Event-ID, for clients that set no headers.")
]
Number = Annotated[int, InPath(ge=0, description="Which of the sample's previews, from 0.")]
Index = Annotated[int, Query(ge=0, description="Which of the job's outputs, from 0.")]

_STREAM: dict[int | str, Any] = {
    200: {"content": schema.EVENT_STREAM},
    204: {"description": "The job has ended, and its last event was seen."},
}
_PICTURE: dict[int | str, Any] = {
    200: {"content": {kind: {} for kind in ("image/png", "image/jpeg", "image/webp")}}
}


@router.get(
    "/videos/{video_id}/events",
    tags=["videos"],
    response_class=StreamingResponse,
    responses=_STREAM,
)
async def of_video(
    video_id: JobId,
    manager: Manager,
    http: Request,
    last_event_id: LastEventId = None,
    after: After = None,
) -> Response:
    """Server-sent events of a video job until it has ended: `video.queued`, `video.progress`,
    `video.preview`, `video.completed` or `video.failed`."""
    view = await job_of_kind(manager, video_id, "video")
    return await _followed(manager, http, view, _seen(last_event_id, after))


@router.get(
    "/images/{image_id}/events",
    tags=["images"],
    response_class=StreamingResponse,
    responses=_STREAM,
)
async def of_image(
    image_id: JobId,
    manager: Manager,
    http: Request,
    last_event_id: LastEventId = None,
    after: After = None,
) -> Response:
    """Server-sent events of an image job until it has ended: `image.queued`, `image.progress`,
    `image.preview`, `image.completed` or `image.failed`."""
    view = await job_of_kind(manager, image_id, "image")
    return await _followed(manager, http, view, _seen(last_event_id, after))


@router.get(
    "/videos/{video_id}/previews/{number}",
    tags=["videos"],
    response_class=FileResponse,
    responses=_PICTURE,
)
async def preview_of_video(
    video_id: JobId, number: Number, manager: Manager, index: Index = 0
) -> FileResponse:
    """A preview, as its event names it."""
    return await _preview(manager, await job_of_kind(manager, video_id, "video"), index, number)


@router.get(
    "/images/{image_id}/previews/{number}",
    tags=["images"],
    response_class=FileResponse,
    responses=_PICTURE,
)
async def preview_of_image(
    image_id: JobId, number: Number, manager: Manager, index: Index = 0
) -> FileResponse:
    """A preview, as its event names it."""
    return await _preview(manager, await job_of_kind(manager, image_id, "image"), index, number)


async def job_of_kind(manager: RequestManager, job_id: str, kind: Output) -> JobView:
    """Raises `NotFound`, also for a job that makes something else."""
    view = await manager.job(job_id)
    if output_of(view.request.task) != kind:
        raise NotFound(f"There is no {kind} '{job_id}'.", param="id")
    return view


async def _preview(manager: RequestManager, view: JobView, index: int, number: int) -> FileResponse:
    found = await manager.preview(view.id, index, number)
    if found is None or not await asyncio.to_thread(Path(found.path).is_file):
        raise NotFound(f"{view.id} has no preview {number} of output {index}.", param="number")
    return FileResponse(found.path, media_type=media_type_of(Path(found.path)))


def _seen(last_event_id: str | None, after: int | None) -> int:
    """What cannot be read is of another stream: everything is sent."""
    if last_event_id is not None and last_event_id.isdecimal() and len(last_event_id) < 10:
        return int(last_event_id)
    return after or 0


async def _followed(manager: RequestManager, http: Request, view: JobView, after: int) -> Response:
    """The events behind `after`. 204 ends the connections of an `EventSource`, which would come
    again for ever."""
    if view.status.final and after:
        async with aclosing(manager.events(view.id, after)) as rest:
            if await anext(rest, None) is None:
                return Response(status_code=204)
    return sse.respond(_events(manager, http, view, after))


async def _events(
    manager: RequestManager, http: Request, view: JobView, after: int
) -> AsyncGenerator[sse.Event]:
    kind = output_of(view.request.task)
    base = f"{http.base_url}v1/{kind}s/{view.id}"
    async for event in manager.events(view.id, after):
        data = _told(event, kind, view.id)
        if event.preview is not None:
            data["preview"] = await _shown(event.preview, base)
        yield sse.Event(data["type"], data, str(event.number))


def _told(event: JobEvent, kind: Output, job_id: str) -> dict[str, Any]:
    """What a client is told."""
    told: dict[str, Any] = {
        "type": f"{kind}.{event.kind}",
        "id": job_id,
        "sequence_number": event.number,
        "created_at": event.at,
        # Clients know four states.
        "status": "failed" if event.status is Status.CANCELLED else str(event.status),
        "stage": str(event.stage),
        "progress": event.progress,
        "steps_done": event.steps_done,
        "steps_total": event.steps_total,
        "attempt": event.attempt,
        "eta": event.eta,
        "queue_position": event.position,
    }
    if event.error_code is not None:
        told["error"] = {"code": event.error_code, "message": event.error_message or ""}
    return told


async def _shown(preview: Preview, base: str) -> dict[str, Any]:
    return {
        "index": preview.sample,
        "number": preview.number,
        "step": preview.step,
        "url": f"{base}/previews/{preview.number}?index={preview.sample}",
        "b64_json": await encoded(Path(preview.path)),
    }


async def encoded(path: Path) -> str | None:
    """The file in base64; None if it is there no longer."""
    return await asyncio.to_thread(_encoded, path)


def _encoded(path: Path) -> str | None:
    try:
        return base64.b64encode(path.read_bytes()).decode("ascii")
    except FileNotFoundError:
        return None
