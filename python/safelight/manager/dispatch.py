"""A job as the scheduler takes it: one spec per output, in messages that fit the link."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from safelight import __version__
from safelight.manager.live import LiveJob
from safelight.models.card import ModelCard
from safelight.request import (
    Clip,
    Delivery,
    GenerationRequest,
    Inputs,
    Picture,
    SampleSpec,
    Sampling,
    index_of,
    sample_id,
)
from safelight.store.adapters import AdapterStore
from safelight.store.content import ContentStore
from safelight.wire import codec, links
from safelight.wire.messages import Submit

_ROOM = links.MAX_MESSAGE // 2  # bytes of specs in one message; the rest is framing and margin


class Dispatcher:
    """Turns live jobs into messages."""

    def __init__(
        self,
        cards: Mapping[str, ModelCard],
        content: ContentStore,
        adapters: AdapterStore,
        *,
        embed_parameters: bool,
    ) -> None:
        self._cards = cards
        self._content = content
        self._adapters = adapters
        self._embed = embed_parameters

    def messages(self, live: LiveJob) -> Iterator[Submit]:
        """Every sample of the job that has no file yet, in order of their indices."""
        return packed(self.spec(live, index_of(sample)) for sample in live.missing())

    def spec(self, live: LiveJob, index: int) -> SampleSpec:
        request = live.request
        card = self._cards[request.model]
        inputs = self._located(request.inputs)
        sampling = msgspec.structs.replace(request.sampling, seed=request.seed_of(index))
        return SampleSpec(
            id=sample_id(request.id, index),
            attempt=live.attempt,
            prompt=request.prompt,
            sampling=sampling,
            priority=request.priority,
            batch_key=_batch_key(card, sampling, request, index),
            tokens=card.tokens(sampling, request.inputs),
            delivery=Delivery(
                path=self._path(live, index),
                format=request.format,
                fps=sampling.fps,
                compression=request.compression,
                parameters=parameters(request, index) if self._embed else {},
                outside=inputs if request.task == "inpainting" else Inputs(),
                continues=self._clip(request.continues),
            ),
            model=request.model,
            task=request.task,
            inputs=inputs,
            adapters=self._adapters.located(request.adapters),
            merged=request.merged,
            previews=request.previews,
        )

    def _located(self, inputs: Inputs) -> Inputs:
        """With absolute paths."""

        def located(picture: Picture) -> Picture:
            path = str(self._content.located(picture.path))
            return msgspec.structs.replace(picture, path=path)

        mask = None if inputs.mask is None else located(inputs.mask)
        return Inputs(images=tuple(map(located, inputs.images)), mask=mask)

    def _clip(self, clip: Clip | None) -> Clip | None:
        """With an absolute path."""
        if clip is None:
            return None
        return msgspec.structs.replace(clip, path=str(self._content.located(clip.path)))

    def _path(self, live: LiveJob, index: int) -> str:
        if live.destinations is not None:
            return live.destinations[index]
        return str(self._content.place(live.request.id, index, live.request.format))


def _batch_key(card: ModelCard, sampling: Sampling, request: GenerationRequest, index: int) -> str:
    """Samples with equal keys may share a forward."""
    if card.alone:
        return f"alone: {sample_id(request.id, index)}"
    return card.batch_key(sampling, request.task, request.inputs) + _adapted(request)


def _adapted(request: GenerationRequest) -> str:
    """What adapters add to the batch key: a forward has one set of them."""
    if not request.adapters:
        return ""
    parts = (f"{a.digest}*{a.scale!r}@{a.target}" for a in request.adapters)
    return f"/{'merged' if request.merged else 'lora'}:{'+'.join(parts)}"


def parameters(request: GenerationRequest, index: int) -> dict[str, str]:
    """What made the picture, for its text chunks: enough to make it again."""
    sampling = msgspec.structs.replace(request.sampling, seed=request.seed_of(index))
    values = {"prompt": request.prompt, "model": request.model} | msgspec.structs.asdict(sampling)
    if request.adapters:
        values["lora"] = ", ".join(f"{a.name}:{a.scale:g} ({a.target})" for a in request.adapters)
    known = {name: str(value) for name, value in values.items() if value is not None}
    return {"Software": f"Safelight {__version__}"} | known


def packed(specs: Iterable[SampleSpec]) -> Iterator[Submit]:
    """The specs in as few messages as the link's size limit allows, in order."""
    batch: list[SampleSpec] = []
    size = 0
    for one in specs:
        nbytes = len(codec.encode(one))
        if batch and size + nbytes > _ROOM:
            yield Submit(samples=tuple(batch))
            batch, size = [], 0
        batch.append(one)
        size += nbytes
    if batch:
        yield Submit(samples=tuple(batch))
