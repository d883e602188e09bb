"""Tiny random-weight checkpoints in diffusers' layout, written with `save_pretrained`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from fakes.cases import Case
from safelight.request import SampleSpec


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges; every slot accepts it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocabulary.update({symbol: index + 3 for index, symbol in enumerate(alphabet)})
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def as_bytes(frames: np.ndarray) -> np.ndarray:
    """Float frames in [0, 1], as the pipelines' "np" output has them, rounded as diffusers rounds
    pictures; uint8 [T, H, W, 3]."""
    if frames.ndim == 3:
        frames = frames[None]
    return (frames * 255).round().astype("uint8")


def tiny_wan(directory: Path, heads: int = 4) -> Path:
    """A Wan 2.1 text-to-video pipeline of about 0.6 MB: 8x in space, 4x in time."""
    torch.manual_seed(0)
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
    transformer = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=64,
        ffn_dim=64,
        num_layers=2,
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        scheduler=scheduler,
        transformer=transformer.eval(),
    )
    pipeline.save_pretrained(directory)
    return directory


def wan_reference(directory: Path, spec: SampleSpec) -> np.ndarray:
    """What `WanPipeline.__call__` makes of a sample."""
    pipeline = WanPipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    s = spec.sampling
    result = pipeline(
        prompt=spec.prompt,
        negative_prompt=s.negative_prompt,
        height=s.height,
        width=s.width,
        num_frames=s.num_frames,
        num_inference_steps=s.num_inference_steps,
        guidance_scale=s.guidance_scale,
        max_sequence_length=s.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(s.seed),
        output_type="np",
    )
    return as_bytes(result.frames[0])


_SMALL = {"width": 64, "height": 64, "num_inference_steps": 4, "max_sequence_length": 64}

CASES = (
    Case(
        name="Wan 2.1",
        task="text-to-video",
        make=tiny_wan,
        reference=wan_reference,
        values={**_SMALL, "num_frames": 9, "guidance_scale": 3.0},
        variant={"guidance_scale": 1.0},
    ),
    Case(
        name="Wan 2.1",
        task="text-to-image",
        make=tiny_wan,
        reference=wan_reference,
        values={**_SMALL, "negative_prompt": "ugly"},
        on_two=(("cfg_parallel_size", 2),),
    ),
)
