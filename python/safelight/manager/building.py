"""Building a request: what the user left out is filled in, everything is checked."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any, get_args

from safelight.errors import InvalidRequest
from safelight.models.card import ModelCard
from safelight.request import MAX_PROMPT, GenerationRequest, ImageFormat, MediaFormat, Task

MAX_PRIORITY = 100
_RANDOM_SEEDS = 2**32  # exact in every client's numbers, JavaScript's included


def build_request(
    card: ModelCard,
    prompt: str,
    sampling: Mapping[str, Any],
    *,
    strict: bool = True,
    task: Task | None = None,
    format: MediaFormat | None = None,
    n: int = 1,
    max_outputs: int = 10,
    compression: int = 95,
    priority: int = 0,
    extra: Mapping[str, Any] | None = None,
) -> GenerationRequest:
    """A checked request for `card`'s model.

    `sampling` holds any of the fields of `Sampling`; a seed is drawn when there is none. One frame
    makes a still picture. Raises `InvalidRequest` or `UnknownField`, naming the field.
    """
    _check_prompt(prompt)
    _check_range("n", n, 1, max_outputs)
    _check_range("output_compression", compression, 0, 100)
    _check_range("priority", priority, -MAX_PRIORITY, MAX_PRIORITY)
    values = dict(sampling)
    if values.get("seed") is None:
        values["seed"] = secrets.randbelow(_RANDOM_SEEDS)
    if task == "text-to-image":
        values.setdefault("num_frames", 1)
    resolved = card.resolve(values, strict=strict)
    task = task or ("text-to-image" if resolved.num_frames == 1 else "text-to-video")
    _check_task(card, task, resolved.num_frames)
    return GenerationRequest(
        id=new_id(task),
        task=task,
        model=card.name,
        prompt=prompt,
        sampling=resolved,
        n=n,
        priority=priority,
        format=_format(task, format),
        compression=compression,
        created_at=time.time(),
        extra=dict(extra or {}),
    )


def new_id(task: Task) -> str:
    """`video_<hex>` or `image_<hex>`, unguessable."""
    return f"{'image' if task == 'text-to-image' else 'video'}_{secrets.token_hex(16)}"


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise InvalidRequest("'prompt' is empty; say what to generate.", param="prompt")
    if len(prompt) > MAX_PROMPT:
        raise InvalidRequest(
            f"'prompt' has {len(prompt)} characters; at most {MAX_PROMPT} fit.", param="prompt"
        )


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"'{name}' is {value}; it must be {low} to {high}.", param=name)


def _check_task(card: ModelCard, task: Task, num_frames: int) -> None:
    if task not in card.tasks:
        raise InvalidRequest(
            f"{card.name} cannot do {task}; it does {', '.join(card.tasks)}.", param="model"
        )
    if task == "text-to-image" and num_frames != 1:
        raise InvalidRequest(f"'num_frames' is {num_frames}; an image has 1.", param="num_frames")


def _format(task: Task, format: MediaFormat | None) -> MediaFormat:
    legal = get_args(ImageFormat) if task == "text-to-image" else ("mp4",)
    if format is None:
        return "png" if task == "text-to-image" else "mp4"
    if format not in legal:
        raise InvalidRequest(
            f"'output_format' is {format}; {task} gives {', '.join(legal)}.", param="output_format"
        )
    return format
