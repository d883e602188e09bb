"""`/v1/images/{id}`: every request for images is a job, which may be polled, listed and deleted.

An extension of OpenAI's protocol, in the manner of its videos.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from safelight.entrypoint import schema
from safelight.entrypoint.context import Manager
from safelight.entrypoint.media import MediaResponse, media_response
from safelight.entrypoint.openai.events import job_of_kind
from safelight.entrypoint.openai.polling import (
    After,
    Limit,
    Order,
    Prefer,
    content_url,
    facts,
    listed,
    say_when_to_ask,
    waited,
)
from safelight.manager.events import JobView
from safelight.request import TASKS
from safelight.store.tables import Status

router = APIRouter(prefix="/images", tags=["images"], responses=schema.ERRORS)

ImageId = Annotated[str, Path(description="The `id` of an answer.")]


@router.get("", response_model=schema.ImageJobList, response_model_exclude_unset=True)
async def page(
    manager: Manager, http: Request, limit: Limit = 20, after: After = None, order: Order = "desc"
) -> dict[str, Any]:
    """A page of image jobs, newest first."""
    found = await manager.list(TASKS["image"], limit=limit, after=after, order=order)
    return listed(found, lambda view: as_job(view, http))


@router.get("/{image_id}", response_model=schema.ImageJob, response_model_exclude_unset=True)
async def retrieve(
    image_id: ImageId,
    manager: Manager,
    http: Request,
    response: Response,
    prefer: Prefer = None,
) -> dict[str, Any]:
    """The job as it is now. A job that failed is found, with `status` failed.

    With `Prefer: wait=N` the answer comes when the job has ended, or after N seconds.
    """
    view = await waited(manager, await job_of_kind(manager, image_id, "image"), prefer, response)
    say_when_to_ask(view, response)
    return as_job(view, http)


@router.delete("/{image_id}", response_model=schema.ImageJobDeleted)
async def delete(image_id: ImageId, manager: Manager) -> schema.ImageJobDeleted:
    """Stop the job if it runs; remove it and its files."""
    await job_of_kind(manager, image_id, "image")
    await manager.delete(image_id)
    return schema.ImageJobDeleted(id=image_id)


@router.head("/{image_id}/content", include_in_schema=False)
@router.get(
    "/{image_id}/content",
    response_class=MediaResponse,
    responses={200: {"content": {"image/png": {}, "image/jpeg": {}, "image/webp": {}}}},
)
async def content(
    image_id: ImageId, manager: Manager, index: Annotated[int, Query(ge=0)] = 0
) -> MediaResponse:
    """One finished image, as the `url` of an answer names it."""
    return await media_response(manager, await job_of_kind(manager, image_id, "image"), index)


def as_job(view: JobView, http: Request) -> dict[str, Any]:
    """The job as its readers see it, like a video."""
    request = view.request
    return facts(view) | {
        "object": "image.job",
        "n": request.n,
        "output_format": request.format,
        "data": _links(view, http),
        "seeds": [request.seed_of(index) for index in range(request.n)],
    }


def _links(view: JobView, http: Request) -> list[dict[str, str]]:
    """The images, once they are all there."""
    if view.status is not Status.COMPLETED:
        return []
    return [
        {"url": content_url(http, "image", view.id, index)} for index in range(len(view.outputs))
    ]
