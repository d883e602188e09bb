"""The request manager: one asyncio object between HTTP (or the `Engine`) and the other processes.

It owns the job store. The committed row is the acceptance: whatever dies after that, the job
reaches one visible end. The row also arbitrates every race (a late file, a cancel that crosses the
last frame): changes that it refuses did not happen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from safelight.config import EngineConfig
from safelight.errors import NotFound, Unavailable
from safelight.manager.adapters import Adapters
from safelight.manager.admission import Admission
from safelight.manager.building import choose
from safelight.manager.channels import Channels
from safelight.manager.database import Database
from safelight.manager.dispatch import Dispatcher
from safelight.manager.events import JobView
from safelight.manager.live import LiveJob
from safelight.manager.media import NONE, Media
from safelight.manager.models import Models
from safelight.manager.reader import JobReader, unknown
from safelight.manager.webhooks import Webhooks
from safelight.models.card import ModelCard
from safelight.request import TASKS, Adapter, GenerationRequest, Output, job_of
from safelight.store.content import ContentStore
from safelight.store.jobs import Job, JobStore, Outcome
from safelight.store.jobs import Output as Stored
from safelight.store.tables import Status
from safelight.wire import messages as m

R = TypeVar("R")

SCHEDULER, OUTPUT = "scheduler", "output"
"""Names of the peers whose loss the manager mends."""


class RequestManager(JobReader):
    """Accepts, hands on, records and reports jobs. All methods belong to one event loop."""

    def __init__(
        self,
        config: EngineConfig,
        cards: Mapping[str, ModelCard],
        run_dir: Path,
        *,
        content_root: Path | None = None,
        plans: Callable[[m.PlanDone], None] | None = None,
    ) -> None:
        """`content_root` replaces the one under the data directory; `plans` sees every plan."""
        super().__init__(ContentStore(content_root or config.data_path / "content"))
        self.cards = cards
        self.models = Models(config, self._send_model)
        self.webhooks = Webhooks(config.webhooks)
        self.load = m.Load(unfinished=0, backlog=0.0)
        self.plans = plans
        self.adapters = Adapters(config, self._send_adapters, self._adapters_in_use)
        self._dispatcher = Dispatcher(
            cards,
            self.content_store,
            self.adapters.store,
            embed_parameters=config.storage.embed_parameters,
        )
        self._data = config.data_path
        self._run_dir = run_dir
        self._admission = Admission(config.scheduling.max_queued_samples)
        self._groups: dict[int, m.GroupStatus] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Open the store, connect, and hand the scheduler what was left unfinished.

        Raises `ConfigError` if another server has the data directory, an adapter that shall be in
        force cannot be had, or a webhook's URL cannot be one.
        """
        # Awaited by the owner: it raises if the manager cannot go on.
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._db = await Database.open(self._data / "jobs.sqlite")
        try:
            await self.adapters.start(self._db)
            await self.webhooks.start(self._db)
            self._channels = Channels(self._run_dir)
        except BaseException:
            await self._db.close()
            raise
        for job_id in await self._db.call(JobStore.buried):
            await self._erase(job_id)
        await self.models.start()  # first: what unfinished jobs need must find room beside them
        await self._resubmit()
        await self.adapters.sweep()
        await self._db.run(partial(self.content_store.sweep, frozenset(self._live)))
        self._spawn(self._hear_scheduler(), self._fell)
        self._spawn(self._hear_output(), self._fell)
        self._spawn(self._hear_supervisor(), self._fell)
        self._spawn(self.webhooks.run(), self._fell)

    async def close(self) -> None:
        """Stop. Unfinished jobs stay in the store; those who wait for them get `Unavailable`."""
        for live in self._live.values():
            live.topic.end(Unavailable("The server is going down; the job continues later."))
        self.adapters.trying.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._channels.close()
        await self._db.close()

    # -------------------------------------------------------------------------- what callers do

    async def submit(
        self,
        request: GenerationRequest,
        *,
        media: Media = NONE,
        destinations: Sequence[Path] | None = None,
        clip: Path | None = None,
    ) -> JobView:
        """Accept a job. `media` are its input pictures, `destinations` absolute paths for its
        files, one per output, `clip` is the finished video that it continues.

        Raises `Overloaded`, `InvalidRequest`, or `NotFound` if the clip is gone or there is no such
        adapter; when it returns, the job is on disk.
        """
        # Shielded: a caller that goes away must not leave a committed row that nobody runs.
        accepting = self._accept(request, media, destinations, clip)
        return await asyncio.shield(self._spawn(accepting))

    async def cancel(self, job_id: str) -> JobView:
        """Stop a job; one that has ended stays as it is. Raises `NotFound`."""
        await self._end(job_id, Status.CANCELLED, "cancelled", "The job was cancelled.")
        return await self.job(job_id)

    def abandon(self, job_id: str) -> None:
        """Stop a job that nobody waits for any more. Does not wait itself: whoever is being
        cancelled can say it."""
        text = "The client left before the job was done."
        self._spawn(self._end(job_id, Status.CANCELLED, "cancelled", text), self._fell)

    async def delete(self, job_id: str) -> None:
        """Stop a job if it runs, remove its row and its files. Raises `NotFound`."""
        job = await self._db.call(JobStore.bury, job_id)
        if job is None:
            raise unknown(job_id)
        text = "The job was deleted."
        await self._settle(
            msgspec.structs.replace(
                job, status=Status.CANCELLED, error_code="cancelled", error_message=text
            )
        )
        await self._erase(job_id)

    async def flush_caches(self) -> None:
        """Let all ranks forget what they have kept of prompts and pictures, before they begin
        anything that is accepted later."""
        await self._channels.send(m.FlushCaches())

    async def peer_restarted(self, process: str) -> None:
        """Another process died and is back without its memory: hand it what it needs again."""
        if process == SCHEDULER:
            self._groups.clear()
            await self._resubmit()
            await self.models.repeat()
            await self.adapters.trying.repeat()
        elif process == OUTPUT:
            # All that have no file: the scheduler knows which of them had been handed over.
            lost = tuple(s for live in self._live.values() for s in live.missing())
            if lost:
                await self._channels.send(m.Redeliver(samples=lost))

    @property
    def groups(self) -> tuple[m.GroupStatus, ...]:
        """The newest status of every worker group that has reported, by index."""
        return tuple(self._groups[index] for index in sorted(self._groups))

    @property
    def ready(self) -> bool:
        """Whether a worker group serves, or will as soon as somebody asks: no model is loaded."""
        return any(group.ready for group in self._groups.values()) or self.models.idle

    @property
    def readiness(self) -> str:
        """Why `ready`, or why not, for people."""
        if self.models.idle:
            return "no model is loaded; the next request loads one"
        if not self._groups:
            return "no worker group has reported yet"
        states = {True: "serving", False: "not serving"}
        return "; ".join(f"group {g.group}: {states[g.ready]}" for g in self.groups)

    # -------------------------------------------------------------------------------- accepting

    async def _accept(
        self,
        request: GenerationRequest,
        media: Media,
        destinations: Sequence[Path] | None,
        clip: Path | None,
    ) -> JobView:
        now = time.monotonic()
        etas = [eta for live in self._live.values() for eta in live.etas(now)]
        with self._admission.entering(request.n, etas, self.load.backlog):
            async with self.adapters.frozen(request) as frozen:
                job = await self._commit(frozen, media, destinations, clip)
                live = self._live[request.id] = LiveJob(job, (), self._journal(job))
        view = live.view()
        await self._dispatch(live)
        await self.models.want(request.model)
        return view

    async def _commit(
        self,
        request: GenerationRequest,
        media: Media,
        destinations: Sequence[Path] | None,
        clip: Path | None,
    ) -> Job:
        """What it is made from, then its row. Raises `Unavailable` if there is no place for it."""
        places = None if destinations is None else [str(path) for path in destinations]
        files = media.files(request.inputs)
        try:
            if places is None:
                await self._db.run(partial(self.content_store.prepare, request.id))
            if files:  # large: nobody's row shall wait for them
                await asyncio.to_thread(self.content_store.keep, files)
            if clip is not None and request.continues is not None:
                adopted = {request.continues.path: clip}
                await asyncio.to_thread(self.content_store.adopt, adopted)
        except NotFound:
            await self._db.run(partial(self.content_store.forget, request.material))
            raise
        except OSError as failure:
            await self._db.run(partial(self.content_store.forget, request.material))
            text = f"The job cannot be kept: {failure.strerror}."
            raise Unavailable(text, code="storage_failed") from failure
        try:
            return await self._db.call(JobStore.add, request, places)
        except Unavailable:  # nobody will ask for what is there already
            await self._db.run(partial(self.content_store.delete, request.id))
            raise

    async def _dispatch(self, live: LiveJob) -> None:
        """Hand the scheduler every sample of the job that has no file yet."""
        for message in self._dispatcher.messages(live):
            await self._channels.send(message)

    async def _resubmit(self) -> None:
        """A new attempt of everything unfinished; what older attempts still send is stale."""
        await self._channels.send(m.Attach())
        jobs = await self._db.insist(lambda: self._db.call(JobStore.next_attempt))
        for job in jobs:  # all of them before the next await, in which some may end
            if (live := self._live.get(job.request.id)) is not None:
                live.begin(job.attempt)
            else:
                outputs = self._absolute(job.outputs)
                self._live[job.request.id] = LiveJob(job, outputs, self._journal(job))
        for job in jobs:
            live = self._live.get(job.request.id)
            if live is not None and job.request.model not in self.cards:
                text = f"The server was started again with {', '.join(self.cards)}."
                await self._end(job.request.id, Status.FAILED, "model_not_served", text)
            elif live is not None:
                if live.destinations is None:
                    await self._db.run(partial(self.content_store.prepare, job.request.id))
                await self._dispatch(live)
                await self.models.want(job.request.model)

    # ------------------------------------------------------------------ what the scheduler says

    async def _hear_scheduler(self) -> None:
        async for message in self._channels.from_scheduler():
            match message:
                case m.Progress():
                    self._progress(message.samples)
                case m.SampleFailed():
                    await self._sample_failed(message)
                case m.SampleCancelled():
                    await self._sample_cancelled(message)
                case m.PlanDone():
                    if self.plans is not None:
                        self.plans(message)
                case m.GroupStatus():
                    self._groups[message.group] = message
                    if message.ready:
                        await self.models.serves(message.model)
                        self._spawn(self.adapters.serves(message.model), self._fell)
                case m.AdaptersLoaded():
                    self.adapters.trying.hear(message)
                case m.Drained():
                    await self.models.drained(message.model)
                case m.Load():
                    self.load = message

    async def _hear_supervisor(self) -> None:
        async for message in self._channels.from_supervisor():
            await self.models.hear(message)
            if message.state == "failed":
                await self._fail_all(message.model, message.detail)

    async def _fail_all(self, model: str, detail: str) -> None:
        """A model cannot be loaded: nobody who waits for it needs to wait any longer."""
        text = f"The model {model} could not be loaded: {detail}"
        for live in list(self._live.values()):
            if live.request.model == model:
                await self._end(live.request.id, Status.FAILED, "model_load_failed", text)

    async def _send_model(self, message: m.Drain | m.LoadModel | m.UnloadModel) -> None:
        if isinstance(message, m.Drain):
            await self._channels.send(message)
        else:
            await self._channels.ask(message)

    def card(
        self, name: str | None, output: Output | None = None, media: Media = NONE
    ) -> ModelCard:
        """The card of a model; without a name, of the first that can do it. Raises
        `ModelNotFound`."""
        return choose(self.cards, name, output, media)

    async def _send_adapters(self, message: m.LoadAdapters | m.ForgetAdapters) -> None:
        await self._channels.send(message)

    def _adapters_in_use(self) -> Iterator[Adapter]:
        return (adapter for live in self._live.values() for adapter in live.request.adapters)

    def _progress(self, samples: Sequence[m.SampleProgress]) -> None:
        now, moved = time.monotonic(), set()
        for progress in samples:
            live = self._known(progress.sample, progress.attempt)
            if live is not None:
                live.take(progress, now)
                moved.add(live)
        begun = [live for live in moved if live.started_at is None and live.begun]
        if begun:
            at = time.time()
            for live in begun:
                live.started_at = at
            ids = [live.request.id for live in begun]
            begin = partial(self._db.call, JobStore.start, ids, at)
            self._spawn(self._db.insist(begin), self._fell)
        for live in moved:
            live.changed()

    def _known(self, sample: str, attempt: int) -> LiveJob | None:
        live = self._live.get(job_of(sample))
        return live if live is not None and live.knows(sample, attempt) else None

    async def _sample_failed(self, failure: m.SampleFailed | m.MediaFailed) -> None:
        """One failing sample fails its job: half an answer is none."""
        if (live := self._known(failure.sample, failure.attempt)) is not None:
            await self._end(
                live.request.id, Status.FAILED, failure.code, failure.message, live.attempt
            )

    async def _sample_cancelled(self, message: m.SampleCancelled) -> None:
        """The scheduler stopped a sample of a job that we had not cancelled."""
        if (live := self._known(message.sample, message.attempt)) is not None:
            text = "The scheduler stopped the job."
            await self._end(live.request.id, Status.CANCELLED, "cancelled", text, live.attempt)

    # -------------------------------------------------------------- what the output manager says

    async def _hear_output(self) -> None:
        async for messages in self._channels.from_output():
            for message in messages:  # before the files that may end their jobs
                if isinstance(message, m.PreviewReady):
                    await self._preview(message)
            ready = [message for message in messages if isinstance(message, m.MediaReady)]
            if ready:
                await self._record(ready)
            for message in messages:
                if isinstance(message, m.MediaFailed):
                    await self._media_failed(message)

    async def _preview(self, message: m.PreviewReady) -> None:
        if (live := self._known(message.sample, message.attempt)) is not None:
            live.show(message)
        elif await self._db.call(JobStore.get, job_of(message.sample)) is None:
            # Deleted while it was written: nothing else would remove it.
            await self._db.run(partial(self.content_store.discard, Path(message.path)))

    async def _media_failed(self, failure: m.MediaFailed) -> None:
        if failure.preview is not None:
            return
        if failure.code == m.FRAMES_LOST:
            # The rank ended before its frames were opened. They are made again: by the scheduler
            # when it hears of the rank's end, or, if the rank is there after all, on this request.
            await self._channels.send(m.Redeliver(samples=(failure.sample,)))
        else:
            await self._sample_failed(failure)

    async def _record(self, ready: Sequence[m.MediaReady]) -> None:
        """Commit finished files, then let everybody forget the samples."""
        reports = [(self._output(message), message.attempt) for message in ready]
        record = partial(self._db.call, JobStore.record, reports, time.time())
        results = await self._db.insist(record)
        forget = []
        for message, (outcome, job) in zip(ready, results, strict=True):
            if outcome is Outcome.STALE:
                continue  # its newer attempt makes the same file again, and must not be forgotten
            forget.append(message.sample)
            if outcome is Outcome.GONE:
                await self._db.run(partial(self.content_store.discard, Path(message.path)))
            elif job is not None and outcome is not Outcome.DUPLICATE:
                self._note(job)
                if outcome is Outcome.COMPLETED:
                    await self._settle(job)
        if forget:
            await self._channels.send(m.Written(samples=tuple(forget)))

    def _output(self, message: m.MediaReady) -> Stored:
        return Stored(
            sample=message.sample,
            path=self.content_store.stored(Path(message.path)),
            media_type=message.media_type,
            nbytes=message.nbytes,
            sha256=message.sha256,
            width=message.width,
            height=message.height,
            num_frames=message.num_frames,
        )

    def _note(self, job: Job) -> None:
        """Take over the outputs of a row that has new ones."""
        if (live := self._live.get(job.request.id)) is not None:
            for output in self._absolute(job.outputs):
                live.record(output)
            live.changed()

    # ----------------------------------------------------------------------------------- ending

    async def _end(
        self,
        job_id: str,
        status: Literal[Status.FAILED, Status.CANCELLED],
        code: str,
        message: str,
        attempt: int | None = None,
    ) -> None:
        """End a job durably, unless its row says that it has ended otherwise."""
        finish = partial(JobStore.finish, code=code, message=message, attempt=attempt)
        end = partial(self._db.call, finish, job_id, status, time.time())
        job = await self._db.insist(end)
        if job is not None:
            await self._settle(job)

    async def _settle(self, job: Job) -> None:
        """The row is final: stop what still runs and tell those who wait."""
        self.webhooks.wake()
        if (live := self._live.pop(job.request.id, None)) is None:
            return
        running = live.missing()
        await self._db.run(partial(self._tidy, job))
        live.topic.end(live.ended(job, self._absolute(job.outputs)))
        if running:
            await self._channels.send(m.Cancel(samples=running))
        if job.request.adapters:
            await self.adapters.sweep()

    def _tidy(self, job: Job) -> None:
        """What the job was made from: pictures of a finished video serve its remixes."""
        request = job.request
        ours = job.status is Status.COMPLETED and job.destinations is None
        if ours and request.task in TASKS["video"]:
            self.content_store.retain([picture.path for picture in request.inputs.pictures])
        self.content_store.forget(request.material)

    async def _erase(self, job_id: str) -> None:
        """Files first, then the row: if this is cut short, the next start repeats it."""
        await self._db.run(partial(self.content_store.delete, job_id))
        await self._db.call(JobStore.forget, job_id)

    # ---------------------------------------------------------------------------------- helpers

    def _spawn(
        self,
        work: Coroutine[Any, Any, R],
        check: Callable[[asyncio.Task[R]], None] | None = None,
    ) -> asyncio.Task[R]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if check is not None:
            task.add_done_callback(check)
        return task

    def _fell(self, task: asyncio.Task[Any]) -> None:
        """A task that must not end has: without it the manager is deaf, so say so."""
        if not task.cancelled() and (failure := task.exception()) and not self.broken.done():
            self.broken.set_exception(failure)
