"""What all jobs have in common that clients poll and list."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import Header, Query, Request, Response

from safelight.entrypoint.openai import parsing
from safelight.manager.events import JobView
from safelight.manager.manager import RequestManager
from safelight.manager.reader import Page
from safelight.request import Output
from safelight.store.tables import Status

MIN_POLL_MS, MAX_POLL_MS = 50, 1000
UNKNOWN_ETA_S = 0.5
MAX_WAIT_S = 60

Prefer = Annotated[
    str | None,
    Header(description=f"`wait=N` (RFC 7240): hold the answer, {MAX_WAIT_S} seconds at most."),
]


Limit = Annotated[int, Query(ge=0, le=100)]
After = Annotated[str | None, Query(description="`last_id` of the page before.")]
Order = Annotated[Literal["asc", "desc"], Query(description="By time of creation.")]


def patience(prefer: str | None) -> int:
    """Seconds of a `Prefer: wait=N` header; 0 without one. What cannot be read is ignored, as RFC
    7240 wants."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})", prefer or "", re.IGNORECASE)
    return min(MAX_WAIT_S, int(found[1])) if found else 0


def wants_async(prefer: str | None) -> bool:
    """Whether a `Prefer` header asks for an answer before the work is done."""
    return re.search(r"(?:^|[,;\s])respond-async(?:$|[,;\s])", prefer or "", re.I) is not None


async def waited(
    manager: RequestManager, view: JobView, prefer: str | None, response: Response
) -> JobView:
    """The job as it is after what `Prefer: wait=N` asks for. Raises `NotFound` if it is deleted
    meanwhile."""
    if not (seconds := patience(prefer)) or view.status.final:
        return view
    response.headers["preference-applied"] = f"wait={seconds}"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await manager.wait(view.id)
    return await manager.job(view.id)


def say_when_to_ask(view: JobView, response: Response) -> None:
    """The SDK takes the interval of its first poll."""
    if not view.status.final:
        eta = UNKNOWN_ETA_S if view.eta is None else view.eta
        wait = min(MAX_POLL_MS, max(MIN_POLL_MS, round(eta * 1000 / 2)))
        response.headers["openai-poll-after-ms"] = str(wait)


def listed(page: Page, shown: Callable[[JobView], dict[str, Any]]) -> dict[str, Any]:
    """A page of jobs; the SDKs ask for the next by `last_id`."""
    ids = [view.id for view in page.views]
    return {
        "object": "list",
        "data": [shown(view) for view in page.views],
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": page.has_more,
    }


def facts(view: JobView) -> dict[str, Any]:
    """What is said of every job, whatever it makes; the models in `schema` have the order."""
    request, sampling = view.request, view.request.sampling
    always = {
        "id": view.id,
        "model": request.model,
        "status": status_of(view),
        "progress": view.progress,
        "created_at": int(view.created_at),
        "completed_at": None if view.completed_at is None else int(view.completed_at),
        "prompt": request.prompt,
        "size": f"{sampling.width}x{sampling.height}",
        "error": error_of(view),
        "seed": request.seed_of(0),
        "num_inference_steps": sampling.num_inference_steps,
        "guidance_scale": sampling.guidance_scale,
        "negative_prompt": sampling.negative_prompt,
        "steps_done": view.steps_done,
    }
    known = {
        "eta": view.eta,
        "queue_position": view.position,
        "warnings": parsing.echo(request, "warnings", list[str]) or None,
    }
    return always | {key: value for key, value in known.items() if value is not None}


def content_url(http: Request, kind: Output, job_id: str, index: int) -> str:
    """Of an output; absolute, as clients need it, by the name under which this client reached the
    server."""
    return f"{http.base_url}v1/{kind}s/{job_id}/content?index={index}"


def status_of(view: JobView) -> str:
    """Clients know four states; a cancelled job has an error that says so."""
    return "failed" if view.status is Status.CANCELLED else str(view.status)


def error_of(view: JobView) -> dict[str, str] | None:
    if view.error_code is None:
        return None
    return {"code": view.error_code, "message": view.error_message or ""}
