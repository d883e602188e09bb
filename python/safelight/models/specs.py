"""What the `spec.py` of most families reads from a pipeline's JSON files. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safelight.models import plans
from safelight.models.registry import read_json
from safelight.parallel import encoders
from safelight.parallel.layout import Capabilities

SHIFTS = ("flow_shift", "shift")
"""Keys of the samplers' configurations that `samplers.own` sets."""


def has(directory: Path, component: str) -> bool:
    """Whether the pipeline in `directory` has this optional component."""
    entry = read_json(directory / "model_index.json").get(component)
    return isinstance(entry, list) and entry[0] is not None


def config(directory: Path, component: str) -> dict[str, Any]:
    """The `config.json` of a component. Raises `ConfigError` if it is missing or broken."""
    return read_json(directory / component / "config.json")


def capabilities(
    directory: Path, *, width: int, feed_forward: int, guided: bool = True, mixed: bool = True
) -> Capabilities:
    """What of the pipeline in `directory` can be shared out over ranks.

    `width` of the transformer's hidden states and `feed_forward` of the inside of its feed-forward
    layers; `guided`: whether it runs an unconditional forward; `mixed`: whether prompts of
    different lengths may share a forward.
    """
    transformer = config(directory, "transformer")
    encoder_heads, encoders_whole = encoders.survey(directory)
    return Capabilities(
        transformer=transformer["_class_name"],
        sequence=plans.sequence(transformer["_class_name"]),
        masked=plans.masked(transformer["_class_name"], mixed=mixed),
        cached=plans.cached(transformer["_class_name"]),
        guided=guided,
        heads=plans.heads(transformer),
        width=width,
        feed_forward=feed_forward,
        encoder_heads=encoder_heads,
        encoders_whole=encoders_whole,
    )


def shiftable(directory: Path) -> bool:
    """Whether `flow_shift` has an effect: the sampler has a fixed shift of its noise levels."""
    sampler = read_json(directory / "scheduler" / "scheduler_config.json")
    return any(name in sampler for name in SHIFTS) and not sampler.get("use_dynamic_shifting")
