"""What the tiny checkpoints without a family are made of, and what is expected of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import processors
from transformers import (
    CLIPTextConfig,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from fakes.cases import Case
from fakes.zoo import as_bytes, byte_tokenizer
from safelight.models import inputs
from safelight.request import SampleSpec

WORDS = len(byte_tokenizer())
END = 1
SIDE = 64
"""Pixels of the checkpoints' own size."""

Reference = Callable[[Path, SampleSpec], np.ndarray]
Make = Callable[[Path], Path]


# -------------------------------------------------------------------------------------- references


def reference(kind: type[DiffusionPipeline], *fields: str, size: bool = True) -> Reference:
    """What the `__call__` of `kind` makes of a sample, with these fields of its `Sampling`."""

    def made(directory: Path, spec: SampleSpec) -> np.ndarray:
        pipeline = kind.from_pretrained(directory)
        pipeline.set_progress_bar_config(disable=True)
        names = ("num_inference_steps", *(("width", "height") if size else ()), *fields)
        arguments: dict[str, Any] = {name: getattr(spec.sampling, name) for name in names}
        for picture in spec.inputs.images:
            arguments["image"] = inputs.image(picture)
        if spec.inputs.mask is not None:
            arguments["mask_image"] = inputs.image(spec.inputs.mask)
        result = pipeline(
            prompt=spec.prompt,
            generator=torch.Generator("cpu").manual_seed(spec.sampling.seed),
            output_type="np",
            **arguments,
        )
        return as_bytes(result.frames[0] if "frames" in result else result.images)

    return made


# ------------------------------------------------------------------------------------------- parts


def tokenizer(length: int = 512) -> PreTrainedTokenizerFast:
    """Every prompt has an end, so that the empty one is not empty."""
    made = byte_tokenizer()
    made.model_max_length = length
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", END)]
    )
    return made


def t5() -> T5EncoderModel:
    config = T5Config(vocab_size=WORDS, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return T5EncoderModel(config)


def clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=2,
        pad_token_id=0,
        eos_token_id=END,
    )


def gemma() -> Gemma2Model:
    return Gemma2Model(
        Gemma2Config(
            vocab_size=WORDS,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
        )
    )


def vae(channels: int = 4, **config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        **config,
    )


def unet(**config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=32,
        **{
            "sample_size": SIDE // 8,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            **config,
        },
    )


def stirred(model: torch.nn.Module) -> torch.nn.Module:
    """With random numbers where a fresh model has zeros, and large ones where it has small: its
    prompt must be seen in its pictures."""
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
        elif parameter.ndim > 1:
            parameter.data *= 2.5
    return model


def saved(kind: type[DiffusionPipeline], directory: Path, **parts: Any) -> Path:
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    kind(**parts).save_pretrained(directory)
    return directory


def make(build: Callable[[Path], Path]) -> Make:
    """With the same weights every time."""

    def built(directory: Path) -> Path:
        torch.manual_seed(0)
        return build(directory)

    return built


def quiet(patch: pytest.MonkeyPatch) -> None:
    """Some warn of their own ways: Kandinsky of its callbacks, Mochi of autocast on the CPU."""
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", UserWarning)


SMALL = {"width": SIDE, "height": SIDE, "num_inference_steps": 4}
GUIDED = {**SMALL, "guidance_scale": 3.0}
OTHERS = {"guidance_scale": 1.0}
"""Of the sample that is interleaved."""


def case(name: str, build: Make, reference: Reference, **given: Any) -> Case:
    fields = {"task": "text-to-image", "values": GUIDED, "variant": OTHERS, **given}
    return Case(name=name, make=build, reference=reference, solo=True, on_two=(), **fields)
