"""HunyuanVideo 1.5's model card, read from the pipeline's JSON files. Needs no torch.

Defaults are those of `HunyuanVideo15Pipeline.__call__` (121 frames, 50 steps, 16:9 of the size the
transformer was trained for) and of the checkpoint's guider, and the 24 frames per second of the
model.
"""

from __future__ import annotations

from pathlib import Path

from safelight.errors import ConfigError
from safelight.models import plans, specs
from safelight.models.card import NOTHING, ModelCard, Range
from safelight.models.hunyuan_video15 import sizes
from safelight.models.registry import pipeline_class, read_json
from safelight.parallel.layout import Capabilities
from safelight.request import Inputs, Sampling, Task

MAX_TOKENS = 300_000  # above 1280x720 with 201 frames, beyond what the model was trained on
GUIDER = "ClassifierFreeGuidance"
TASKS: dict[str, Task] = {
    "HunyuanVideo15Pipeline": "text-to-video",
    "HunyuanVideo15ImageToVideoPipeline": "image-to-video",
}


class HunyuanVideo15Card(ModelCard, frozen=True, kw_only=True):
    """A model whose pictures are cut to a size of their shape."""

    target: int
    """Side of the square with as many pixels as the transformer was trained for."""
    grid: int
    """Pixels behind a latent."""

    def size_for(self, task: Task, inputs: Inputs) -> tuple[int, int] | None:
        if not inputs.images:
            return None
        return sizes.closest(inputs.images[0].size, self.target, self.grid)

    def batch_key(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> str:
        # A picture has the video's size by then.
        return super().batch_key(sampling, task)


def card(directory: Path, name: str) -> HunyuanVideo15Card:
    """The card of the pipeline in `directory`. Raises `ConfigError` for another way to guide."""
    transformer, vae = specs.config(directory, "transformer"), specs.config(directory, "vae")
    spatial = vae.get("spatial_compression_ratio", 16)
    temporal = vae.get("temporal_compression_ratio", 4)
    patch, patch_t = transformer.get("patch_size", 1), transformer.get("patch_size_t", 1)
    target = transformer.get("target_size", 640)
    width, height = sizes.closest((16, 9), target, spatial)
    step = spatial * patch
    sides = Range(step, 4096 // step * step, step)
    task = TASKS[pipeline_class(directory)]
    return HunyuanVideo15Card(
        name=name,
        family="hunyuan_video15",
        path=str(directory),
        tasks=(task,),
        parameters=(
            *("negative_prompt", "guidance_scale", "fps"),
            *(["flow_shift"] if specs.shiftable(directory) else []),
        ),
        max_images=1 if task == "image-to-video" else 0,
        defaults={
            "width": width,
            "height": height,
            "num_frames": 121,
            "fps": 24,
            "num_inference_steps": 50,
            "guidance_scale": _guidance_scale(directory),
        },
        width=sides,
        height=sides,
        num_frames=Range(1, 1 + 1000 // temporal * temporal, temporal),
        max_tokens=MAX_TOKENS,
        patch=(temporal * patch_t, step, step),
        target=target,
        grid=spatial,
    )


def capabilities(directory: Path) -> Capabilities:
    """What of the pipeline in `directory` can be shared out over ranks."""
    transformer = specs.config(directory, "transformer")
    width = plans.heads(transformer) * transformer.get("attention_head_dim", 128)
    inside = int(transformer.get("mlp_ratio", 4.0) * width)
    return specs.capabilities(directory, width=width, feed_forward=inside)


def _guidance_scale(directory: Path) -> float:
    """Of the checkpoint's guider."""
    guider = read_json(directory / "guider" / "guider_config.json")
    if guider["_class_name"] != GUIDER:
        raise ConfigError(
            f"{directory} is guided by {guider['_class_name']}; {GUIDER} runs. Replace its guider "
            f"with one, or use the checkpoint with which it came."
        )
    return float(guider.get("guidance_scale", 7.5))
