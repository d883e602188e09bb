"""Writes the trained parts as a model folder in the diffusers layout, in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from .text import PIPELINE_KEYS, SERVED_KEYS
from .vae import make_vae
from .world import END, MAX_FRAMES, PAD, UNKNOWN, VOCABULARY

FLOW_SHIFT = 3.0

# what the serving engine should know of the model beyond the diffusers layout
SERVING: dict[str, Any] = {
    "name": "shapes",
    "defaults": {
        "width": 64,
        "height": 64,
        "num_frames": 9,
        "fps": 8,
        "num_inference_steps": 10,
        "guidance_scale": 3.0,
        "max_sequence_length": SERVED_KEYS,
    },
    "limits": {"width": [32, 128], "height": [32, 128], "num_frames": [1, MAX_FRAMES]},
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that agrees with :func:`.world.tokenize`."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, VOCABULARY[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=PIPELINE_KEYS,
        padding_side="right",
    )


def make_scheduler() -> UniPCMultistepScheduler:
    """The scheduler the model is served with."""
    return UniPCMultistepScheduler(
        num_train_timesteps=1000,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=FLOW_SHIFT,
    )


def _name_tokenizer_class(folder: Path) -> None:
    """transformers 5 writes a class name that transformers 4 does not know; the name
    written here loads in both."""
    for name in ("model_index.json", "tokenizer/tokenizer_config.json"):
        path = folder / name
        text = path.read_text(encoding="utf-8")
        path.write_text(
            text.replace("TokenizersBackend", "PreTrainedTokenizerFast"), encoding="utf-8"
        )


def _make_readable(folder: Path) -> None:
    """safetensors writes files that only their owner can read; a package is for all."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def export(
    folder: Path,
    vae: AutoencoderKLWan,
    latent_statistics: tuple[Tensor, Tensor],
    transformer: WanTransformer3DModel,
    text_encoder: UMT5EncoderModel,
) -> None:
    """Write the model; an unmodified ``WanPipeline.from_pretrained`` loads it."""
    mean, std = ([round(float(x), 5) for x in values] for values in latent_statistics)
    normalized_vae = make_vae(mean, std)
    normalized_vae.load_state_dict(vae.state_dict())
    pipeline = WanPipeline(
        tokenizer=make_tokenizer(),
        text_encoder=text_encoder,
        vae=normalized_vae,
        scheduler=make_scheduler(),
        transformer=transformer,
    )
    pipeline.to(torch.bfloat16).save_pretrained(folder)
    _name_tokenizer_class(folder)
    serving = json.dumps(SERVING, indent=2) + "\n"
    (folder / "safelight.json").write_text(serving, encoding="utf-8")
    _make_readable(folder)
