"""How far an input image is changed: which steps of the schedule are left. Needs no torch."""

from __future__ import annotations

from safelight.errors import InvalidRequest
from safelight.request import Sampling, Task


def check(sampling: Sampling, task: Task) -> None:
    """Raise `InvalidRequest` for a strength where there is no input image, or without steps."""
    strength = sampling.strength
    if strength is None:
        return
    if task.startswith("text"):
        raise InvalidRequest(
            f"'strength' is how far an input image is changed; {task} has none. Leave it out.",
            param="strength",
            code="unsupported_parameter",
        )
    steps = sampling.num_inference_steps
    if first_step(steps, strength) == steps:
        raise InvalidRequest(
            f"'strength' {strength} leaves none of the {steps} steps. Give at least {1 / steps}.",
            param="strength",
        )


def first_step(steps: int, strength: float) -> int:
    """The first of `steps` that is taken, as diffusers' image-to-image pipelines count."""
    return int(max(steps - min(steps * strength, steps), 0))
