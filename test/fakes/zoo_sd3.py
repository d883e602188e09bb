"""Tiny random-weight Stable Diffusion 3 checkpoints in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from fakes.cases import Case
from fakes.zoo import as_bytes, byte_tokenizer
from safelight.models.inputs import image
from safelight.request import SampleSpec


def tiny_sd3(directory: Path, *, t5: bool = True, dynamic: bool = False) -> Path:
    """A text-to-image pipeline of about 2 MB: 8x in space, tokens of 16 pixels, up to 192 a side.

    Its first block has attention among image tokens besides, as those of 3.5 Medium have.
    """
    torch.manual_seed(0)
    clips = [byte_tokenizer() for _ in range(2)]
    for tokenizer in clips:
        tokenizer.model_max_length = 77
    words = len(clips[0])
    pipeline = StableDiffusion3Pipeline(
        tokenizer=clips[0],
        tokenizer_2=clips[1],
        tokenizer_3=byte_tokenizer() if t5 else None,
        text_encoder=_clip(words).eval(),
        text_encoder_2=_clip(words).eval(),
        text_encoder_3=_t5(words).eval() if t5 else None,
        transformer=_transformer().eval(),
        vae=_vae().eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=1.0 if dynamic else 3.0, use_dynamic_shifting=dynamic
        ),
    )
    pipeline.save_pretrained(directory)
    return directory


def _clip(words: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=16,
            bos_token_id=1,
            pad_token_id=0,
            # Pools at the largest token, the first space: the byte tokenizer appends no end.
            eos_token_id=2,
        )
    )


def _t5(words: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=words, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )


def _transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=16,
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=64,
        pooled_projection_dim=32,
        out_channels=16,
        pos_embed_max_size=12,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def sd3_reference(directory: Path, spec: SampleSpec) -> np.ndarray:
    """What the `__call__` of the task's pipeline makes of a sample."""
    s, inputs = spec.sampling, spec.inputs
    kind: Any = StableDiffusion3Pipeline
    extra: dict[str, Any] = {}
    if inputs.images:
        kind = StableDiffusion3Img2ImgPipeline
        extra = {"image": image(inputs.images[0]), "strength": s.strength}
    if inputs.mask is not None:
        kind = StableDiffusion3InpaintPipeline
        extra["mask_image"] = image(inputs.mask)
    absent = ("text_encoder_3", "tokenizer_3") if not (directory / "tokenizer_3").exists() else ()
    pipeline = kind.from_pretrained(directory, **dict.fromkeys(absent))
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(
        prompt=spec.prompt,
        negative_prompt=s.negative_prompt,
        height=s.height,
        width=s.width,
        num_inference_steps=s.num_inference_steps,
        guidance_scale=s.guidance_scale,
        max_sequence_length=s.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(s.seed),
        output_type="np",
        **extra,
    )
    return as_bytes(result.images[0])


_SMALL = {"width": 64, "height": 80, "num_inference_steps": 4, "max_sequence_length": 64}

CASES = (
    Case(
        name="SD3",
        task="text-to-image",
        make=tiny_sd3,
        reference=sd3_reference,
        values={**_SMALL, "negative_prompt": "ugly"},
        variant={"guidance_scale": 1.0},
        on_two=(("cfg_parallel_size", 2),),
    ),
    Case(
        name="SD3",
        task="image-to-image",
        make=tiny_sd3,
        reference=sd3_reference,
        values={**_SMALL, "strength": 0.7},
        images=((90, 70),),
        variant={"guidance_scale": 3.0, "strength": 1.0},
        on_two=(("cfg_parallel_size", 2), ("tp_size", 2)),
    ),
    Case(
        name="SD3",
        task="inpainting",
        make=tiny_sd3,
        reference=sd3_reference,
        values=_SMALL,
        images=((64, 64),),
        mask=True,
        variant={"strength": 1.0},
        on_two=(("cfg_parallel_size", 2), ("vae_parallel", "on")),
    ),
)
