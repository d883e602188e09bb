"""Building a request: what the user left out is filled in, everything is checked."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from safelight.errors import InvalidRequest, ModelNotFound
from safelight.manager.media import NONE, Media
from safelight.manager.wanted import IN_FORCE
from safelight.models.card import ModelCard, frame_count
from safelight.request import (
    MAX_PROMPT,
    MAX_SEED,
    TASKS,
    Adapter,
    GenerationRequest,
    ImageFormat,
    Inputs,
    MediaFormat,
    Output,
    Task,
)

MAX_PRIORITY = 100
COMPRESSION: Mapping[Output, int] = {"image": 95, "video": 50}
"""`output_compression` where none is asked for."""
_RANDOM_SEEDS = 2**32  # exact in every client's numbers, JavaScript's included


def build_request(
    card: ModelCard,
    prompt: str,
    sampling: Mapping[str, Any],
    *,
    strict: bool = True,
    output: Output | None = None,
    media: Media = NONE,
    seeds: Sequence[int] = (),
    format: MediaFormat | None = None,
    n: int = 1,
    max_outputs: int = 10,
    compression: int | None = None,
    priority: int = 0,
    round_size: bool = False,
    previews: int = 0,
    needs_prompt: bool = True,
    adapters: Sequence[Adapter] = IN_FORCE,
    extra: Mapping[str, Any] | None = None,
) -> GenerationRequest:
    """A checked request for `card`'s model.

    `sampling` holds any of the fields of `Sampling`; a seed is drawn when there is none. What is
    made follows from `output`, the input pictures and the number of frames. `round_size` takes the
    nearest size that the model can make instead of refusing another. Raises `InvalidRequest`
    or `UnknownField`, naming the field.
    """
    _check_prompt(prompt, needed=needs_prompt)
    _check_range("n", n, 1, max_outputs)
    _check_range("output_compression", compression or 0, 0, 100)
    _check_range("priority", priority, -MAX_PRIORITY, MAX_PRIORITY)
    values = dict(sampling)
    _check_seeds(seeds, n)
    if seeds:
        values["seed"] = seeds[0]
    elif values.get("seed") is None:
        values["seed"] = secrets.randbelow(_RANDOM_SEEDS)
    # Named by the job's id, which follows from what it makes, which follows from them.
    frames = frame_count(values.get("num_frames"))
    task = card.task_for(output, _inputs(card, media), frames)
    id = new_id(output_of(task))
    inputs = _inputs(card, media, id)
    if round_size:
        values |= card.nearest(card.fill(values, strict=strict, task=task, inputs=inputs))
    resolved = card.resolve(values, strict=strict, task=task, inputs=inputs)
    return GenerationRequest(
        id=id,
        task=task,
        model=card.name,
        prompt=prompt,
        sampling=resolved,
        n=n,
        priority=priority,
        format=_format(task, format),
        compression=COMPRESSION[output_of(task)] if compression is None else compression,
        created_at=time.time(),
        inputs=inputs,
        seeds=tuple(seeds),
        previews=previews,
        adapters=tuple(adapters),
        extra=dict(extra or {}),
    )


def choose(
    cards: Mapping[str, ModelCard],
    name: str | None,
    output: Output | None = None,
    media: Media = NONE,
) -> ModelCard:
    """The card of a model; without a name, of the first that makes such an output from such
    pictures, or of the first at all, which then says why it cannot.

    Raises `ModelNotFound`.
    """
    if name is None:
        known = list(cards.values())
        return next((card for card in known if card.able(output, _inputs(card, media))), known[0])
    if name not in cards:
        names = ", ".join(f"'{known}'" for known in cards)
        raise ModelNotFound(f"The model '{name}' does not exist; this server has {names}.")
    return cards[name]


def _inputs(card: ModelCard, media: Media, job_id: str = "") -> Inputs:
    """As the job's request names them; transparency is a mask where the model takes one."""
    return media.inputs(job_id, inpaints="inpainting" in card.tasks)


def new_id(output: Output) -> str:
    """`video_<hex>` or `image_<hex>`, unguessable."""
    return f"{output}_{secrets.token_hex(16)}"


def output_of(task: Task) -> Output:
    return "image" if task in TASKS["image"] else "video"


def _check_prompt(prompt: str, *, needed: bool) -> None:
    if needed and not prompt.strip():
        raise InvalidRequest("'prompt' is empty; say what to generate.", param="prompt")
    if len(prompt) > MAX_PROMPT:
        raise InvalidRequest(
            f"'prompt' has {len(prompt)} characters; at most {MAX_PROMPT} fit.", param="prompt"
        )


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"'{name}' is {value}; it must be {low} to {high}.", param=name)


def _check_seeds(seeds: Sequence[int], n: int) -> None:
    if seeds and len(seeds) != n:
        raise InvalidRequest(
            f"'seed' lists {len(seeds)} seeds for {n} outputs; list one for each, or give one.",
            param="seed",
        )
    for seed in seeds:
        _check_range("seed", seed, 0, MAX_SEED)


def _format(task: Task, format: MediaFormat | None) -> MediaFormat:
    legal = get_args(ImageFormat) if output_of(task) == "image" else ("mp4",)
    if format is None:
        return "png" if output_of(task) == "image" else "mp4"
    if format not in legal:
        raise InvalidRequest(
            f"'output_format' is {format}; {task} gives {', '.join(legal)}.", param="output_format"
        )
    return format
