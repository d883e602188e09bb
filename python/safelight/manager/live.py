"""What the manager remembers of a job while it is unfinished."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from safelight.manager.events import JobView, Topic
from safelight.request import State, index_of, sample_id
from safelight.store.jobs import Job, Output
from safelight.store.journal import JobEvent, Journal, Kind, Preview
from safelight.store.tables import Status
from safelight.wire.messages import PreviewReady, SampleProgress

NOWHERE = Journal(None)


@dataclass
class _Sample:
    steps: int
    state: State = State.QUEUED
    step: int = 0
    ends_at: float | None = None
    """Monotonic seconds."""
    position: int | None = None

    def eta(self, now: float) -> float | None:
        return None if self.ends_at is None else max(0.0, self.ends_at - now)


_ORDER = tuple(State)


class LiveJob:
    """An accepted, unfinished job: its row's facts and the newest progress of its samples."""

    def __init__(self, job: Job, outputs: Iterable[Output], journal: Journal = NOWHERE) -> None:
        """`outputs` are those already recorded, with absolute paths. What `journal` has is
        continued."""
        self.request = job.request
        self.destinations = job.destinations
        self.topic = Topic()
        self.started_at = job.started_at
        self.outputs = {output.sample: output for output in outputs}
        self.attempt = job.attempt
        self._samples: dict[str, _Sample] = {}
        self._journal = journal
        self.events = list(journal.read())
        """Everything that has happened, oldest first."""
        self.begin(job.attempt)

    def begin(self, attempt: int) -> None:
        """Forget the progress of older attempts; what is recorded stays."""
        self.attempt = attempt
        steps = self.request.sampling.num_inference_steps
        names = [sample_id(self.request.id, i) for i in range(self.request.n)]
        self._samples = {name: _Sample(steps) for name in names}
        for name in self.outputs:
            self._complete(name)
        self.changed()

    def take(self, progress: SampleProgress, now: float) -> None:
        sample = self._samples[progress.sample]
        if progress.sample in self.outputs:
            return  # the file is recorded; whatever the scheduler still says is older
        sample.state, sample.step = progress.state, progress.step
        sample.steps, sample.position = progress.steps, progress.position
        sample.ends_at = now + progress.eta

    def changed(self) -> None:
        """Tell those who follow it what there is to tell."""
        event = self._event("queued" if self.started_at is None else "progress", self.view())
        if not self.events or _facts(event) != _facts(self.events[-1]):
            self._tell(event)
        self.topic.pulse()

    def show(self, message: PreviewReady) -> None:
        """A preview is there."""
        preview = Preview(
            sample=index_of(message.sample),
            number=message.preview,
            step=message.step,
            path=message.path,
        )
        self._tell(self._event("preview", self.view(), preview))
        self.topic.pulse()

    def _tell(self, event: JobEvent) -> None:
        self.events.append(event)
        self._journal.append(event)

    def _event(self, kind: Kind, view: JobView, preview: Preview | None = None) -> JobEvent:
        stage = min((s.state for s in self._samples.values()), key=_ORDER.index)
        return event_of(view, kind, len(self.events) + 1, stage=stage, preview=preview)

    def record(self, output: Output) -> None:
        self.outputs[output.sample] = output
        self._complete(output.sample)

    def _complete(self, name: str) -> None:
        sample = self._samples[name]
        sample.state, sample.step = State.COMPLETED, sample.steps
        sample.ends_at = sample.position = None

    def knows(self, sample: str, attempt: int) -> bool:
        """Whether news of this sample concern what runs now."""
        return attempt == self.attempt and sample in self._samples

    @property
    def begun(self) -> bool:
        return any(s.state is not State.QUEUED for s in self._samples.values())

    def missing(self) -> tuple[str, ...]:
        """Samples whose file is not recorded yet."""
        return tuple(name for name in self._samples if name not in self.outputs)

    def etas(self, now: float) -> list[float | None]:
        """Seconds to the end of every unfinished sample."""
        return [self._samples[name].eta(now) for name in self.missing()]

    def view(self) -> JobView:
        waiting = [self._samples[name] for name in self.missing()]
        etas = [eta for eta in self.etas(time.monotonic()) if eta is not None]
        positions = [s.position for s in waiting if s.position is not None]
        done = sum(s.step for s in self._samples.values())
        total = sum(s.steps for s in self._samples.values())
        return JobView(
            request=self.request,
            status=Status.QUEUED if self.started_at is None else Status.IN_PROGRESS,
            progress=min(99, 100 * done // total),
            steps_done=done,
            steps_total=total,
            eta=max(etas) if len(etas) == len(waiting) and etas else None,
            position=min(positions, default=None),
            outputs=tuple(o for n in self._samples if (o := self.outputs.get(n)) is not None),
            error_code=None,
            error_message=None,
            started_at=self.started_at,
            completed_at=None,
            attempt=self.attempt,
        )

    def ended(self, job: Job, outputs: tuple[Output, ...]) -> JobView:
        """The last view, and the last event: the row decides, the progress is what was reached."""
        view = ended_view(job, outputs, sum(s.step for s in self._samples.values()))
        self._tell(last_event(view, len(self.events) + 1))
        return view


def ended_view(job: Job, outputs: tuple[Output, ...], done: int | None = None) -> JobView:
    """A job that is not live. `done` counts its steps, where somebody remembers them."""
    steps = job.request.sampling.num_inference_steps
    total = steps * job.request.n
    completed = job.status is Status.COMPLETED
    if completed or done is None:
        done = steps * len(outputs)
    return JobView(
        request=job.request,
        status=job.status,
        progress=100 if completed else min(99, 100 * done // total),
        steps_done=done,
        steps_total=total,
        eta=None,
        position=None,
        outputs=outputs,
        error_code=job.error_code,
        error_message=job.error_message,
        started_at=job.started_at,
        completed_at=job.completed_at,
        attempt=job.attempt,
    )


def event_of(
    view: JobView,
    kind: Kind,
    number: int,
    *,
    stage: State,
    preview: Preview | None = None,
) -> JobEvent:
    """What a view says, as event `number` of its job."""
    return JobEvent(
        number=number,
        kind=kind,
        at=time.time(),
        status=view.status,
        progress=view.progress,
        steps_done=view.steps_done,
        steps_total=view.steps_total,
        attempt=view.attempt,
        stage=stage,
        eta=view.eta,
        position=view.position,
        preview=preview,
        error_code=view.error_code,
        error_message=view.error_message,
    )


def last_event(view: JobView, number: int) -> JobEvent:
    """How the job of an ended view ended."""
    if view.status is Status.COMPLETED:
        return event_of(view, "completed", number, stage=State.COMPLETED)
    stage = State.CANCELLED if view.status is Status.CANCELLED else State.FAILED
    return event_of(view, "failed", number, stage=stage)


def _facts(event: JobEvent) -> tuple[object, ...]:
    """What makes two events different: a new prediction alone is no news."""
    return (event.status, event.stage, event.steps_done, event.position, event.attempt)
