"""The engine's configuration: one frozen tree, checked when it is built.

A field is declared once. The command line's flags, the keys of a `--config` file and the
`SAFELIGHT_*` variables are all derived from it (`safelight.fields`); they are flat, so a name is
unique in the whole tree. Precedence: command line, environment, file, default.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from safelight import fields
from safelight.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_TORCH = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16"}
"""How torch and other systems spell them."""

Mode = Literal["t2i", "edit", "t2v", "i2v"]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class VaeConfig(_Section, frozen=True):
    """`vae_config`, as other systems' files have it."""

    load_encoder: bool = True
    """No effect: a VAE is loaded whole."""
    load_decoder: Literal[True] = True
    tile_sample_min_height: Annotated[int, Meta(ge=16, le=8192)] | None = None
    tile_sample_min_width: Annotated[int, Meta(ge=16, le=8192)] | None = None

    @property
    def tiles(self) -> dict[str, int]:
        """What was said of tiles."""
        sizes = {
            "tile_sample_min_height": self.tile_sample_min_height,
            "tile_sample_min_width": self.tile_sample_min_width,
        }
        return {name: size for name, size in sizes.items() if size is not None}


class ModelConfig(_Section, frozen=True):
    """Which model, where it runs, in what precision."""

    model_path: Annotated[
        str,
        Meta(
            description="Directory of a diffusers pipeline, hub id (org/name), or builtin:shapes.",
            extra={"aliases": ("model_name",)},
        ),
    ] = "builtin:shapes"
    model_type: Annotated[
        str | None,
        Meta(
            description="Family the model must be of, such as qwen or flux; it is found out anyway."
        ),
    ] = None
    mode: Annotated[
        Mode | None,
        Meta(
            description="What of the model's tasks is served: pictures or videos, from text alone "
            "(t2i, t2v) or from pictures (edit, i2v); by default all."
        ),
    ] = None
    default_sampling: Annotated[
        dict[str, Any],
        Meta(
            description="Sampling parameters of requests that leave them out, as a mapping; on "
            "the command line --serve-num-inference-steps and so on.",
            extra={"file_only": True},
        ),
    ] = {}
    revision: Annotated[
        str | None, Meta(description="Branch, tag or commit of a model on the hub.")
    ] = None
    served_model_name: Annotated[
        str | None, Meta(description="Name clients use; by default the model path's last part.")
    ] = None
    transformer_path: Annotated[
        str | None,
        Meta(description="Another transformer: directory, or one .safetensors or .gguf file."),
    ] = None
    vae_path: Annotated[str | None, Meta(description="Directory of another VAE.")] = None
    text_encoder_path: Annotated[
        str | None, Meta(description="Directory of another first text encoder.")
    ] = None
    component: Annotated[
        list[str],
        Meta(description="Another component, as NAME=PATH; repeat it for several."),
    ] = []
    trust_remote_code: Annotated[
        bool, Meta(description="Run Python files that come with the model.")
    ] = False
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Meta(description="Where the model runs; auto takes CUDA if there."),
    ] = "auto"
    dit_precision: Annotated[
        Precision,
        Meta(
            description="Precision of the transformer; auto is bf16 on CUDA, fp32 on CPU.",
            extra={"aliases": ("precision", "dtype", "torch_dtype"), "spellings": _TORCH},
        ),
    ] = "auto"
    vae_precision: Annotated[
        Precision,
        Meta(description="Precision of the VAE; auto is fp32.", extra={"spellings": _TORCH}),
    ] = "auto"
    text_encoder_precision: Annotated[
        Precision,
        Meta(
            description="Precision of the text encoder; auto follows the transformer.",
            extra={"spellings": _TORCH},
        ),
    ] = "auto"
    text_encoder_precisions: Annotated[
        list[Precision],
        Meta(
            description="Precision of each text encoder, in their order; repeat it.",
            extra={"spellings": _TORCH},
        ),
    ] = []
    quantization: Annotated[
        Literal["none", "int8", "fp8", "fp8-storage"],
        Meta(
            description="Weights of the transformer: int8 and fp8 by torchao; fp8-storage keeps "
            "them in fp8 and computes in --dit-precision.",
            extra={
                "aliases": ("quantize_type",),
                "spellings": {
                    "float8_wo": "fp8",
                    "float8_weight_only": "fp8",
                    "int8_wo": "int8",
                    "int8_weight_only": "int8",
                },
            },
        ),
    ] = "none"
    attention_backend: Annotated[
        str | None,
        Meta(
            description="What computes the transformer's attention, by diffusers' names: native, "
            "flash, sage, xformers, …; by default torch's own."
        ),
    ] = None
    enable_torch_compile: Annotated[
        bool,
        Meta(
            description="Compile the transformer's blocks: the first steps of a shape take long, "
            "and results are no longer diffusers' to the bit.",
            extra={"aliases": ("enable_compile", "compile")},
        ),
    ] = False
    step_cache: Annotated[
        Literal["none", "first-block"],
        Meta(
            description="first-block: leave out the transformer's other blocks at steps where its "
            "first changes little. Samples then share no forward, and are no longer diffusers' to "
            "the bit.",
            extra={
                "aliases": ("cache_type",),
                "spellings": {
                    "fbcache": "first-block",
                    "first_block": "first-block",
                    "first_block_cache": "first-block",
                },
            },
        ),
    ] = "none"
    step_cache_threshold: Annotated[
        float,
        Meta(
            ge=0,
            le=10,
            description="How much the first block may change, relative to what it adds: more "
            "leaves out more. 0 leaves out nothing.",
            extra={"aliases": ("rdt",)},
        ),
    ] = 0.08
    vae_tiling: Annotated[
        bool,
        Meta(
            description="Encode and decode in overlapping tiles: less memory, other pixels at "
            "their seams.",
            extra={"aliases": ("enable_vae_tiling",)},
        ),
    ] = False
    vae_slicing: Annotated[
        bool,
        Meta(
            description="Encode and decode one sample at a time: less memory.",
            extra={"aliases": ("enable_vae_slicing",)},
        ),
    ] = False
    vae_config: Annotated[
        dict[str, Any],
        Meta(
            description="Of tiles: tile_sample_min_height and tile_sample_min_width, in pixels.",
            extra={"file_only": True},
        ),
    ] = {}
    cpu_threads: Annotated[
        int,
        Meta(
            ge=0,
            le=1024,
            description="Torch threads of a rank on the CPU; 0: an equal share of the cores.",
        ),
    ] = 0
    text_encoder_cpu_offload: Annotated[
        bool,
        Meta(
            description="Keep text encoders in host memory, and on the GPU only what runs.",
            extra={"aliases": ("enable_cpu_offload",)},
        ),
    ] = False
    pin_cpu_memory: Annotated[
        bool,
        Meta(
            description="Pin all of that memory at once; off: each layer's when it is needed, "
            "slower."
        ),
    ] = True
    prompt_cache_entries: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Prompt embeddings kept, by content hash.")
    ] = 256


Degree = Annotated[int, Meta(ge=1, le=1024)]
"""Bounds of an optional number stand inside: msgspec has none for `int | None`."""


class ParallelConfig(_Section, frozen=True):
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


class ModelsConfig(_Section, frozen=True):
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


class LoraConfig(_Section, frozen=True):
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


class SchedulingConfig(_Section, frozen=True):
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


class ServerConfig(_Section, frozen=True):
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


class StorageConfig(_Section, frozen=True):
    """Where jobs and their files live."""

    data_dir: Annotated[
        str, Meta(description="Directory of the job database and the finished files.")
    ] = "~/.local/share/safelight"
    embed_parameters: Annotated[
        bool, Meta(description="Write the resolved parameters into PNG text chunks.")
    ] = True


WebhookEvent = Literal["video.completed", "video.failed", "image.completed", "image.failed"]
"""What webhook endpoints can hear of."""


class WebhookConfig(_Section, frozen=True):
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


class RuntimeConfig(_Section, frozen=True):
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


class ServedModel(_Section, frozen=True):
    """One of several models."""

    name: str
    model: ModelConfig
    parallel: ParallelConfig
    load: bool = True
    """Whether it is loaded at the start; else when it is first asked for."""


class EngineConfig(_Section, frozen=True):
    """Everything that is fixed when the engine starts."""

    model: ModelConfig = ModelConfig()
    parallel: ParallelConfig = ParallelConfig()
    models: ModelsConfig = ModelsConfig()
    served: tuple[ServedModel, ...] = ()
    """The models, if there are several; `model` and `parallel` are what they have in common."""
    lora: LoraConfig = LoraConfig()
    scheduling: SchedulingConfig = SchedulingConfig()
    server: ServerConfig = ServerConfig()
    storage: StorageConfig = StorageConfig()
    webhooks: WebhookConfig = WebhookConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @property
    def data_path(self) -> Path:
        return Path(self.storage.data_dir).expanduser()

    @property
    def entries(self) -> tuple[ServedModel, ...]:
        """Every model, at least one."""
        one = ServedModel(name=self.model_name, model=self.model, parallel=self.parallel)
        return self.served or (one,)

    @property
    def at_start(self) -> tuple[str, ...]:
        """Names of the models that are loaded when the engine starts."""
        names = [entry.name for entry in self.entries if entry.load]
        return tuple(names[: self.models.max_loaded_models])

    def of(self, name: str) -> EngineConfig:
        """The configuration of one model alone. Raises `KeyError` if there is none of that name."""
        entry = {entry.name: entry for entry in self.entries}[name]
        return msgspec.structs.replace(self, model=entry.model, parallel=entry.parallel, served=())

    @property
    def model_name(self) -> str:
        """The name clients route by."""
        if self.model.served_model_name:
            return self.model.served_model_name
        path = self.model.model_path
        if path.startswith("builtin:"):
            return path.removeprefix("builtin:")
        return Path(path).name


SECTIONS: Mapping[str, type[_Section]] = {
    "model": ModelConfig,
    "parallel": ParallelConfig,
    "models": ModelsConfig,
    "lora": LoraConfig,
    "scheduling": SchedulingConfig,
    "server": ServerConfig,
    "storage": StorageConfig,
    "webhooks": WebhookConfig,
    "runtime": RuntimeConfig,
}


def engine_fields() -> dict[str, fields.Field]:
    """Every configuration field by its flat name."""
    return {f.name: f for section in SECTIONS.values() for f in fields.declared(section)}


def build(values: Mapping[str, Any], *, strict: bool = True) -> EngineConfig:
    """The tree from flat `values`. Raises `ConfigError` naming the wrong or unknown key."""
    known = engine_fields()
    values = fields.canonical(values, known.values())
    fields.refuse_unknown(values, known, what="setting", error=ConfigError)
    sections = {
        name: fields.convert(
            section,
            {f.name: values[f.name] for f in fields.declared(section) if f.name in values},
            strict=strict,
            error=ConfigError,
        )
        for name, section in SECTIONS.items()
    }
    config = EngineConfig(**cast(Any, sections))
    config = msgspec.structs.replace(config, served=tuple(_served(config, values)))
    for entry in config.entries:
        _check_entry(entry)
    _check_lora(config.lora)
    _check_webhooks(config.webhooks)
    return config


def _check_lora(lora: LoraConfig) -> None:
    given = {"lora_name": lora.lora_name, "lora_nickname": lora.lora_nickname}
    for name, value in given.items():
        if value is not None and lora.lora_path is None:
            raise ConfigError(
                f"{fields.flag(name)} {value} says more about --lora-path, which is not given: "
                "give the directory or repository of the adapter.",
                param=name,
            )


def _check_entry(entry: ServedModel) -> None:
    if entry.model.text_encoder_cpu_offload and entry.parallel.tp_size > 1:
        raise ConfigError(
            "--text-encoder-cpu-offload and --tp-size are two ways to the same end: an encoder is "
            "kept in host memory, or shared out over the GPUs. Give one of them.",
            param="tp_size",
        )
    fields.convert(VaeConfig, entry.model.vae_config, error=ConfigError)


def _check_webhooks(webhooks: WebhookConfig) -> None:
    for url in webhooks.webhook_url:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(
                f"--webhook-url {url}: write a whole URL, http:// or https://.",
                param="webhook_url",
            )
    if (webhooks.webhook_url or webhooks.webhook_secret) and not _is_secret(
        webhooks.webhook_secret or ""
    ):
        raise ConfigError(
            "--webhook-url needs a --webhook-secret to sign with: whsec_ and 24 to 64 random bytes "
            'in base64, as "whsec_$(openssl rand -base64 32)" makes them.',
            param="webhook_secret",
        )


def _is_secret(text: str) -> bool:
    """Of the form that Standard Webhooks prescribes."""
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        return False
    return text.startswith("whsec_") and 24 <= len(key) <= 64


_OF_A_MODEL = (ModelConfig, ParallelConfig)
_NAMES = {"name": "served_model_name", "path": "model_path"}
"""How an entry of `models` may spell them."""


def _served(config: EngineConfig, common: Mapping[str, Any]) -> Iterator[ServedModel]:
    """The models of `--model` and `models:`, each with what holds for all. Raises `ConfigError`."""
    known = {f.name: f for section in _OF_A_MODEL for f in fields.declared(section)}
    shared = {name: value for name, value in common.items() if name in known}
    entries = [_named(text) for text in config.models.model] + list(config.models.models)
    seen = set()
    for entry in entries:
        load = entry.get("load", True)
        own = {str(k).replace("-", "_"): v for k, v in entry.items() if k != "load"}
        own = fields.canonical({_NAMES.get(k, k): v for k, v in own.items()}, known.values())
        fields.refuse_unknown(own, known, what="setting of a model", error=ConfigError)
        one = build({**shared, **own}, strict=False)
        if one.model_name in seen:
            raise ConfigError(f"Two models are called '{one.model_name}': give each a name.")
        if not isinstance(load, bool):
            raise ConfigError(f"'load' of the model {one.model_name} is true or false.")
        seen.add(one.model_name)
        yield ServedModel(name=one.model_name, model=one.model, parallel=one.parallel, load=load)


def _named(text: str) -> dict[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ConfigError(f"--model {text}: write NAME=PATH, for example full=./flux.")
    return {"name": name, "path": path}


def from_environment(
    names: Mapping[str, fields.Field], environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The values of `SAFELIGHT_<NAME>` variables for the fields in `names`."""
    environ = os.environ if environ is None else environ
    found = {
        name: environ[fields.variable(name)]
        for field in names.values()
        if not field.file_only
        for name in (field.name, *field.aliases)
        if fields.variable(name) in environ
    }
    return fields.canonical(found, names.values())


def read_file(path: Path) -> dict[str, Any]:
    """A JSON or YAML mapping. Raises `ConfigError` if it cannot be read or is no mapping."""
    import yaml

    try:
        text = path.read_text("utf-8")
    except OSError as failure:
        raise ConfigError(f"Cannot read the config file {path}: {failure.strerror}.") from failure
    except UnicodeDecodeError as failure:
        raise ConfigError(f"The config file {path} is not UTF-8.") from failure
    try:
        values = yaml.safe_load(text)  # JSON is a subset of YAML
    except yaml.YAMLError as failure:
        raise ConfigError(f"{path} is neither JSON nor YAML: {failure}") from failure
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; a mapping of names is needed.")
    return {str(key).replace("-", "_"): value for key, value in values.items()}
