"""Tiny random checkpoints that make pictures and have no family: the generic one runs them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    KandinskyV22CombinedPipeline,
    KandinskyV22Img2ImgCombinedPipeline,
    LDMTextToImagePipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    PriorTransformer,
    SanaPipeline,
    SanaTransformer2DModel,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from diffusers.pipelines.hunyuandit import pipeline_hunyuandit
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)
from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma
from diffusers.pipelines.sana import pipeline_sana
from tokenizers import processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GlmConfig,
    GlmModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
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


# --------------------------------------------------------------------------------------- pipelines


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
def tiny_cogview4(directory: Path) -> Path:
    return saved(
        CogView4Pipeline,
        directory,
        tokenizer=tokenizer(),
        text_encoder=GlmModel(
            GlmConfig(
                vocab_size=WORDS,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                pad_token_id=0,
            )
        ),
        vae=vae(),
        transformer=stirred(
            CogView4Transformer2DModel(
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=4,
                text_embed_dim=32,
                time_embed_dim=16,
                condition_dim=8,
                sample_size=SIDE // 8,
                rope_axes_dim=(32, 32),
            )
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
    )


@make
def tiny_hunyuan_dit(directory: Path) -> Path:
    return saved(
        HunyuanDiTPipeline,
        directory,
        vae=vae(),
        text_encoder=BertModel(
            BertConfig(
                vocab_size=WORDS,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
            )
        ),
        tokenizer=tokenizer(77),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(256),
        transformer=stirred(
            HunyuanDiT2DModel(
                sample_size=SIDE // 8,
                num_layers=2,
                patch_size=2,
                attention_head_dim=8,
                num_attention_heads=4,
                hidden_size=32,
                in_channels=4,
                cross_attention_dim=32,
                cross_attention_dim_t5=32,
                pooled_projection_dim=16,
            )
        ),
        scheduler=DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def small_shapes(patch: pytest.MonkeyPatch) -> None:
    """Some round every size to one of their own, of up to a million pixels."""
    patch.setattr(pipeline_hunyuandit, "SUPPORTED_SHAPE", [(SIDE, SIDE)])
    bin_of_one = {"1.0": [float(SIDE), float(SIDE)]}
    patch.setattr(pipeline_sana, "ASPECT_RATIO_512_BIN", bin_of_one)
    patch.setattr(pipeline_pixart_sigma, "ASPECT_RATIO_256_BIN", bin_of_one)


def quiet(patch: pytest.MonkeyPatch) -> None:
    """Some warn of their own ways: Kandinsky of its callbacks, Mochi of autocast on the CPU."""
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", UserWarning)


@make
def tiny_sana(directory: Path) -> Path:
    return saved(
        SanaPipeline,
        directory,
        tokenizer=tokenizer(),
        text_encoder=gemma(),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            encoder_qkv_multiscales=((), (), (5,)),
            decoder_qkv_multiscales=((), (), (5,)),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        ),
        transformer=stirred(
            SanaTransformer2DModel(
                patch_size=1,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                num_attention_heads=4,
                attention_head_dim=8,
                num_cross_attention_heads=4,
                cross_attention_head_dim=8,
                cross_attention_dim=32,
                caption_channels=32,
                sample_size=SIDE // 4,
            )
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


@make
def tiny_pixart(directory: Path) -> Path:
    """An old-style pipeline: `callback`. Its sizes are bins, here those of 256 pixels."""
    return saved(
        PixArtSigmaPipeline,
        directory,
        tokenizer=tokenizer(),
        text_encoder=t5(),
        vae=vae(),
        transformer=stirred(
            PixArtTransformer2DModel(
                sample_size=32,
                num_layers=2,
                patch_size=2,
                attention_head_dim=8,
                num_attention_heads=4,
                caption_channels=32,
                in_channels=4,
                out_channels=8,
                cross_attention_dim=32,
            )
        ),
        scheduler=DDIMScheduler(),
    )


@make
def tiny_lumina2(directory: Path) -> Path:
    return saved(
        Lumina2Pipeline,
        directory,
        transformer=stirred(
            Lumina2Transformer2DModel(
                sample_size=SIDE // 8,
                patch_size=2,
                in_channels=4,
                hidden_size=32,
                num_layers=2,
                num_refiner_layers=1,
                num_attention_heads=4,
                num_kv_heads=2,
                multiple_of=16,
                axes_dim_rope=(4, 2, 2),
                axes_lens=(512, 64, 64),
                cap_feat_dim=32,
            )
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=vae(shift_factor=0.1),
        text_encoder=gemma(),
        tokenizer=tokenizer(),
    )


@make
def tiny_aura_flow(directory: Path) -> Path:
    return saved(
        AuraFlowPipeline,
        directory,
        tokenizer=tokenizer(),
        text_encoder=UMT5EncoderModel(
            UMT5Config(vocab_size=WORDS, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        ),
        vae=vae(sample_size=32),
        transformer=stirred(
            AuraFlowTransformer2DModel(
                sample_size=SIDE // 8,
                patch_size=2,
                in_channels=4,
                num_mmdit_layers=1,
                num_single_dit_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=32,
                caption_projection_dim=32,
                pos_embed_max_size=256,
            )
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
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


SMALL = {"width": SIDE, "height": SIDE, "num_inference_steps": 4}
GUIDED = {**SMALL, "guidance_scale": 3.0}
OTHERS = {"guidance_scale": 1.0}
"""Of the sample that is interleaved."""


def case(name: str, build: Make, reference: Reference, **given: Any) -> Case:
    fields = {"task": "text-to-image", "values": GUIDED, "variant": OTHERS, **given}
    return Case(name=name, make=build, reference=reference, solo=True, on_two=(), **fields)


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
    case("CogView4", tiny_cogview4, reference(CogView4Pipeline, "guidance_scale")),
    case(
        "HunyuanDiT",
        tiny_hunyuan_dit,
        reference(HunyuanDiTPipeline, "guidance_scale"),
        environment=small_shapes,
    ),
    case(
        "Sana",
        tiny_sana,
        reference(SanaPipeline, "guidance_scale", "max_sequence_length"),
        values={**GUIDED, "max_sequence_length": 64},
        environment=small_shapes,
    ),
    case(
        "PixArt-Sigma",
        tiny_pixart,
        reference(PixArtSigmaPipeline, "guidance_scale", "max_sequence_length"),
        values={**GUIDED, "max_sequence_length": 64, "num_inference_steps": 3},
        environment=small_shapes,
    ),
    case(
        "Lumina 2",
        tiny_lumina2,
        reference(Lumina2Pipeline, "guidance_scale", "max_sequence_length"),
        values={**GUIDED, "max_sequence_length": 64},
    ),
    case(
        "AuraFlow",
        tiny_aura_flow,
        reference(AuraFlowPipeline, "guidance_scale", "max_sequence_length"),
        values={**GUIDED, "max_sequence_length": 64},
    ),
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
