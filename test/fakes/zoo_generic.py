"""Tiny random checkpoints with a transformer that have no family: the generic one runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)
from diffusers.pipelines.hunyuandit import pipeline_hunyuandit
from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma
from diffusers.pipelines.sana import pipeline_sana
from transformers import (
    BertConfig,
    BertModel,
    GlmConfig,
    GlmModel,
    UMT5Config,
    UMT5EncoderModel,
)

from fakes.zoo_generic_parts import (
    GUIDED,
    SIDE,
    WORDS,
    case,
    gemma,
    make,
    reference,
    saved,
    stirred,
    t5,
    tokenizer,
    vae,
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


CASES = (
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
)
