"""Bodies and answers of the endpoints that other systems' clients know, outside `/v1`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from pydantic import BaseModel

from safelight.entrypoint.schema import (
    Count,
    File,
    LoraFields,
    Model,
    Priority,
    Prompt,
    RoundSize,
    Seed,
    Size,
)

GB = 2**30


class GenerateBody(LoraFields, frozen=True, kw_only=True):
    """`POST /generate`, beside the sampling parameters."""

    prompt: Prompt = ""
    model: Model = None
    size: Size = None
    num_images: Annotated[Count | None, Meta(description="How many images to generate.")] = None
    n: Annotated[Count | None, Meta(description="As num_images.")] = None
    image_urls: Annotated[
        File, Meta(description="The pictures to begin with: data URLs, base64 or URLs.")
    ] = None
    output_format: Annotated[
        Literal["base64", "path", "png", "jpeg", "webp"] | None,
        Meta(
            description="base64, the default, puts the files into the answer, path only their "
            "addresses; png, jpeg and webp name the format of images, in base64."
        ),
    ] = None
    include_stats: Annotated[bool, Meta(description="Say what took how long.")] = False
    priority: Priority = 0
    seed: Seed = None
    round_size: RoundSize = False


class LoadBody(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /load-model`."""

    model: Annotated[
        str | None, Meta(description="Name of a model of this server; by default the first.")
    ] = None


class Stats(BaseModel):
    """Seconds, but for the counts."""

    queued: float
    generating: float
    steps: int
    attempt: int
    """1, unless ranks were lost."""


class Generated(BaseModel):
    """Answer of `POST /generate`: images, or one video."""

    id: str
    model: str
    images: list[str] = []
    """Files in base64, or their addresses with `output_format: path`."""
    video: str | None = None
    """As an image; left out when images were made."""
    image_url: str
    """Where the first file can be had, whatever the format."""
    download_url: str
    """The same."""
    seed: int
    seeds: list[int]
    width: int
    height: int
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    lora_applied: str | None = None
    """Names of its adapters, by commas; left out where it has none."""
    time_cost: float
    """Seconds from acceptance to the last file."""
    stats: Stats | None = None
    warnings: list[str] = []


class ModelInfo(BaseModel):
    """A model as other systems describe theirs."""

    model_path: str
    """What clients send as `model`."""
    family: str
    tasks: list[str]
    task_type: str
    """T2I, I2I, TI2I (from text or pictures), T2V, I2V or TI2V."""
    pipeline_name: str
    pipeline_class: str | None
    """None where it has none: remote models and plug-ins."""
    num_gpus: int
    dit_precision: str
    """auto while nobody knows on which device it will run."""
    vae_precision: str
    device: str
    status: str
    """unloaded, loading, loaded, draining, unloading or failed."""
    is_loaded: bool


class ServedInfo(ModelInfo):
    """The first model, and all of them."""

    models: list[ModelInfo]


class RankStatus(BaseModel):
    group: int
    rank: int
    device: str
    weights_gb: float
    peak_memory_gb: float
    """Allocated on CUDA, resident on the CPU, since the rank was started."""


class LoadStatus(BaseModel):
    """One model, and where it runs. A GB is 2**30 bytes."""

    model: str
    model_type: str
    status: str
    model_loaded: bool
    ranks: list[RankStatus]
    vram_usage_gb: float
    """Peaks of its ranks on CUDA devices together."""


class ModelStatus(LoadStatus):
    """The first model, and all of them."""

    system_memory_available_gb: float
    models: list[LoadStatus]


class ModelLoaded(BaseModel):
    message: str
    model: str
    status: str


class CacheFlushed(BaseModel):
    status: Literal["success"] = "success"
    message: str


class ServerInfo(BaseModel):
    version: str
    models: list[str]
    ready: bool
    detail: str
    unfinished: int
    """Accepted samples that are not finished."""
    backlog_seconds: float
    max_body_bytes: int
    max_outputs: int
    max_input_pixels: int
    max_queued_samples: int
