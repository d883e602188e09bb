"""Tiny random-weight checkpoints of Wan from pictures and of Wan 2.2, in diffusers' layout."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    UMT5Config,
    UMT5EncoderModel,
)

from fakes.cases import Case
from fakes.zoo import as_bytes, byte_tokenizer
from safelight.models import inputs
from safelight.models.registry import pipeline_class, read_json
from safelight.request import SampleSpec

LATENT = 8  # channels
WITH_PICTURE = 2 * LATENT + 4
VISION = {"hidden_size": 32, "image_size": 16, "patch_size": 8}
VISION_TOKENS = 5


def _transformer(seed: int, **values: Any) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    settings = {
        "num_attention_heads": 4,
        "attention_head_dim": 12,
        "in_channels": LATENT,
        "out_channels": LATENT,
        "text_dim": 32,
        "freq_dim": 64,
        "ffn_dim": 64,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    model = WanTransformer3DModel(**{**settings, **values}).eval()
    if values.get("pos_embed_seq_len"):
        torch.nn.init.normal_(model.condition_embedder.image_embedder.pos_embed)
    return model


def _vae(**values: Any) -> AutoencoderKLWan:
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=LATENT,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1 * channel for channel in range(LATENT)],
        latents_std=[1 + 0.1 * channel for channel in range(LATENT)],
        **values,
    ).eval()
    # As it is drawn, it makes nearly the same latents of all pictures.
    with torch.no_grad():
        vae.quant_conv.weight *= 20
    return vae


def _common(vae: AutoencoderKLWan) -> dict[str, Any]:
    tokenizer = byte_tokenizer()
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder.eval(),
        "vae": vae,
        "scheduler": scheduler,
    }


def tiny_image_to_video(directory: Path, *, last: bool = False) -> Path:
    """Wan 2.1 from a picture, which an image encoder sees as well; `last`: from the first and the
    last frame."""
    torch.manual_seed(6)
    encoder = CLIPVisionModel(
        CLIPVisionConfig(**VISION, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)
    )
    side = VISION["image_size"]
    pipeline = WanImageToVideoPipeline(
        **_common(_vae()),
        image_encoder=encoder.eval(),
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        transformer=_transformer(
            2,
            in_channels=WITH_PICTURE,
            image_dim=VISION["hidden_size"],
            added_kv_proj_dim=48,
            pos_embed_seq_len=2 * VISION_TOKENS if last else None,
        ),
    )
    pipeline.save_pretrained(directory)
    return directory


tiny_first_and_last = partial(tiny_image_to_video, last=True)


def tiny_a14b(directory: Path) -> Path:
    """Wan 2.2 text-to-video with two experts: the first takes timesteps from 875."""
    torch.manual_seed(3)
    pipeline = WanPipeline(
        **_common(_vae()),
        transformer=_transformer(4),
        transformer_2=_transformer(5),
        boundary_ratio=0.875,
    )
    pipeline.save_pretrained(directory)
    return directory


def tiny_a14b_from_pictures(directory: Path) -> Path:
    """Wan 2.2 image-to-video with two experts and no image encoder."""
    torch.manual_seed(6)
    pipeline = WanImageToVideoPipeline(
        **_common(_vae()),
        transformer=_transformer(7, in_channels=WITH_PICTURE),
        transformer_2=_transformer(8, in_channels=WITH_PICTURE),
        boundary_ratio=0.9,
    )
    pipeline.save_pretrained(directory)
    return directory


def tiny_ti2v(directory: Path, kind: type = WanPipeline) -> Path:
    """Wan 2.2 TI2V: a timestep for every token, a VAE of 16x in space and 4x in time."""
    torch.manual_seed(9)
    vae = _vae(
        decoder_base_dim=8,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    kind(**_common(vae), transformer=_transformer(10), expand_timesteps=True).save_pretrained(
        directory
    )
    return directory


def reference_pipeline(directory: Path, kind: Any) -> Any:
    """diffusers' pipeline of class `kind`, made of the parts in `directory`."""
    named = {"WanPipeline": WanPipeline, "WanImageToVideoPipeline": WanImageToVideoPipeline}
    pipeline = named[pipeline_class(directory)].from_pretrained(directory)
    if not isinstance(pipeline, kind):
        parts = {name: part for name, part in pipeline.components.items() if "image" not in name}
        index = read_json(directory / "model_index.json")
        pipeline = kind(**parts, expand_timesteps=index["expand_timesteps"])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference(directory: Path, spec: SampleSpec) -> np.ndarray:
    """What `__call__` of the task's pipeline makes of a sample."""
    pictures = [inputs.image(picture) for picture in spec.inputs.images]
    pipeline = reference_pipeline(directory, WanImageToVideoPipeline if pictures else WanPipeline)
    return frames_of(pipeline, spec)


def frames_of(pipeline: Any, spec: SampleSpec) -> np.ndarray:
    """What `__call__` of a pipeline makes of a sample."""
    s = spec.sampling
    pictures = [inputs.image(picture) for picture in spec.inputs.images]
    if s.flow_shift is not None:
        pipeline.scheduler = UniPCMultistepScheduler.from_config(
            pipeline.scheduler.config, flow_shift=s.flow_shift
        )
    result = pipeline(
        **dict(zip(("image", "last_image"), pictures, strict=False)),
        prompt=spec.prompt,
        negative_prompt=s.negative_prompt,
        height=s.height,
        width=s.width,
        num_frames=s.num_frames,
        num_inference_steps=s.num_inference_steps,
        guidance_scale=s.guidance_scale,
        guidance_scale_2=s.guidance_scale_2,
        max_sequence_length=s.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(s.seed),
        output_type="np",
    )
    return as_bytes(result.frames[0])


_SMALL = {"width": 64, "height": 64, "num_inference_steps": 4, "num_frames": 9}
_SHORT = {"max_sequence_length": 64}
_CFG = (("cfg_parallel_size", 2),)
_ALL = (("ulysses_degree", 2), ("vae_parallel", "on"))

CASES = (
    Case(
        name="Wan 2.1 I2V",
        task="image-to-video",
        make=tiny_image_to_video,
        reference=reference,
        values={**_SMALL, "guidance_scale": 3.0},
        images=((96, 80),),
        variant={"guidance_scale": 1.0},
    ),
    Case(
        name="Wan 2.1 FLF2V",
        task="image-to-video",
        make=tiny_first_and_last,
        reference=reference,
        values={**_SMALL, "guidance_scale": 3.0},
        images=((64, 64), (80, 48)),
        on_two=_CFG,
    ),
    Case(
        name="Wan 2.2 A14B",
        task="text-to-video",
        make=tiny_a14b,
        reference=reference,
        values={**_SMALL, **_SHORT, "negative_prompt": "ugly", "guidance_scale_2": 2.0},
    ),
    Case(
        name="Wan 2.2 A14B",
        task="text-to-image",
        make=tiny_a14b,
        reference=reference,
        values={**_SMALL, **_SHORT, "num_frames": 1, "guidance_scale": 3.0},
        variant={"guidance_scale": 1.0},
        on_two=_CFG,
    ),
    Case(
        name="Wan 2.2 A14B",
        task="image-to-video",
        make=tiny_a14b_from_pictures,
        reference=reference,
        values={**_SMALL, **_SHORT, "flow_shift": 5.0},
        images=((96, 80),),
        variant={"guidance_scale": 4.0, "guidance_scale_2": 1.0},
        on_two=_ALL,
    ),
    Case(
        name="Wan 2.2 TI2V-5B",
        task="text-to-video",
        make=tiny_ti2v,
        reference=reference,
        values={**_SMALL, **_SHORT},
        variant={"guidance_scale": 1.0},
    ),
    Case(
        name="Wan 2.2 TI2V-5B",
        task="text-to-image",
        make=tiny_ti2v,
        reference=reference,
        values={**_SMALL, **_SHORT, "num_frames": 1},
        on_two=_CFG,
    ),
    Case(
        name="Wan 2.2 TI2V-5B",
        task="image-to-video",
        make=tiny_ti2v,
        reference=reference,
        values={**_SMALL, **_SHORT, "width": 96},
        images=((96, 80),),
        on_two=_ALL,
    ),
)
