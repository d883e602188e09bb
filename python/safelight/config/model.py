"""The model: where it is, how it is loaded, in what precision it runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from safelight.config.section import Section

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_TORCH = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16"}
"""How torch and other systems spell them."""

Mode = Literal["t2i", "edit", "t2v", "i2v"]


class VaeConfig(Section, frozen=True):
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


class ModelConfig(Section, frozen=True):
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
