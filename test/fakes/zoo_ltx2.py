"""A tiny random-weight LTX-2 checkpoint: video and sound, from text or from a first picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2ImageToVideoPipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2 import pipeline_ltx2_image2video as upstream
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from fakes import parity
from fakes.cases import Case, Stepper
from fakes.zoo import as_bytes, byte_tokenizer
from safelight.models.inputs import image
from safelight.models.ltx2.compression import compressed
from safelight.request import SampleSpec

TEXT = 32  # width of the text encoder's hidden states
RATE = 8_000  # Hz: 100 spectra a second, 80 samples each


def tiny_ltx2(directory: Path, **transformer: Any) -> Path:
    """A pipeline of about 1 MB: 32x in space, 8x in time; 25 latents of sound a second."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    pipeline = LTX2Pipeline(
        tokenizer=tokenizer,
        text_encoder=_gemma(len(tokenizer)).eval(),
        connectors=_connectors().eval(),
        transformer=_transformer(**transformer).eval(),
        vae=_vae().eval(),
        audio_vae=_audio_vae().eval(),
        vocoder=_vocoder().eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1
        ),
    )
    pipeline.save_pretrained(directory)
    return directory


def _gemma(words: int) -> Gemma3ForConditionalGeneration:
    text = {
        "vocab_size": words,
        "hidden_size": TEXT,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    )


def _connectors() -> LTX2TextConnectors:
    heads = {"num_attention_heads": 4, "attention_head_dim": TEXT // 4, "num_layers": 1}
    return LTX2TextConnectors(
        caption_channels=TEXT,
        text_proj_in_factor=3,  # hidden states of the text encoder
        **{
            f"{part}_connector_{key}": value
            for part in ("video", "audio")
            for key, value in {**heads, "num_learnable_registers": 8}.items()
        },
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
    )


def _transformer(**options: Any) -> LTX2VideoTransformer3DModel:
    return LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        audio_in_channels=16,
        audio_out_channels=16,
        audio_num_attention_heads=4,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=TEXT,
        rope_double_precision=False,
        **options,
    )


def _vae() -> AutoencoderKLLTX2Video:
    return AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 16, 16, 16),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )


def _audio_vae() -> AutoencoderKLLTX2Audio:
    vae = AutoencoderKLLTX2Audio(
        base_channels=16,
        ch_mult=(1, 1, 1),
        num_res_blocks=1,
        latent_channels=4,
        mel_bins=16,
    )
    torch.nn.init.normal_(vae.latents_mean)
    torch.nn.init.uniform_(vae.latents_std, 0.5, 2.0)
    return vae


def _vocoder() -> LTX2Vocoder:
    vocoder = LTX2Vocoder(
        in_channels=32,
        hidden_channels=16,
        upsample_kernel_sizes=[12, 10],
        upsample_factors=[10, 8],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3]],
        output_sampling_rate=RATE,
    )
    torch.nn.init.normal_(vocoder.conv_out.weight)  # else it hums one note, whatever it hears
    return vocoder


def ltx2_call(directory: Path, spec: SampleSpec, **options: Any) -> Any:
    """What `LTX2Pipeline.__call__`, or that of the pipeline for pictures, makes of a sample."""
    kind = LTX2ImageToVideoPipeline if spec.task == "image-to-video" else LTX2Pipeline
    return ltx2_run(kind.from_pretrained(directory), spec, **options)


def ltx2_run(pipeline: Any, spec: SampleSpec, **options: Any) -> Any:
    """What a loaded pipeline makes of a sample."""
    pipeline.set_progress_bar_config(disable=True)
    s = spec.sampling
    if spec.inputs.images:
        options["image"] = image(spec.inputs.images[0])
    return pipeline(
        prompt=spec.prompt,
        negative_prompt=s.negative_prompt,
        height=s.height,
        width=s.width,
        num_frames=s.num_frames,
        frame_rate=float(s.fps),
        num_inference_steps=s.num_inference_steps,
        guidance_scale=s.guidance_scale,
        max_sequence_length=s.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(s.seed),
        output_type="np",
        **options,
    )


def ltx2_reference(directory: Path, spec: SampleSpec) -> np.ndarray:
    return as_bytes(ltx2_call(directory, spec).frames[0])


def compress_without_pyav(monkeypatch: Any) -> None:
    """Have the pipeline compress its picture as the adapter does, with PyAV or without."""
    monkeypatch.setattr(upstream, "apply_image_conditioning_crf", compressed)


@parity.one_thread()
@torch.inference_mode()
def sounds(
    rank: int, settings: parity.Settings, spec: SampleSpec
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Work for a rank of a pool: last latents of the sound and of the video and, on rank 0, the
    sound of one sample."""
    family, mesh = parity._loaded(settings)
    stepper = Stepper(family, mesh)
    stepper.begin(spec)
    stepper.step(spec.id, count=stepper.left(spec.id))
    session = stepper.executor._sessions[spec.id]
    clips = []
    if mesh.rank == 0 or family.decodes_together([session]):
        clips = family.decode([session])
    sound = clips[0].sound if clips else np.zeros(0, np.float32)
    return session.sound.numpy(), session.latents.numpy(), sound


_SMALL = {
    "width": 64,
    "height": 64,
    "num_frames": 9,
    "num_inference_steps": 4,
    "max_sequence_length": 32,
}

CASES = (
    Case(
        name="LTX-2",
        task="text-to-video",
        make=tiny_ltx2,
        reference=ltx2_reference,
        values={**_SMALL, "negative_prompt": "ugly"},
        variant={"guidance_scale": 1.0, "negative_prompt": ""},
    ),
    Case(
        name="LTX-2",
        task="image-to-video",
        make=tiny_ltx2,
        reference=ltx2_reference,
        values=_SMALL,
        images=((80, 48),),
        variant={"guidance_scale": 5.0},
        environment=compress_without_pyav,
    ),
)
