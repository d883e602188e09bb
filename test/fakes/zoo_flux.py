"""A tiny random-weight FLUX.1 checkpoint in diffusers' layout, and work for ranks with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from fakes import parity
from fakes.cases import Case
from fakes.zoo import as_bytes, byte_tokenizer
from safelight.request import SampleSpec


def tiny_flux(directory: Path, *, guidance_embeds: bool = True) -> Path:
    """A text-to-image pipeline of about 2 MB: 8x in space, tokens of 16 pixels.

    With embedded guidance as dev, whose noise levels shift with the size; without as schnell.
    """
    torch.manual_seed(0)
    tokenizer, tokenizer_2 = byte_tokenizer(), byte_tokenizer()
    tokenizer.model_max_length = 77
    pipeline = FluxPipeline(
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        text_encoder=_clip(len(tokenizer)).eval(),
        text_encoder_2=_t5(len(tokenizer_2)).eval(),
        transformer=_transformer(guidance_embeds).eval(),
        vae=_vae().eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        ),
    )
    pipeline.save_pretrained(directory)
    return directory


def _clip(words: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
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


def _transformer(guidance_embeds: bool) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def flux_reference(directory: Path, spec: SampleSpec) -> np.ndarray:
    """What `FluxPipeline.__call__` makes of a sample."""
    pipeline = FluxPipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    s = spec.sampling
    result = pipeline(
        prompt=spec.prompt,
        height=s.height,
        width=s.width,
        num_inference_steps=s.num_inference_steps,
        guidance_scale=s.guidance_scale,
        max_sequence_length=s.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(s.seed),
        output_type="np",
    )
    return as_bytes(result.images[0])


def tiny_schnell(directory: Path) -> Path:
    """Without embedded guidance, with fixed noise levels."""
    return tiny_flux(directory, guidance_embeds=False)


_SMALL = {"width": 64, "height": 64, "num_inference_steps": 4, "max_sequence_length": 64}

CASES = (
    Case(
        name="FLUX.1 dev",
        task="text-to-image",
        make=tiny_flux,
        reference=flux_reference,
        values={**_SMALL, "guidance_scale": 3.0},
        variant={"guidance_scale": 1.5},
    ),
    Case(
        name="FLUX.1 schnell",
        task="text-to-image",
        make=tiny_schnell,
        reference=flux_reference,
        values=_SMALL,
    ),
)


@parity.one_thread()
@torch.inference_mode()
def generate(
    rank: int, settings: parity.Settings, specs: Sequence[SampleSpec]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Latents, and on rank 0 frames, of samples that share every forward."""
    family, _ = parity._loaded(settings)
    sessions = [family.begin(spec, family.encode(spec)) for spec in specs]
    for _ in range(specs[0].sampling.num_inference_steps):
        family.step(sessions)
    together = family.decodes_together(sessions)
    frames = family.decode(sessions) if rank == 0 or together else []
    return [s.latents.numpy() for s in sessions], list(frames)
