"""What the model can do, said without torch: every process of the server reads it."""

from __future__ import annotations

from pathlib import Path

from safelight.models import checkpoint, strength
from safelight.models.card import NOTHING, ModelCard, Range
from safelight.parallel.layout import Capabilities
from safelight.request import Inputs, Sampling, Task

SIDES = Range(16, 512, 8)


class DotsCard(ModelCard, frozen=True, kw_only=True):
    """Requests that this family takes in another way than most."""

    def size_for(self, task: Task, inputs: Inputs) -> tuple[int, int] | None:
        """Of the input picture, as near as can be."""
        if not inputs.images:
            return None
        width, height = inputs.images[0].size
        return self.width.nearest(width)[0], self.height.nearest(height)[0]

    def batch_key(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> str:
        """Pictures of one size share forwards, whatever they are made from."""
        return f"{self.name}/{sampling.width}x{sampling.height}"

    def check(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> None:
        super().check(sampling, task, inputs)
        strength.check(self.name, sampling, task)


def card(directory: Path, name: str) -> DotsCard:
    """Defaults, limits and tasks. Raise `ConfigError` here for a model that cannot run."""
    return DotsCard(
        name=name,
        family="dots",
        path=str(directory),
        tasks=("text-to-image", "image-to-image"),
        parameters=("negative_prompt", "guidance_scale", "strength"),
        max_images=1,
        defaults={
            "width": 64,
            "height": 64,
            "num_frames": 1,
            "num_inference_steps": 8,
            "guidance_scale": 1.5,
        },
        task_defaults={"image-to-image": {"strength": 0.6}},
        width=SIDES,
        height=SIDES,
        num_frames=Range(1, 1),
        max_tokens=SIDES.max**2,
        patch=(1, 1, 1),
    )


def capabilities(directory: Path) -> Capabilities:
    """What ranks can share: rows of pixels and the halves of the guidance. Nothing is divided
    into attention heads, as there are none."""
    config = checkpoint.read_json(directory / "model" / "config.json")
    return Capabilities(
        transformer="Dots", sequence=True, guided=True, heads=0, width=config["width"]
    )


def verify(directory: Path) -> None:
    """Optional: whether the files are all there and whole, before anything is started."""
    checkpoint.read_json(directory / "model" / "config.json")
    checkpoint.verify_weights(directory / "model")
