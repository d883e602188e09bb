"""Tiny random-weight Z-Image checkpoints in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImageImg2ImgPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import Qwen3Config, Qwen3Model

from fakes.cases import Case
from fakes.zoo import as_bytes, byte_tokenizer
from safelight.models.inputs import image
from safelight.request import SampleSpec

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def tiny_z_image(directory: Path, *, turbo: bool = False) -> Path:
    """A text-to-image pipeline of about 2.6 MB: 8x in space, tokens of 16 pixels.

    Turbo and the base model differ in the shift of their noise levels.
    """
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    pipeline = ZImagePipeline(
        tokenizer=tokenizer,
        text_encoder=_qwen(len(tokenizer)).eval(),
        transformer=_transformer().eval(),
        vae=_vae().eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if turbo else 6.0),
    )
    pipeline.save_pretrained(directory)
    return directory


def tiny_turbo(directory: Path) -> Path:
    return tiny_z_image(directory, turbo=True)


def _qwen(words: int) -> Qwen3Model:
    return Qwen3Model(
        Qwen3Config(
            vocab_size=words,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
        )
    )


def _transformer() -> ZImageTransformer2DModel:
    model = ZImageTransformer2DModel(
        in_channels=4,
        dim=64,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=32,
        axes_dims=[4, 4, 8],
        axes_lens=[256, 32, 32],
    )
    # As made they are zero, and padding would go unnoticed.
    torch.nn.init.normal_(model.x_pad_token)
    torch.nn.init.normal_(model.cap_pad_token)
    return model


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


def z_image_reference(directory: Path, spec: SampleSpec) -> np.ndarray:
    """What the `__call__` of `ZImagePipeline`, or with a picture `ZImageImg2ImgPipeline`, makes."""
    s = spec.sampling
    if spec.inputs.images:
        picture = image(spec.inputs.images[0])
        extra: dict[str, Any] = {"image": picture, "strength": s.strength}
        pipeline: Any = ZImageImg2ImgPipeline.from_pretrained(directory)
    else:
        extra = {"width": s.width, "height": s.height}
        pipeline = ZImagePipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(
        prompt=spec.prompt,
        negative_prompt=s.negative_prompt,
        num_inference_steps=s.num_inference_steps,
        guidance_scale=s.guidance_scale,
        max_sequence_length=s.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(s.seed),
        output_type="np",
        **extra,
    )
    return as_bytes(result.images[0])


_SMALL = {"num_inference_steps": 4, "max_sequence_length": 96}
_SQUARE = {**_SMALL, "width": 80, "height": 80}

CASES = (
    Case(
        name="Z-Image Turbo",
        task="text-to-image",
        make=tiny_turbo,
        reference=z_image_reference,
        values=_SQUARE,
        variant={"width": 64, "height": 96},
    ),
    Case(
        name="Z-Image Turbo",
        task="image-to-image",
        make=tiny_turbo,
        reference=z_image_reference,
        values=_SMALL,
        images=((90, 70),),
        on_two=(("ulysses_degree", 2), ("tp_size", 2)),
    ),
    Case(
        name="Z-Image",
        task="text-to-image",
        make=tiny_z_image,
        reference=z_image_reference,
        values={**_SQUARE, "negative_prompt": "ugly, and rather a long list of what else"},
        variant={"guidance_scale": 0.0},
    ),
    Case(
        name="Z-Image",
        task="image-to-image",
        make=tiny_z_image,
        reference=z_image_reference,
        values={**_SMALL, "strength": 0.75},
        images=((96, 64),),
        variant={"strength": 1.0, "width": 64, "height": 80},
        on_two=(("cfg_parallel_size", 2), ("vae_parallel", "on")),
    ),
)
