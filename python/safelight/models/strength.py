"""How far an input image is changed: which steps of the schedule are left. Needs no torch.

`flux`, `qwen_image`, `sd3`, `sdxl` and `z_image` have it.
"""

from __future__ import annotations

from collections.abc import Sequence

from safelight.errors import InvalidRequest
from safelight.request import Sampling, Task

CHANGING: tuple[Task, ...] = ("image-to-image", "inpainting")


def check(name: str, sampling: Sampling, task: Task, tasks: Sequence[Task] = CHANGING) -> None:
    """Raise `InvalidRequest` for a strength that has no effect, or leaves no steps.

    `tasks`: those of the model called `name` that begin with a picture.
    """
    strength = sampling.strength
    if strength is None:
        return
    if task not in tasks:
        raise InvalidRequest(
            f"'strength' has no effect on {task} with {name}, which starts from noise: it is how "
            "far an input image is changed. Leave it out.",
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
