"""Scheduler, ranks, output manager and supervisor played in process, behind the real links.

By itself it generates nothing and says nothing: tests drive it (`progress`, `deliver`, `say`). With
`automatic` it makes every sample at once, as small real files.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq.asyncio
from PIL import Image

from safelight.models.card import ModelCard, Range
from safelight.request import GenerationRequest, MediaFormat, SampleSpec, Sampling, State, Task
from safelight.store.content import MEDIA_TYPES
from safelight.wire import codec, links
from safelight.wire import messages as m

M = TypeVar("M", bound=m.Message)

PATIENCE_S = 20  # a manager that says nothing for so long has failed

CARD = ModelCard(
    name="lab/tiny",
    family="wan",
    path="/nowhere",
    tasks=("text-to-video", "text-to-image"),
    parameters=("negative_prompt", "guidance_scale", "max_sequence_length", "fps"),
    defaults={
        "width": 64,
        "height": 64,
        "num_frames": 9,
        "fps": 8,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "max_sequence_length": 64,
    },
    width=Range(32, 128, 16),
    height=Range(32, 128, 16),
    num_frames=Range(1, 13, 4),
    max_tokens=10_000,
    patch=(4, 16, 16),
)


def request(
    job_id: str = "video_1", *, n: int = 1, task: Task = "text-to-video", **changes: Any
) -> GenerationRequest:
    sampling = msgspec.convert({**CARD.defaults, "seed": 7}, Sampling)
    still = task == "text-to-image"
    if still:
        sampling = msgspec.structs.replace(sampling, num_frames=1)
    values: dict[str, Any] = {
        "id": job_id,
        "task": task,
        "model": CARD.name,
        "prompt": "a red circle",
        "sampling": sampling,
        "n": n,
        "format": "png" if still else "mp4",
        "created_at": 1_700_000_000.0,
    }
    return GenerationRequest(**(values | changes))


def file_of(spec: SampleSpec, format: MediaFormat | None = None) -> bytes:
    """A small file of the sample's format, or another; a different one for every seed."""
    sampling, format = spec.sampling, format or spec.delivery.format
    if format == "mp4":
        return b"\x00\x00\x00\x18ftypmp42" + str(sampling.seed).encode() * 100
    out = io.BytesIO()
    colour = (sampling.seed % 256, 40, 80)
    Image.new("RGB", (sampling.width, sampling.height), colour).save(out, format)
    return out.getvalue()


def write(spec: SampleSpec, makes: Callable[[SampleSpec], bytes] = file_of) -> bytes:
    """Put the sample's file where it belongs."""
    path = Path(spec.delivery.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = makes(spec)
    path.write_bytes(data)
    return data


class EnginePeer:
    """What the manager talks to. Belongs to one event loop."""

    def __init__(self, run_dir: Path, *, automatic: bool = False, supervises: bool = False) -> None:
        """`supervises`: whether it plays the supervisor too, where there is none."""
        self._supervises = supervises
        self.automatic = automatic
        self.ready = True
        self.makes: Callable[[SampleSpec], bytes] = file_of
        """What the samples become; `clips.made` makes real videos."""
        self.specs: list[SampleSpec] = []
        """Every sample that was submitted, in order."""
        self.tries = True
        """Whether adapters are tried out as soon as that is asked for."""
        self.misfits: dict[str, str] = {}
        """Why an adapter of that name does not fit the model."""
        self.parts = {"transformer": 4}
        """Layers that an adapter for all changes, by component."""
        self._run_dir = run_dir
        self._inbox: defaultdict[type, asyncio.Queue[Any]] = defaultdict(asyncio.Queue)

    async def start(self) -> None:
        self._context: Any = zmq.asyncio.Context()
        self._requests = links.REQUESTS.listen(self._context, self._run_dir)
        self._media = links.MEDIA.connect(self._context, self._run_dir, "output")
        self._tasks = [asyncio.create_task(self._listen())]
        if self._supervises:
            control = links.CONTROL.listen(self._context, self._run_dir)
            self._tasks.append(asyncio.create_task(self._supervise(control)))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._context.destroy(linger=0)

    async def _listen(self) -> None:
        while True:
            _, data = await self._requests.recv_multipart()
            message = links.REQUESTS.decode_up(data)
            if isinstance(message, m.Submit):
                await self._take(message)
            if isinstance(message, m.Attach):
                detail = "serving" if self.ready else "loading"
                await self.say(m.GroupStatus(group=0, ready=self.ready, detail=detail))
            if isinstance(message, m.LoadAdapters) and self.tries:
                await self.try_out(message)
            if isinstance(message, m.Drain) and self.automatic:
                await self.say(m.Drained(model=message.model))
            self._inbox[type(message)].put_nowait(message)

    async def try_out(self, message: m.LoadAdapters) -> None:
        """Say what ranks would: whether they fit, and how many layers they change."""
        names = [one.name for one in message.adapters]
        error = next((self.misfits[name] for name in names if name in self.misfits), None)
        targets = {a.target for a in message.adapters} - {"all"}
        layers = {} if error else dict.fromkeys(targets, 4) or self.parts
        await self.say(m.AdaptersLoaded(ticket=message.ticket, error=error, layers=layers))

    async def _supervise(self, control: Any) -> None:
        """Start and end worker groups, as soon as that is asked for; only while `automatic`."""
        while True:
            identity, data = await control.recv_multipart()
            message = links.CONTROL.decode_up(data)
            if isinstance(message, m.LoadModel | m.UnloadModel) and self.automatic:
                state = "loaded" if isinstance(message, m.LoadModel) else "unloaded"
                answer = m.ModelState(model=message.model, state=state)
                await control.send_multipart([identity, codec.encode(answer)])
            self._inbox[type(message)].put_nowait(message)

    async def _take(self, message: m.Submit) -> None:
        self.specs.extend(message.samples)
        if self.automatic:
            for spec in message.samples:
                await self.progress(spec, State.DENOISING, step=1, eta=0.1)
                await self.deliver(spec)

    async def next(self, kind: type[M]) -> M:
        """The next message of this kind from the manager; waits for it."""
        try:
            found: M = await asyncio.wait_for(self._inbox[kind].get(), PATIENCE_S)
        except TimeoutError:
            raise AssertionError(f"no {kind.__name__} within {PATIENCE_S} s") from None
        return found

    async def submitted(self) -> tuple[SampleSpec, ...]:
        """The samples of the next submission."""
        return (await self.next(m.Submit)).samples

    def silent(self, kind: type) -> bool:
        """Whether no message of this kind is waiting."""
        return self._inbox[kind].empty()

    async def say(self, message: m.FromScheduler) -> None:
        await self._requests.send_multipart([links.MANAGER.encode(), codec.encode(message)])

    async def say_raw(self, data: bytes) -> None:
        await self._requests.send_multipart([links.MANAGER.encode(), data])

    async def report(self, message: m.FromOutput) -> None:
        await self._media.send(codec.encode(message))

    async def progress(
        self, spec: SampleSpec, state: State, *, step: int = 0, eta: float = 1.0, position: int = 0
    ) -> None:
        sample = m.SampleProgress(
            sample=spec.id,
            attempt=spec.attempt,
            state=state,
            step=step,
            steps=spec.sampling.num_inference_steps,
            eta=eta,
            position=position,
        )
        await self.say(m.Progress(samples=(sample,)))

    async def fail(self, spec: SampleSpec, code: str = "oom", message: str = "No memory.") -> None:
        await self.say(
            m.SampleFailed(sample=spec.id, attempt=spec.attempt, code=code, message=message)
        )

    async def preview(self, spec: SampleSpec, number: int, *, step: int) -> bytes:
        """Write a preview of the sample beside its file and say so."""
        data = file_of(spec, "png")
        path = Path(spec.delivery.path).with_name(f"preview-{number}.png")
        path.write_bytes(data)
        await self.report(
            m.PreviewReady(
                sample=spec.id, attempt=spec.attempt, preview=number, step=step, path=str(path)
            )
        )
        return data

    async def deliver(self, spec: SampleSpec) -> m.MediaReady:
        """Write the sample's file and say so."""
        data = write(spec, self.makes)
        clip = spec.delivery.continues
        message = m.MediaReady(
            sample=spec.id,
            attempt=spec.attempt,
            path=spec.delivery.path,
            media_type=MEDIA_TYPES[spec.delivery.format],
            nbytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            width=spec.sampling.width,
            height=spec.sampling.height,
            num_frames=spec.sampling.num_frames + (clip.num_frames - 1 if clip else 0),
        )
        await self.report(message)
        return message
