"""Text encoders with random weights, each written as the only component of a pipeline.

A directory holds `model_index.json` and `text_encoder/`, as diffusers lays them out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

COMPONENT = "text_encoder"
VOCABULARY = 259
"""Odd: ranks have unequal shares of it."""

_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def t5(kind: str = "t5", **changes: Any) -> Any:
    """T5 or UMT5, gated, with four heads of eight."""
    config = {
        "vocab_size": VOCABULARY,
        "d_model": 64,
        "d_kv": 8,
        "d_ff": 96,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    } | changes
    name = {"t5": "T5", "umt5": "UMT5"}[kind]
    whole = getattr(transformers, f"{name}EncoderModel")
    return _filled(whole(getattr(transformers, f"{name}Config")(**config)))


def qwen3(**changes: Any) -> Any:
    """With its head tied to the embedding."""
    config = _DECODER | {"head_dim": 8, "tie_word_embeddings": True} | changes
    return _filled(transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**config)))


def qwen2_5_vl() -> Any:
    """With biases, a head of its own, and a small vision tower."""
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [1, 1, 2]}
    config = transformers.Qwen2_5_VLConfig(
        text_config=_DECODER | {"rope_parameters": rope | {"rope_theta": 10000.0}},
        vision_config={
            "depth": 1,
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 2,
            "spatial_merge_size": 1,
            "fullatt_block_indexes": [0],
        },
        tie_word_embeddings=False,
        image_token_id=250,
        video_token_id=251,
        vision_start_token_id=252,
        vision_end_token_id=253,
    )
    return _filled(transformers.Qwen2_5_VLForConditionalGeneration(config))


def mistral3() -> Any:
    """With a small vision tower."""
    config = transformers.Mistral3Config(
        text_config=_DECODER | {"model_type": "mistral", "head_dim": 8},
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 4,
            "image_size": 16,
            "patch_size": 8,
        },
        image_token_index=250,
        spatial_merge_size=1,
        tie_word_embeddings=False,
    )
    return _filled(transformers.Mistral3ForConditionalGeneration(config))


def mistral() -> Any:
    """With its head tied to the embedding."""
    config = _DECODER | {"head_dim": 8, "tie_word_embeddings": True}
    return _filled(transformers.MistralForCausalLM(transformers.MistralConfig(**config)))


def clip() -> Any:
    return _filled(
        transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=4,
            )
        )
    )


def umt5_medium() -> Any:
    """66 million parameters, half of them words: 265 MB in float32."""
    return t5("umt5", vocab_size=2**16, d_model=512, d_kv=64, d_ff=2048, num_layers=8, num_heads=8)


ENCODERS: dict[str, Callable[[], Any]] = {
    "T5": t5,
    "UMT5": lambda: t5("umt5"),
    "Qwen2.5-VL": qwen2_5_vl,
    "Qwen3": qwen3,
    "Mistral": mistral,
    "Mistral3": mistral3,
}


def _filled(model: Any) -> Any:
    """Weights that all matter: a fresh model's attention is nearly uniform, its biases zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "relative_attention_bias" in name:
            parameter.data.normal_(generator=generator)
        elif parameter.ndim > 1:
            parameter.data.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
        else:
            parameter.data.add_(torch.empty_like(parameter).normal_(std=0.1, generator=generator))
    return model.eval()


def write(model: Any, directory: Path, **options: Any) -> Path:
    """A pipeline directory with `model` as its text encoder; options are `save_pretrained`'s."""
    model.save_pretrained(directory / COMPONENT, **options)
    index = {"_class_name": "Pipeline", COMPONENT: ["transformers", type(model).__name__]}
    (directory / "model_index.json").write_text(json.dumps(index), "utf-8")
    return directory


def load_whole(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The encoder as pipelines load it."""
    index = json.loads((directory / "model_index.json").read_text("utf-8"))
    whole = getattr(transformers, index[COMPONENT][1])
    return whole.from_pretrained(directory / COMPONENT, dtype=dtype, local_files_only=True)


def change_config(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the encoder's `config.json`."""
    path = directory / COMPONENT / "config.json"
    config = json.loads(path.read_text("utf-8"))
    change(config)
    path.write_text(json.dumps(config), "utf-8")


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Rewrite the encoder's only file of weights."""
    path = directory / COMPONENT / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})
