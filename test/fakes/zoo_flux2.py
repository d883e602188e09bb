"""Tiny random-weight FLUX.2 checkpoints in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fakes.cases import Case
from fakes.zoo import as_bytes, byte_tokenizer
from fakes.zoo_flux import lively
from safelight.models import inputs
from safelight.request import SampleSpec

HIDDEN = 16
_DECODER: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_MISTRAL_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ part['text'][:12] if message['role'] == 'system' else part['text'] }}"
    "{% endfor %}{% endfor %}"
)
"""Of the long system message only the beginning: a byte is a token here."""
_QWEN_TEMPLATE = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"


def tiny_flux2(directory: Path) -> Path:
    """About 1 MB: 8x in space, tokens of 16 pixels, guidance an input of the transformer."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(_MISTRAL_TEMPLATE)
    encoder = Mistral3ForConditionalGeneration(
        Mistral3Config(
            # One layer more than the last that the embeddings are taken from.
            text_config={
                **_DECODER,
                "model_type": "mistral",
                "vocab_size": len(tokenizer),
                "num_hidden_layers": 31,
            },
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
    )
    pipeline = Flux2Pipeline(text_encoder=lively(encoder), tokenizer=tokenizer, **_common(True))
    pipeline.save_pretrained(directory)
    return directory


def tiny_klein(directory: Path, *, distilled: bool = False) -> Path:
    """Guided by two halves, or distilled."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(_QWEN_TEMPLATE)
    encoder = Qwen3ForCausalLM(
        Qwen3Config(**_DECODER, vocab_size=len(tokenizer), num_hidden_layers=28)
    )
    pipeline = Flux2KleinPipeline(
        text_encoder=lively(encoder), tokenizer=tokenizer, is_distilled=distilled, **_common(False)
    )
    pipeline.save_pretrained(directory)
    return directory


def tiny_distilled_klein(directory: Path) -> Path:
    return tiny_klein(directory, distilled=True)


def _tokenizer(template: str) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def _common(guidance_embeds: bool) -> dict[str, Any]:
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=3 * HIDDEN,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return {
        "transformer": lively(transformer),
        "vae": lively(vae),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    }


def _made(kind: Any, directory: Path, spec: SampleSpec) -> np.ndarray:
    """What the `__call__` of a pipeline class makes of a sample."""
    pipeline = kind.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    s = spec.sampling
    pictures = [inputs.image(picture) for picture in spec.inputs.images]
    result = pipeline(
        image=pictures or None,
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


def flux2_reference(directory: Path, spec: SampleSpec) -> np.ndarray:
    """What `Flux2Pipeline.__call__` makes of a sample."""
    return _made(Flux2Pipeline, directory, spec)


def klein_reference(directory: Path, spec: SampleSpec) -> np.ndarray:
    """What `Flux2KleinPipeline.__call__` makes of a sample."""
    return _made(Flux2KleinPipeline, directory, spec)


_STEPS = {"num_inference_steps": 4, "max_sequence_length": 48}
_SMALL = {**_STEPS, "width": 64, "height": 64}

CASES = (
    Case(
        name="FLUX.2",
        task="text-to-image",
        make=tiny_flux2,
        reference=flux2_reference,
        values=_SMALL,
        variant={"guidance_scale": 1.5},
    ),
    Case(
        name="FLUX.2",
        task="image-to-image",
        make=tiny_flux2,
        reference=flux2_reference,
        values=_STEPS,
        images=((89, 70),),
        variant={"guidance_scale": 1.5},
    ),
    Case(
        name="FLUX.2, 2 references",
        task="image-to-image",
        make=tiny_flux2,
        reference=flux2_reference,
        values={**_SMALL, "height": 48},
        images=((89, 70), (64, 100)),
    ),
    Case(
        name="FLUX.2 Klein",
        task="text-to-image",
        make=tiny_klein,
        reference=klein_reference,
        values=_SMALL,
        variant={"guidance_scale": 1.0},
        on_two=(("cfg_parallel_size", 2),),
    ),
    Case(
        name="FLUX.2 Klein",
        task="image-to-image",
        make=tiny_klein,
        reference=klein_reference,
        values=_STEPS,
        images=((89, 70),),
        variant={"guidance_scale": 1.0},
    ),
    Case(
        name="FLUX.2 Klein, 2 references",
        task="image-to-image",
        make=tiny_klein,
        reference=klein_reference,
        values={**_SMALL, "height": 48},
        images=((89, 70), (64, 100)),
    ),
    Case(
        name="FLUX.2 Klein, distilled",
        task="image-to-image",
        make=tiny_distilled_klein,
        reference=klein_reference,
        values=_STEPS,
        images=((89, 70),),
    ),
)
