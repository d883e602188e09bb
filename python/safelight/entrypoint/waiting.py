"""Requests that wait for their job: until it has ended, or until the client has gone."""

from __future__ import annotations

import asyncio

from fastapi import Request

from safelight import log
from safelight.errors import GenerationFailed, JobCancelled
from safelight.manager.events import JobView
from safelight.manager.manager import RequestManager
from safelight.store.tables import Status

CLIENT_CLOSED = 499  # nginx's number; nobody is there to read it

logger = log.get(__name__)


async def finished(manager: RequestManager, job_id: str, http: Request) -> JobView | None:
    """The ended job; None if the client left first, and then the job is cancelled."""
    job = asyncio.ensure_future(manager.wait(job_id))
    left = asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait({job, left}, return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            return await job
        logger.info("the client left", job=job_id)
        await manager.cancel(job_id)
        return None
    finally:
        job.cancel()
        left.cancel()


async def _disconnected(http: Request) -> None:
    """Returns when the client has gone; the body was read before."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def raise_unless_completed(view: JobView) -> None:
    """Raises `GenerationFailed` or `JobCancelled`."""
    if view.status is Status.COMPLETED:
        return
    message = view.error_message or f"The job was {view.status}."
    if view.status is Status.CANCELLED:
        raise JobCancelled(message)
    raise GenerationFailed(message, code=view.error_code)
