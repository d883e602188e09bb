"""Devices, models, adapters, scheduling, HTTP, storage, webhooks, processes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from safelight.config.section import Section

Degree = Annotated[int, Meta(ge=1, le=1024)]
"""Bounds of an optional number stand inside: msgspec has none for `int | None`."""


class ParallelConfig(Section, frozen=True):
    """How many devices, and what each of them does."""

    num_gpus: Annotated[
        Degree | None,
        Meta(
            description="Devices, or with --device cpu rank processes; by default as many as the "
            "degrees multiply to, or --gpu-ids names."
        ),
    ] = None
    gpus_per_rank: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="CUDA devices that one rank sees, for models that place their parts by "
            "themselves (device_map).",
        ),
    ] = 1
    gpu_ids: Annotated[
        str | None,
        Meta(description="CUDA devices to use, as 0,2,3; by default CUDA_VISIBLE_DEVICES, or all."),
    ] = None
    dp_size: Annotated[
        Degree | None, Meta(description="Replicas of the model; samples go to the least loaded.")
    ] = None
    enable_cfg_parallel: Annotated[bool, Meta(description="The same as --cfg-parallel-size 2.")] = (
        False
    )
    cfg_parallel_size: Annotated[
        Annotated[int, Meta(ge=1, le=2)] | None,
        Meta(description="2: conditional and unconditional halves on different ranks."),
    ] = None
    sp_degree: Annotated[
        Degree | None,
        Meta(
            description="Ranks that share one sequence: ulysses × ring.",
            extra={"aliases": ("sp_size",)},
        ),
    ] = None
    ulysses_degree: Annotated[
        Degree | None, Meta(description="Ranks that exchange heads for sequence (all-to-all).")
    ] = None
    ring_degree: Annotated[
        Degree | None, Meta(description="Ranks around which keys and values travel.")
    ] = None
    tp_size: Annotated[
        int,
        Meta(
            ge=1,
            le=1024,
            description="Ranks that share a text encoder's weights (tensor parallel).",
        ),
    ] = 1
    vae_parallel: Annotated[
        Literal["auto", "on", "off"],
        Meta(description="Split the VAE's work over the ranks; auto: when latents are large."),
    ] = "auto"
    sequence_parallel_backend: Annotated[
        Literal["diffusers", "xfuser"],
        Meta(description="Whose sequence-parallel attention; xfuser needs CUDA and its package."),
    ] = "diffusers"
    collective_timeout: Annotated[
        float,
        Meta(
            gt=0,
            le=86_400,
            description="Seconds a rank waits for another before the group is started again.",
        ),
    ] = 120.0


class ModelsConfig(Section, frozen=True):
    """Several models in one server."""

    model: Annotated[
        list[str],
        Meta(
            description="NAME=PATH of one of several models; repeat it. What else is given holds "
            "for all of them."
        ),
    ] = []
    models: Annotated[
        list[dict[str, Any]],
        Meta(
            description="In a config file: one mapping a model, of a name and the settings in "
            "which it differs.",
            extra={"file_only": True},
        ),
    ] = []
    max_loaded_models: Annotated[
        Degree | None,
        Meta(description="Models loaded at once; beyond it, the least recently used makes room."),
    ] = None
    model_memory_gib: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Weights loaded at once, in GiB; on the CPU by default what is free."),
    ] = None


class LoraConfig(Section, frozen=True):
    """Adapters (LoRA): which ones requests can name, and which one is in force from the start."""

    lora_dir: Annotated[
        str | None,
        Meta(description="Directory of .safetensors files that requests name by their stems."),
    ] = None
    lora_path: Annotated[
        str | None,
        Meta(
            description="Adapter of the first model from the start: a .safetensors file, a "
            "directory with one, or a hub id."
        ),
    ] = None
    lora_name: Annotated[
        str | None, Meta(description="File in the directory or repository of --lora-path.")
    ] = None
    lora_nickname: Annotated[
        str | None, Meta(description="Name of that adapter; by default its file's stem.")
    ] = None
    lora_scale: Annotated[float, Meta(ge=-10, le=10, description="Strength of that adapter.")] = 1.0
    disable_fuse_lora: Annotated[
        bool,
        Meta(
            description="Keep adapters that are set beside the weights, unless a merge is asked "
            "for; else they are merged into them."
        ),
    ] = False


class SchedulingConfig(Section, frozen=True):
    """How steps are shared out."""

    max_batch_size: Annotated[
        int, Meta(ge=1, le=1024, description="Most samples that may share one forward.")
    ] = 16
    max_running_samples: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000,
            description="Most samples that hold latents on the ranks at once.",
            extra={"aliases": ("max_concurrent",)},
        ),
    ] = 64
    max_queued_samples: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Accepted, unfinished samples; beyond it, 429.")
    ] = 512
    priority_seconds: Annotated[
        float,
        Meta(ge=0, le=1e6, description="What one level of priority is worth, in seconds of work."),
    ] = 30.0


class ServerConfig(Section, frozen=True):
    """The HTTP server."""

    host: Annotated[str, Meta(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port; 0 takes a free one.")] = 30000
    api_key: Annotated[
        str | None,
        Meta(
            description="When set, every request but those for health and documentation must carry "
            "it as a bearer token."
        ),
    ] = None
    max_body_bytes: Annotated[
        int, Meta(ge=1024, le=2**34, description="Largest request body accepted.")
    ] = 64 * 2**20
    max_outputs: Annotated[int, Meta(ge=1, le=1000, description="Largest n of a request.")] = 10
    max_input_pixels: Annotated[
        int, Meta(ge=1, le=2**30, description="Pixels of a request's input pictures together.")
    ] = 2**25
    fetch_urls: Annotated[
        bool,
        Meta(
            description="Fetch input pictures that requests name by URL: from public addresses "
            "only, on ports 80 and 443, without redirects to elsewhere."
        ),
    ] = False
    fetch_hosts: Annotated[
        list[str],
        Meta(
            description="A host that they may come from, *.example.org for all below one; repeat "
            "it. By default any."
        ),
    ] = []
    fetch_timeout: Annotated[
        float,
        Meta(gt=0, le=3600, description="Seconds that fetching a request's pictures may take."),
    ] = 20.0
    fetch_max_bytes: Annotated[
        int,
        Meta(ge=1024, le=2**34, description="Bytes that are fetched for one request, at most."),
    ] = 32 * 2**20
    fetch_private: Annotated[
        bool,
        Meta(
            description="Fetch from private addresses and other ports too, this machine's and its "
            "cloud's own services included: name the hosts."
        ),
    ] = False


class StorageConfig(Section, frozen=True):
    """Where jobs and their files live."""

    data_dir: Annotated[
        str, Meta(description="Directory of the job database and the finished files.")
    ] = "~/.local/share/safelight"
    embed_parameters: Annotated[
        bool, Meta(description="Write the resolved parameters into PNG text chunks.")
    ] = True


WebhookEvent = Literal["video.completed", "video.failed", "image.completed", "image.failed"]
"""What webhook endpoints can hear of."""


class WebhookConfig(Section, frozen=True):
    """Who is told over HTTP that a job has ended."""

    webhook_url: Annotated[
        list[str],
        Meta(
            max_length=32,
            description="Where signed events are sent when a job ends; repeat it for several.",
        ),
    ] = []
    webhook_secret: Annotated[
        str | None,
        Meta(description="What they are signed with: whsec_ and 24 to 64 random bytes in base64."),
    ] = None
    webhook_events: Annotated[
        list[WebhookEvent],
        Meta(
            description="Which events those URLs get, by default video.completed and video.failed; "
            "repeat it."
        ),
    ] = []
    webhook_allow_private: Annotated[
        bool,
        Meta(
            description="Let endpoints that are registered over HTTP be on private networks and "
            "on any port."
        ),
    ] = False

    @property
    def heard(self) -> tuple[WebhookEvent, ...]:
        """What the URLs get, each once."""
        return tuple(dict.fromkeys(self.webhook_events)) or ("video.completed", "video.failed")


class RuntimeConfig(Section, frozen=True):
    """The processes."""

    startup_timeout: Annotated[
        float, Meta(gt=0, le=86_400, description="Seconds a process may take to become ready.")
    ] = 900.0
    shutdown_grace: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds running work gets to stop after SIGTERM.")
    ] = 10.0
    max_restarts: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="Restarts of one process within five minutes; beyond it, stop.",
        ),
    ] = 3
    step_timeout: Annotated[
        float,
        Meta(
            gt=0,
            le=86_400,
            description="Seconds, at least, after which an unanswered plan means a hung rank.",
        ),
    ] = 120.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="Least severe log line shown."),
    ] = "info"
