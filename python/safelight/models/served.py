"""A model's card as this server offers it: which of its tasks, with which defaults. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from safelight import fields
from safelight.config import Mode, ModelConfig
from safelight.errors import ConfigError, InvalidRequest
from safelight.models.card import ModelCard
from safelight.request import Sampling, Task

MODES: Mapping[Mode, tuple[Task, ...]] = {
    "t2i": ("text-to-image",),
    "edit": ("image-to-image", "inpainting"),
    "t2v": ("text-to-video",),
    "i2v": ("image-to-video",),
}
"""What `--mode` leaves of a model's tasks."""


def offered(card: ModelCard, config: ModelConfig) -> ModelCard:
    """`card` with the tasks of `--mode` and the defaults of `default_sampling`.

    Raises `ConfigError` if the model is of another type, or nothing would be left of it.
    """
    _check_type(card, config.model_type)
    if config.mode is not None:
        card = _restricted(card, config.mode)
    return _preset(card, config.default_sampling) if config.default_sampling else card


def _check_type(card: ModelCard, model_type: str | None) -> None:
    """`qwen` is `qwen_image` too."""
    if model_type is None:
        return
    wanted = model_type.lower().replace("-", "_")
    if not card.family.replace("-", "_").startswith(wanted):
        raise ConfigError(
            f"--model-type {model_type}: {card.name} is of the family {card.family}, as its "
            "model_index.json says. Leave the flag out, or give another model.",
            param="model_type",
        )


def _restricted(card: ModelCard, mode: Mode) -> ModelCard:
    tasks = tuple(task for task in card.tasks if task in MODES[mode])
    if not tasks:
        raise ConfigError(
            f"--mode {mode}: {card.name} cannot do {' or '.join(MODES[mode])}; it does "
            f"{', '.join(card.tasks)}.",
            param="mode",
        )
    limits = {**card.limits, "tasks": f"it is served with --mode {mode}"}
    return msgspec.structs.replace(card, tasks=tasks, limits=limits)


def _preset(card: ModelCard, values: Mapping[str, Any]) -> ModelCard:
    """The card with these defaults, in every task, as far as one of its tasks can have them."""
    known = [field.name for field in fields.declared(Sampling) if field.name != "seed"]
    fields.refuse_unknown(values, known, what="sampling parameter", error=ConfigError)
    try:
        typed = _checked(card, values)
    except InvalidRequest as failure:
        raise ConfigError(
            f"The default {failure.message[0].lower()}{failure.message[1:]}", param=failure.param
        ) from failure
    defaults = {**card.defaults, **typed}
    by_task = {task: {**own, **typed} for task, own in card.task_defaults.items()}
    return msgspec.structs.replace(card, defaults=defaults, task_defaults=by_task)


def _checked(card: ModelCard, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, typed. Raises `InvalidRequest` as a request that gave them would."""
    sampling = card.fill(values, strict=False, task=card.tasks[0])
    card.check_used(values, sampling)
    for name in ("width", "height", "num_frames"):
        if name in values:
            card.check_range(name, getattr(sampling, name))
    return {name: getattr(sampling, name) for name in values}
