"""Tiny random-weight FLUX.1 checkpoints in diffusers' layout, and work for ranks with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from diffusers.pipelines.flux import pipeline_flux_kontext, pipeline_flux_kontext_inpaint
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from fakes import parity
from fakes.cases import Case
from fakes.zoo import as_bytes, byte_tokenizer
from safelight.models import inputs
from safelight.models.flux import spec as flux
from safelight.request import SampleSpec


def tiny_flux(directory: Path, *, guidance_embeds: bool = True) -> Path:
    """A text-to-image pipeline of about 2 MB: 8x in space, tokens of 16 pixels.

    With embedded guidance as dev, whose noise levels shift with the size; without as schnell.
    """
    return _tiny(FluxPipeline, directory, guidance_embeds=guidance_embeds)


def tiny_schnell(directory: Path) -> Path:
    """Without embedded guidance, with fixed noise levels."""
    return tiny_flux(directory, guidance_embeds=False)


def tiny_fill(directory: Path) -> Path:
    """Its transformer takes the masked picture, and 16x16 pixels of the mask a token, as well."""
    return _tiny(FluxFillPipeline, directory, in_channels=16 + 16 + 256)


def tiny_kontext(directory: Path) -> Path:
    """Tokens of 64 pixels: it sees pictures at a megapixel, which are 256 tokens then."""
    return _tiny(FluxKontextPipeline, directory, levels=6)


def _tiny(
    kind: Any,
    directory: Path,
    *,
    guidance_embeds: bool = True,
    in_channels: int = 16,
    levels: int = 4,
) -> Path:
    torch.manual_seed(0)
    tokenizer, tokenizer_2 = byte_tokenizer(), byte_tokenizer()
    tokenizer.model_max_length = 77
    pipeline = kind(
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        text_encoder=_clip(len(tokenizer)).eval(),
        text_encoder_2=_t5(len(tokenizer_2)).eval(),
        transformer=lively(_transformer(guidance_embeds, in_channels)),
        vae=lively(_vae(levels)),
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        ),
    )
    pipeline.save_pretrained(directory)
    return directory


def lively(model: Any) -> Any:
    """Weights that let everything matter: with a fresh model's, attention is nearly uniform, and
    what it looks at hardly shows in the picture."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5)
    return model.eval()


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


def _transformer(guidance_embeds: bool, in_channels: int) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )


def _vae(levels: int) -> AutoencoderKL:
    small = levels == 4
    return AutoencoderKL(
        block_out_channels=((8,) if small else (4,)) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1 if small else 0,
        latent_channels=4,
        norm_num_groups=4 if small else 2,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _made(kind: Any, directory: Path, spec: SampleSpec, **more: Any) -> np.ndarray:
    """What the `__call__` of a pipeline class makes of a sample."""
    pipeline = kind.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    s = spec.sampling
    if s.true_cfg_scale is not None:
        more |= {"true_cfg_scale": s.true_cfg_scale, "negative_prompt": s.negative_prompt}
    if s.strength is not None:
        more["strength"] = s.strength
    if spec.inputs.images:
        more["image"] = inputs.image(spec.inputs.images[0])
    if spec.inputs.mask is not None:
        more["mask_image"] = inputs.image(spec.inputs.mask)
    result = pipeline(
        prompt=spec.prompt,
        height=s.height,
        width=s.width,
        num_inference_steps=s.num_inference_steps,
        guidance_scale=s.guidance_scale,
        max_sequence_length=s.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(s.seed),
        output_type="np",
        **more,
    )
    return as_bytes(result.images[0])


def flux_reference(directory: Path, spec: SampleSpec) -> np.ndarray:
    """What `FluxPipeline`, or its sibling for the task, makes of a sample."""
    kind = {"image-to-image": FluxImg2ImgPipeline, "inpainting": FluxInpaintPipeline}
    return _made(kind.get(spec.task, FluxPipeline), directory, spec)


def fill_reference(directory: Path, spec: SampleSpec) -> np.ndarray:
    """What `FluxFillPipeline` makes of a sample."""
    return _made(FluxFillPipeline, directory, spec)


def kontext_reference(directory: Path, spec: SampleSpec) -> np.ndarray:
    """What `FluxKontextPipeline`, or its sibling, makes of a sample of the size it has."""
    kind = FluxKontextInpaintPipeline if spec.task == "inpainting" else FluxKontextPipeline
    area = spec.sampling.width * spec.sampling.height
    return _made(kind, directory, spec, max_area=area)


def half_of_a_side(monkeypatch: Any) -> None:
    """Kontext sees pictures of a quarter of a megapixel for a megapixel, and makes such."""
    for module in (pipeline_flux_kontext, pipeline_flux_kontext_inpaint):
        sizes = module.PREFERRED_KONTEXT_RESOLUTIONS
        smaller = [(width // 2, height // 2) for width, height in sizes]
        monkeypatch.setattr(module, "PREFERRED_KONTEXT_RESOLUTIONS", smaller)
    smaller = [(width // 2, height // 2) for width, height in flux.PREFERRED]
    monkeypatch.setattr(flux, "PREFERRED", smaller)


_STEPS = {"num_inference_steps": 4, "max_sequence_length": 64}
_SMALL = {**_STEPS, "width": 64, "height": 64}
_GUIDED = {"true_cfg_scale": 3.0, "negative_prompt": "ugly"}

CASES = (
    Case(
        name="FLUX.1 dev",
        task="text-to-image",
        make=tiny_flux,
        reference=flux_reference,
        values={**_SMALL, "guidance_scale": 3.0},
        variant={"guidance_scale": 1.5, **_GUIDED},
    ),
    Case(
        name="FLUX.1 dev",
        task="image-to-image",
        make=tiny_flux,
        reference=flux_reference,
        values={**_SMALL, **_GUIDED, "strength": 0.6},
        images=((80, 56),),
        variant={"true_cfg_scale": 1.0, "negative_prompt": "", "strength": 0.9},
        on_two=(("cfg_parallel_size", 2),),
    ),
    Case(
        name="FLUX.1 dev",
        task="inpainting",
        make=tiny_flux,
        reference=flux_reference,
        values={**_SMALL, "strength": 0.8},
        images=((80, 56),),
        mask=True,
    ),
    Case(
        name="FLUX.1 schnell",
        task="text-to-image",
        make=tiny_schnell,
        reference=flux_reference,
        values=_SMALL,
    ),
    Case(
        name="FLUX.1 Fill",
        task="inpainting",
        make=tiny_fill,
        reference=fill_reference,
        values=_SMALL,
        images=((80, 56),),
        mask=True,
        variant={"guidance_scale": 3.5, "strength": 0.9},
    ),
    Case(
        name="FLUX.1 Kontext",
        task="text-to-image",
        make=tiny_kontext,
        reference=kontext_reference,
        values={**_STEPS, "width": 256, "height": 192},
    ),
    Case(
        name="FLUX.1 Kontext",
        task="image-to-image",
        make=tiny_kontext,
        reference=kontext_reference,
        values={**_STEPS, "width": 256, "height": 192},
        images=((96, 64),),
        variant={"guidance_scale": 1.5, **_GUIDED},
        environment=half_of_a_side,
    ),
    Case(
        name="FLUX.1 Kontext",
        task="inpainting",
        make=tiny_kontext,
        reference=kontext_reference,
        values={**_STEPS, "strength": 0.9},
        images=((80, 120),),
        mask=True,
        environment=half_of_a_side,
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
