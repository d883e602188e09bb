"""Tiny random checkpoints that make videos and have no family: the generic one runs them."""

from __future__ import annotations

from pathlib import Path

from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
)
from transformers import CLIPTextModel, LlamaConfig, LlamaModel

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
    stirred,
    t5,
    tokenizer,
)


@make
def tiny_mochi(directory: Path) -> Path:
    return saved(
        MochiPipeline,
        directory,
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=AutoencoderKLMochi(
            latent_channels=12,
            encoder_block_out_channels=(32, 32, 32, 32),  # its norms have 32 groups
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
        ),
        text_encoder=t5(),
        tokenizer=tokenizer(),
        transformer=stirred(
            MochiTransformer3DModel(
                patch_size=2,
                num_attention_heads=4,
                attention_head_dim=8,
                num_layers=2,
                pooled_projection_dim=16,
                in_channels=12,
                text_embed_dim=32,
                time_embed_dim=16,
                max_sequence_length=64,
            )
        ),
    )


@make
def tiny_ltx(directory: Path) -> Path:
    return saved(
        LTXPipeline,
        directory,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
        ),
        text_encoder=t5(),
        tokenizer=tokenizer(),
        transformer=stirred(
            LTXVideoTransformer3DModel(
                in_channels=8,
                out_channels=8,
                num_attention_heads=4,
                attention_head_dim=8,
                cross_attention_dim=32,
                num_layers=2,
                caption_channels=32,
            )
        ),
    )


@make
def tiny_hunyuan_video(directory: Path) -> Path:
    llama = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=0,
    )
    return saved(
        HunyuanVideoPipeline,
        directory,
        text_encoder=LlamaModel(llama),
        tokenizer=tokenizer(1024),
        text_encoder_2=CLIPTextModel(clip_config()),
        tokenizer_2=tokenizer(77),
        transformer=stirred(
            HunyuanVideoTransformer3DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=4,
                attention_head_dim=8,
                num_layers=1,
                num_single_layers=1,
                num_refiner_layers=1,
                text_embed_dim=32,
                pooled_projection_dim=32,
                rope_axes_dim=(2, 2, 4),
            )
        ),
        vae=AutoencoderKLHunyuanVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


@make
def tiny_cogvideox(directory: Path) -> Path:
    return saved(
        CogVideoXPipeline,
        directory,
        tokenizer=tokenizer(),
        text_encoder=t5(),
        vae=AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        ),
        transformer=stirred(
            CogVideoXTransformer3DModel(
                num_attention_heads=4,
                attention_head_dim=16,
                in_channels=4,
                out_channels=4,
                time_embed_dim=8,
                text_embed_dim=32,
                num_layers=1,
                sample_width=SIDE // 8,
                sample_height=SIDE // 8,
                sample_frames=9,
                max_text_seq_length=64,
                use_rotary_positional_embeddings=True,
            )
        ),
        scheduler=CogVideoXDDIMScheduler(),
    )


VIDEO = {**GUIDED, "max_sequence_length": 64}
FIELDS = ("num_frames", "guidance_scale", "max_sequence_length")

CASES = (
    case(
        "Mochi",
        tiny_mochi,
        reference(MochiPipeline, *FIELDS),
        task="text-to-video",
        values={**VIDEO, "num_frames": 7},
        environment=quiet,
    ),
    case(
        "LTX",
        tiny_ltx,
        reference(LTXPipeline, *FIELDS),
        task="text-to-video",
        values={**VIDEO, "num_frames": 9},
    ),
    case(
        "LTX",
        tiny_ltx,
        reference(LTXImageToVideoPipeline, *FIELDS),
        task="image-to-video",
        images=((SIDE, SIDE),),
        values={**VIDEO, "num_frames": 9},
    ),
    case(
        "HunyuanVideo",
        tiny_hunyuan_video,
        reference(HunyuanVideoPipeline, *FIELDS),
        task="text-to-video",
        # Its template alone is 650 letters.
        values={**VIDEO, "num_frames": 5, "max_sequence_length": 700},
    ),
    case(
        "CogVideoX",
        tiny_cogvideox,
        reference(CogVideoXPipeline, *FIELDS),
        task="text-to-video",
        values={**VIDEO, "num_frames": 9},
    ),
)
