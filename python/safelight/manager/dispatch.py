"""A job as the scheduler takes it: one spec per output, in messages that fit the link."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from safelight import __version__
from safelight.models.card import ModelCard
from safelight.request import Delivery, GenerationRequest, SampleSpec, index_of, sample_id
from safelight.wire import codec, links
from safelight.wire.messages import Submit

_ROOM = links.MAX_MESSAGE // 2  # bytes of specs in one message; the rest is framing and margin


def spec(
    request: GenerationRequest,
    index: int,
    *,
    attempt: int,
    path: Path,
    card: ModelCard,
    embed_parameters: bool,
) -> SampleSpec:
    """Sample `index` of the job, to be written to `path`."""
    sampling = msgspec.structs.replace(request.sampling, seed=request.seed_of(index))
    return SampleSpec(
        id=sample_id(request.id, index),
        attempt=attempt,
        prompt=request.prompt,
        sampling=sampling,
        priority=request.priority,
        batch_key=card.batch_key(sampling),
        tokens=card.tokens(sampling),
        delivery=Delivery(
            path=str(path),
            format=request.format,
            fps=sampling.fps,
            compression=request.compression,
            parameters=parameters(request, index) if embed_parameters else {},
        ),
    )


def parameters(request: GenerationRequest, index: int) -> dict[str, str]:
    """What made the picture, for its text chunks: enough to make it again."""
    sampling = msgspec.structs.replace(request.sampling, seed=request.seed_of(index))
    values = {"prompt": request.prompt, "model": request.model} | msgspec.structs.asdict(sampling)
    return {"Software": f"Safelight {__version__}"} | {k: str(v) for k, v in values.items()}


def messages(specs: Iterable[SampleSpec]) -> Iterator[Submit]:
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


def by_index(samples: Iterable[str]) -> list[int]:
    return sorted(index_of(sample) for sample in samples)
