"""Executes plans: the sessions of a rank, and what may go wrong with one of them."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from safelight import log
from safelight.errors import GenerationFailed
from safelight.models import prompts
from safelight.request import Adapter, SampleSpec
from safelight.wire.messages import (
    OUT_OF_MEMORY,
    Adapt,
    Decode,
    Drop,
    Encode,
    Plan,
    SampleFailure,
    Step,
)

if TYPE_CHECKING:
    from safelight.models.family import Clip, Family, Frames
    from safelight.parallel.mesh import Mesh

logger = log.get(__name__)

MODEL_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    GenerationFailed,
    LookupError,
    OSError,
    RuntimeError,  # includes torch.OutOfMemoryError
    TypeError,
    ValueError,
)
"""What model code raises for one bad sample. Anything else ends the rank."""


class Executor:
    """The samples a rank holds. `deliver(spec, frames)` is called on rank 0 for every decoded one.

    The ranks of a mesh execute the same plans. What fails must fail on all of them alike, or
    `RanksDiverged` ends the rank: see `Mesh.together`.
    """

    def __init__(
        self,
        family: Family,
        mesh: Mesh,
        deliver: Callable[[SampleSpec, Frames | Clip], None],
        show: Callable[[Any, Frames], None] | None = None,
    ) -> None:
        """`show(session, frame)` is called on rank 0 for every preview; without it none is made."""
        self._family = family
        self._mesh = mesh
        self._deliver = deliver
        self._show = show
        self._sessions: dict[str, Any] = {}
        self._decoded: dict[str, Frames | Clip | None] = {}
        """Of the running plan; frames are on rank 0 only."""
        self._seq = 0
        """Number of the running plan."""
        self.acting: tuple[str, ...] = ()
        """Samples it works on, or that it ended with."""
        self.previewing = 0.0
        """Seconds of the last step that went into previews."""
        self.adapting = 0.0
        """Seconds of the last plan that went into adapters."""
        self.layers: dict[str, int] = {}
        """What the adapters of the last plan change, if it was an `Adapt`: layers by component."""
        self._adapted = False
        """Whether any sample had adapters; families without them are not asked otherwise."""
        self._unwanted: set[str] = set()
        """Digests of adapters to be dropped once no sample has them."""

    def steps(self, plan: Plan) -> dict[str, int]:
        """The steps that the samples which `plan` has begun will take; empty for other plans."""
        begun = plan.samples if isinstance(plan, Encode) else ()
        return {s.id: self._sessions[s.id].steps for s in begun if s.id in self._sessions}

    @property
    def samples(self) -> list[str]:
        """Ids of the samples it holds."""
        return list(self._sessions)

    def release(self, samples: Sequence[str]) -> None:
        """Forget samples. Unknown ones are ignored."""
        for name in samples:
            self._sessions.pop(name, None)
        if self._unwanted:
            self._drop_adapters()

    @torch.inference_mode()
    def execute(self, plan: Plan) -> tuple[SampleFailure, ...]:
        """Run one plan. Samples that fail, fail alone, and are dropped."""
        failures: dict[str, SampleFailure] = {}
        self._seq, self.adapting, self.layers = plan.seq, 0.0, {}
        if isinstance(plan, Encode):
            for spec in plan.samples:
                self._guard(spec.id, failures, self._begin, spec)
        elif isinstance(plan, Step):
            self._batch(plan.samples, failures, self._step)
            self._preview(plan.samples)
        elif isinstance(plan, Decode):
            self._decode_and_deliver(plan.samples, failures)
        elif isinstance(plan, Adapt):
            self._adapt(plan, failures)
        elif isinstance(plan, Drop) and plan.caches:
            _flush_caches()
        self.release(tuple(failures))
        return tuple(failures.values())

    def _guard(
        self,
        sample: str,
        failures: dict[str, SampleFailure],
        act: Callable[[Any], None],
        argument: Any,
    ) -> None:
        try:
            act(argument)
        except MODEL_ERRORS as failure:
            logger.warning("sample failed", sample=sample, exc_info=True)
            failures[sample] = told(sample, failure)

    def _batch(
        self,
        samples: Sequence[str],
        failures: dict[str, SampleFailure],
        act: Callable[[list[Any]], None],
    ) -> None:
        """`act` on all at once; if that fails, on each alone, to find the one at fault."""
        for name in samples:
            if name not in self._sessions:
                # It failed in the plan before, or the scheduler is mistaken: never say "done".
                text = "The rank does not hold this sample."
                failures[name] = SampleFailure(sample=name, code="not_held", message=text)
        sessions = [self._sessions[s] for s in samples if s in self._sessions]
        before = {s.spec.id: s.index for s in sessions}
        if len(sessions) > 1:
            try:
                act(sessions)
                return
            except MODEL_ERRORS:
                logger.warning("batch failed, trying one by one", size=len(sessions), exc_info=True)
        for session in sessions:
            # One that got its step, or was decoded, before the batch failed has had its turn.
            name = session.spec.id
            if session.index == before[name] and name not in self._decoded:
                self._guard(session.spec.id, failures, act, [session])

    @contextlib.contextmanager
    def _together(self, *samples: str) -> Iterator[None]:
        """Work of all ranks; what fails in it fails on all of them, or this rank ends."""
        self.acting = samples
        with self._mesh.together(self._seq):
            yield

    def _begin(self, spec: SampleSpec) -> None:
        with self._together(spec.id):
            self._wear(spec)
            self._save_memory(spec)
            conditioning = self._family.encode(spec)
            session = self._family.begin(spec, conditioning)
            if session.steps < 1:
                raise GenerationFailed("The sampler leaves it no denoising step.", code="no_steps")
            self._sessions[spec.id] = session

    def _step(self, sessions: list[Any]) -> None:
        with self._together(*(session.spec.id for session in sessions)):
            for alike in _alike(sessions):
                self._wear(alike[0].spec)
                self._family.step(alike)

    def _wear(self, spec: SampleSpec) -> None:
        """Have the adapters of `spec` in force, and no others."""
        self._adapted = self._adapted or bool(spec.adapters)
        if self._adapted:
            started = time.monotonic()
            self._unwanted -= {adapter.digest for adapter in spec.adapters}
            self._family.lora.wear(spec.adapters, merged=spec.merged)
            self.adapting += time.monotonic() - started

    def _save_memory(self, spec: SampleSpec) -> None:
        """Merged weights are kept while only such samples come, and while one is there."""
        held = (session.spec.merged for session in self._sessions.values())
        if self._adapted and not spec.merged and not any(held):
            self._family.lora.forget_merged()

    def _adapt(self, plan: Adapt, failures: dict[str, SampleFailure]) -> None:
        started = time.monotonic()
        for adapter in plan.load:
            self._guard(adapter.digest, failures, self._load_adapter, adapter)
        self._unwanted |= {*plan.drop} - {adapter.digest for adapter in plan.load}
        self._drop_adapters()
        self.adapting = time.monotonic() - started

    def _load_adapter(self, adapter: Adapter) -> None:
        self._unwanted.discard(adapter.digest)
        for part, count in self._family.lora.load(adapter).items():
            self.layers[part] = self.layers.get(part, 0) + count

    def _drop_adapters(self) -> None:
        """Those that nobody wants and no sample has."""
        held = {a.digest for session in self._sessions.values() for a in session.spec.adapters}
        for digest in sorted(self._unwanted - held):
            self._family.lora.drop(digest)
        self._unwanted &= held

    def _preview(self, samples: Sequence[str]) -> None:
        """Pictures of the estimates that are due, by rank 0. One that fails is missed by nobody."""
        started, show = time.monotonic(), self._show
        if show is None or self._mesh.rank != 0:
            return
        for name in samples:
            session = self._sessions.get(name)
            if session is None or not session.spec.previews or session.estimate is None:
                continue
            try:
                show(session, self._family.preview(session))
            except MODEL_ERRORS:
                logger.warning("no preview", sample=name, exc_info=True)
        self.previewing = time.monotonic() - started

    def _decode_and_deliver(
        self, samples: Sequence[str], failures: dict[str, SampleFailure]
    ) -> None:
        sessions = [self._sessions[name] for name in samples if name in self._sessions]
        if sessions and self._family.decodes_together(sessions):
            self._batch(samples, failures, self._decode_together)
        else:
            if self._mesh.rank == 0:
                self._batch(samples, failures, self._decode)
            self._mesh.meet()
        decoded, self._decoded = self._decoded, {}
        # Apart from the decoding: that memory is short here is no concern of other ranks.
        for name, frames in decoded.items():
            if frames is not None:
                spec = self._sessions[name].spec
                self._guard(name, failures, lambda pair: self._deliver(*pair), (spec, frames))

    def _decode_together(self, sessions: list[Any]) -> None:
        with self._together(*(session.spec.id for session in sessions)):
            self._decode(sessions)

    def _decode(self, sessions: list[Any]) -> None:
        for session in sessions:
            if not torch.isfinite(session.latents).all():
                raise GenerationFailed(
                    "The latents are not finite; the model overflowed in this precision.",
                    code="non_finite",
                )
        made: list[Frames | Clip] = []
        for alike in _alike(sessions):
            self._wear(alike[0].spec)
            made += self._family.decode(alike)
        if self._mesh.rank != 0:
            self._decoded |= {session.spec.id: None for session in sessions}
            return
        for session, frames in zip(sessions, made, strict=True):
            self._decoded[session.spec.id] = frames


def _alike(sessions: list[Any]) -> list[list[Any]]:
    """In runs that have the same adapters; usually it is one."""
    runs = itertools.groupby(sessions, lambda session: (session.spec.adapters, session.spec.merged))
    return [list(run) for _, run in runs]


def _flush_caches() -> None:
    """What is computed again when it is needed; on CUDA also the memory torch keeps for later."""
    prompts.flush()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def told(sample: str, failure: BaseException) -> SampleFailure:
    """A failure as it is reported."""
    code = failure.code if isinstance(failure, GenerationFailed) else None
    if isinstance(failure, torch.OutOfMemoryError):
        code = OUT_OF_MEMORY
    ours = isinstance(failure, GenerationFailed)  # a sentence for people
    text = str(failure) if ours else f"{type(failure).__name__}: {failure}"
    return SampleFailure(
        sample=sample,
        code=code or "generation_failed",
        message=text[:500],
    )
