"""Tiny random-weight Stable Diffusion XL checkpoints in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fakes.cases import Case
from fakes.zoo import as_bytes, byte_tokenizer
from safelight.models.inputs import image
from safelight.request import SampleSpec

SAMPLER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
"""As SDXL has it."""


def tiny_sdxl(
    directory: Path,
    *,
    kind: Any = StableDiffusionXLPipeline,
    scheduler: Any = None,
    channels: int = 4,
    refiner: bool = False,
    zeros: bool = True,
    vae: dict[str, Any] | None = None,
    **unet: Any,
) -> Path:
    """A pipeline of about 1 MB, 8x in space: attention from the second of its UNet's two levels.

    As the refiner it has the second text encoder only, and is told aesthetic scores.
    """
    torch.manual_seed(0)
    tokenizers = [byte_tokenizer() for _ in range(2)]
    for tokenizer in tokenizers:
        tokenizer.model_max_length = 77
    words = len(tokenizers[0])
    first = CLIPTextModel(_clip(words)).eval()
    second = CLIPTextModelWithProjection(_clip(words)).eval()
    text = {"tokenizer": tokenizers[0], "text_encoder": first}
    options: dict[str, Any] = {"force_zeros_for_empty_prompt": zeros}
    if refiner:
        kind, text = StableDiffusionXLImg2ImgPipeline, dict.fromkeys(text)
        options = {"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True}
    pipeline = kind(
        **text,
        tokenizer_2=tokenizers[1],
        text_encoder_2=second,
        unet=_unet(channels, refiner, **unet).eval(),
        vae=_vae(**(vae or {})).eval(),
        scheduler=scheduler or EulerDiscreteScheduler(**SAMPLER),
        **options,
    )
    pipeline.save_pretrained(directory)
    return directory


def _clip(words: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=words,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=16,
        bos_token_id=1,
        pad_token_id=0,
        # Pools at the largest token, the first space: the byte tokenizer appends no end.
        eos_token_id=2,
    )


def _unet(channels: int, refiner: bool, **changes: Any) -> UNet2DConditionModel:
    options: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "norm_num_groups": 4,
        "cross_attention_dim": 16 if refiner else 32,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 8 * (5 if refiner else 6),
    }
    return UNet2DConditionModel(**{**options, **changes})


def _vae(**changes: Any) -> AutoencoderKL:
    options: dict[str, Any] = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    }
    return AutoencoderKL(**{**options, **changes})


def tiny_inpainter(directory: Path) -> Path:
    """With a UNet that sees the mask and the masked picture."""
    return tiny_sdxl(directory, kind=StableDiffusionXLInpaintPipeline, channels=9)


def sdxl_reference(directory: Path, spec: SampleSpec, **loading: Any) -> np.ndarray:
    """What the `__call__` of the task's pipeline makes of a sample."""
    s, inputs = spec.sampling, spec.inputs
    kind: Any = StableDiffusionXLPipeline
    extra: dict[str, Any] = {"width": s.width, "height": s.height}
    if inputs.images:
        kind = StableDiffusionXLImg2ImgPipeline
        extra = {"image": image(inputs.images[0]), "strength": s.strength}
    if inputs.mask is not None:
        kind = StableDiffusionXLInpaintPipeline
        extra |= {"mask_image": image(inputs.mask), "width": s.width, "height": s.height}
    pipeline = kind.from_pretrained(directory, **loading)
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(
        prompt=spec.prompt,
        negative_prompt=s.negative_prompt or None,
        num_inference_steps=s.num_inference_steps,
        guidance_scale=s.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(s.seed),
        output_type="np",
        **extra,
    )
    return as_bytes(result.images[0])


_SMALL = {"width": 64, "height": 72, "num_inference_steps": 4}
_HALVES = (("cfg_parallel_size", 2),)

CASES = (
    Case(
        name="SDXL",
        task="text-to-image",
        make=tiny_sdxl,
        reference=sdxl_reference,
        values=_SMALL,
        variant={"guidance_scale": 1.0},
        on_two=_HALVES,
    ),
    Case(
        name="SDXL",
        task="image-to-image",
        make=tiny_sdxl,
        reference=sdxl_reference,
        values={"num_inference_steps": 5, "strength": 0.7, "negative_prompt": "ugly"},
        images=((70, 77),),
        variant={"guidance_scale": 3.0, "strength": 0.9},
        on_two=_HALVES,
    ),
    Case(
        name="SDXL",
        task="inpainting",
        make=tiny_sdxl,
        reference=sdxl_reference,
        values=_SMALL,
        images=((64, 64),),
        mask=True,
        variant={"strength": 1.0},
        on_two=(*_HALVES, ("vae_parallel", "on")),
    ),
    Case(
        name="SDXL inpainting UNet",
        task="inpainting",
        make=tiny_inpainter,
        reference=sdxl_reference,
        values={**_SMALL, "negative_prompt": "ugly"},
        images=((64, 64),),
        mask=True,
        variant={"strength": 1.0, "guidance_scale": 1.0},
        on_two=_HALVES,
    ),
)
