"""Tiny random checkpoints with a U-Net that have no family: the generic one runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    KandinskyV22CombinedPipeline,
    KandinskyV22Img2ImgCombinedPipeline,
    LDMTextToImagePipeline,
    PNDMScheduler,
    PriorTransformer,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    UnCLIPScheduler,
    VQModel,
)
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from fakes.zoo_generic_parts import (
    GUIDED,
    SIDE,
    WORDS,
    case,
    clip_config,
    make,
    quiet,
    reference,
    saved,
    tokenizer,
    unet,
    vae,
)


def _stable_diffusion_parts() -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": CLIPTextModel(clip_config()),
        "tokenizer": tokenizer(77),
        "unet": unet(),
        "scheduler": PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_schedule="linear"),
        "safety_checker": None,
        "feature_extractor": None,
    }


@make
def tiny_stable_diffusion(directory: Path) -> Path:
    """Stable Diffusion 1.5: its sampler takes a forward more than it counts steps."""
    parts = _stable_diffusion_parts()
    return saved(StableDiffusionPipeline, directory, **parts, requires_safety_checker=False)


@make
def tiny_perturbed(directory: Path) -> Path:
    """Perturbed-attention guidance: it exchanges the U-Net's attention for the time of a call."""
    parts = _stable_diffusion_parts()
    return saved(StableDiffusionPAGPipeline, directory, **parts, requires_safety_checker=False)


@make
def tiny_ldm(directory: Path) -> Path:
    """The first latent diffusion: a pipeline without callbacks, its bar is looped over."""
    return saved(
        LDMTextToImagePipeline,
        directory,
        vqvae=vae(),
        bert=LDMBertModel(
            LDMBertConfig(
                vocab_size=WORDS,
                d_model=32,
                encoder_layers=2,
                encoder_attention_heads=4,
                encoder_ffn_dim=64,
                head_dim=8,
            )
        ),
        tokenizer=tokenizer(77),
        unet=unet(),
        scheduler=DDIMScheduler(),
    )


@make
def tiny_kandinsky(directory: Path) -> Path:
    """Kandinsky 2.2: a pipeline of two, of which the second makes the picture."""
    prior = PriorTransformer(
        num_attention_heads=4, attention_head_dim=8, embedding_dim=32, num_layers=2
    )
    prior.clip_std.data = torch.ones_like(prior.clip_std)
    clip = clip_config()
    return saved(
        KandinskyV22CombinedPipeline,
        directory,
        unet=unet(
            out_channels=8,
            sample_size=SIDE // 4,
            addition_embed_type="image",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            encoder_hid_dim=32,
            encoder_hid_dim_type="image_proj",
            resnet_time_scale_shift="scale_shift",
        ),
        scheduler=DDIMScheduler(clip_sample=False, prediction_type="epsilon", thresholding=False),
        movq=VQModel(
            block_out_channels=(32, 32, 32),  # spatial norms have 32 groups
            down_block_types=("DownEncoderBlock2D",) * 2 + ("AttnDownEncoderBlock2D",),
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            num_vq_embeddings=12,
            norm_type="spatial",
            vq_embed_dim=4,
        ),
        prior_prior=prior,
        prior_image_encoder=CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=32,
                image_size=32,
                patch_size=16,
                projection_dim=32,
                num_attention_heads=4,
                num_hidden_layers=2,
                intermediate_size=64,
            )
        ),
        prior_text_encoder=CLIPTextModelWithProjection(clip),
        prior_tokenizer=tokenizer(77),
        prior_scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log",
            prediction_type="sample",
            num_train_timesteps=1000,
            clip_sample=True,
            clip_sample_range=5.0,
        ),
        prior_image_processor=CLIPImageProcessor(size=32, crop_size=32),
    )


CASES = (
    case(
        "Stable Diffusion 1.5",
        tiny_stable_diffusion,
        reference(StableDiffusionPipeline, "guidance_scale", "negative_prompt"),
        values={**GUIDED, "negative_prompt": "ugly"},
    ),
    case(
        "Stable Diffusion 1.5",
        tiny_stable_diffusion,
        reference(StableDiffusionImg2ImgPipeline, "guidance_scale", "strength", size=False),
        task="image-to-image",
        images=((80, 64),),
        values={"num_inference_steps": 4, "strength": 0.7, "guidance_scale": 3.0},
        variant={"strength": 0.9},
    ),
    case(
        "Stable Diffusion 1.5",
        tiny_stable_diffusion,
        reference(StableDiffusionInpaintPipeline, "guidance_scale", "strength"),
        task="inpainting",
        images=((SIDE, SIDE),),
        mask=True,
        values={**GUIDED, "strength": 1.0},
    ),
    case("Latent diffusion", tiny_ldm, reference(LDMTextToImagePipeline, "guidance_scale")),
    case(
        "Kandinsky 2.2",
        tiny_kandinsky,
        reference(KandinskyV22CombinedPipeline, "guidance_scale"),
        environment=quiet,
    ),
    case(
        "Kandinsky 2.2",
        tiny_kandinsky,
        reference(KandinskyV22Img2ImgCombinedPipeline, "guidance_scale", "strength"),
        environment=quiet,
        task="image-to-image",
        images=((SIDE, SIDE),),
        values={**GUIDED, "strength": 0.7, "num_inference_steps": 6},
    ),
)
