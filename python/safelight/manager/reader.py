"""Jobs as their readers see them: the rows, and what is remembered of those that are unfinished."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import msgspec

from safelight.errors import NotFound
from safelight.manager.database import Database
from safelight.manager.events import JobView
from safelight.manager.live import LiveJob, ended_view, last_event
from safelight.request import Task
from safelight.store.content import ContentStore
from safelight.store.jobs import Job, JobStore, Order
from safelight.store.jobs import Output as Stored
from safelight.store.journal import JobEvent, Journal, Preview


class Page(msgspec.Struct, frozen=True):
    views: tuple[JobView, ...]
    has_more: bool


class JobReader:
    """What may be asked of jobs; it changes none."""

    _db: Database

    def __init__(self, content: ContentStore) -> None:
        self.content_store = content
        self._live: dict[str, LiveJob] = {}
        """Those that are unfinished, by id."""

    async def job(self, job_id: str) -> JobView:
        """The job as it is now. Raises `NotFound`."""
        if (live := self._live.get(job_id)) is not None:
            return live.view()
        return self._view(await self._row(job_id))

    async def wait(self, job_id: str) -> JobView:
        """The job once it has ended. Raises `NotFound`, and `Unavailable` at shutdown."""
        if (live := self._live.get(job_id)) is not None:
            return await live.topic.final()
        return await self.job(job_id)

    async def subscribe(self, job_id: str) -> AsyncGenerator[JobView]:
        """The job now and after every change until it ended. Raises `NotFound`."""
        if (live := self._live.get(job_id)) is None:
            yield await self.job(job_id)
            return
        async for view in live.topic.follow(live.view):
            yield view

    async def events(self, job_id: str, after: int = 0) -> AsyncGenerator[JobEvent]:
        """What has happened to the job behind event `after`, and what happens until it ended.

        Raises `NotFound`, and `Unavailable` at shutdown.
        """
        live = self._live.get(job_id)
        past = await self._past(job_id) if live is None else live.events
        seen = 0 if after > len(past) else after  # of another life of this server
        if live is None:
            for event in past[seen:]:
                yield event
            return
        async for _ in live.topic.pulses():
            for event in live.events[seen:]:
                yield event
                seen = event.number

    async def preview(self, job_id: str, index: int, number: int) -> Preview | None:
        """The newest of that number of a sample. Raises `NotFound` if there is no such job."""
        live = self._live.get(job_id)
        events = await self._past(job_id) if live is None else live.events
        shown = (event.preview for event in reversed(events) if event.preview is not None)
        return next((p for p in shown if (p.sample, p.number) == (index, number)), None)

    async def _past(self, job_id: str) -> Sequence[JobEvent]:
        """Of a job that has ended."""
        job = await self._row(job_id)
        events = await self._db.run(self._journal(job).read)
        if events and events[-1].last:
            return events
        return [*events, last_event(self._view(job), len(events) + 1)]

    async def list(
        self,
        tasks: Sequence[Task],
        *,
        limit: int = 20,
        after: str | None = None,
        order: Order = "desc",
    ) -> Page:
        """A page of jobs by order of acceptance. Raises `NotFound` if `after` is not known."""
        page = await self._db.call(JobStore.list, tasks, limit=limit, after=after, order=order)
        return Page(tuple(self._view(job) for job in page.jobs), page.has_more)

    async def _row(self, job_id: str) -> Job:
        job = await self._db.call(JobStore.get, job_id)
        if job is None:
            raise unknown(job_id)
        return job

    def _view(self, job: Job) -> JobView:
        """A row, with what is remembered of it if it is still live."""
        if (live := self._live.get(job.request.id)) is not None:
            return live.view()
        return ended_view(job, self._absolute(job.outputs))

    def _journal(self, job: Job) -> Journal:
        """Of its events; jobs whose caller chose the places of their files have none."""
        if job.destinations is not None:
            return Journal(None)
        return Journal(self.content_store.journal(job.request.id))

    def _absolute(self, outputs: Sequence[Stored]) -> tuple[Stored, ...]:
        locate = self.content_store.located
        return tuple(msgspec.structs.replace(o, path=str(locate(o.path))) for o in outputs)


def unknown(job_id: str) -> NotFound:
    """The error for a job that is not there."""
    return NotFound(f"There is no job '{job_id}'.", param="id")
