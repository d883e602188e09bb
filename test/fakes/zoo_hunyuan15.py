"""Tiny random-weight HunyuanVideo 1.5 checkpoints, for text and for pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from transformers import (
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from fakes.cases import Case
from fakes.zoo import as_bytes, byte_tokenizer
from safelight.models.inputs import image
from safelight.request import SampleSpec

SIGHT = 24  # width of what the image encoder sees


def tiny_hunyuan(directory: Path, **guider: Any) -> Path:
    """A text-to-video pipeline: 16x in space, 4x in time. Of its 18 MB 17 are two layers whose
    width diffusers has fixed."""
    pipeline = HunyuanVideo15Pipeline(**_components(guider))
    pipeline.save_pretrained(directory)
    return directory


def tiny_hunyuan_pictured(directory: Path, *, meanflow: bool = False) -> Path:
    """The same with an image encoder, for first pictures."""
    components = _components({}, use_meanflow=meanflow)
    encoder = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=SIGHT,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            image_size=32,
            patch_size=16,
        )
    )
    pipeline = HunyuanVideo15ImageToVideoPipeline(
        **components,
        image_encoder=encoder.eval(),
        feature_extractor=SiglipImageProcessorPil(size={"height": 32, "width": 32}),
    )
    pipeline.save_pretrained(directory)
    return directory


def _components(guider: dict[str, Any], **transformer: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    tokenizer = _chat_tokenizer()
    return {
        "tokenizer": tokenizer,
        "text_encoder": _qwen(len(tokenizer)).eval(),
        "tokenizer_2": ByT5Tokenizer(extra_ids=0),
        "text_encoder_2": _byt5().eval(),
        "transformer": _transformer(**transformer).eval(),
        "vae": _vae().eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "guider": ClassifierFreeGuidance(**{"guidance_scale": 6.0, **guider}),
    }


CUT = 108
"""Tokens of its template that the pipeline cuts away."""


def _chat_tokenizer() -> PreTrainedTokenizerFast:
    """Its template is as long in bytes as that of the real one in tokens."""
    tokenizer = byte_tokenizer()
    system, user = f"messages[0]['content'][:{CUT}]", "messages[1]['content']"
    tokenizer.chat_template = "{{ " + system + " }}{{ " + user + " }}"
    return tokenizer


def _qwen(words: int) -> Qwen2_5_VLTextModel:
    return Qwen2_5_VLTextModel(
        Qwen2_5_VLTextConfig(
            vocab_size=words,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=None,
            rope_parameters={
                "rope_type": "default",
                "mrope_section": [1, 1, 2],
                "rope_theta": 1e6,
            },
        )
    )


def _byt5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=259, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    )


def _transformer(**options: Any) -> HunyuanVideo15Transformer3DModel:
    return HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=32,
        text_embed_2_dim=32,
        image_embed_dim=SIGHT,
        rope_axes_dim=(2, 2, 4),
        target_size=64,
        **options,
    )


def _vae() -> AutoencoderKLHunyuanVideo15:
    return AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1
    )


def hunyuan_reference(directory: Path, spec: SampleSpec) -> np.ndarray:
    """What the pipeline's `__call__` makes of a sample."""
    pictured = spec.task == "image-to-video"
    kind: Any = HunyuanVideo15ImageToVideoPipeline if pictured else HunyuanVideo15Pipeline
    return hunyuan_run(kind.from_pretrained(directory), spec)


def hunyuan_run(pipeline: Any, spec: SampleSpec) -> np.ndarray:
    """What a loaded pipeline makes of a sample."""
    s = spec.sampling
    options: dict[str, Any] = {"height": s.height, "width": s.width}
    if spec.inputs.images:
        options = {"image": image(spec.inputs.images[0])}
    pipeline.set_progress_bar_config(disable=True)
    pipeline.guider = pipeline.guider.new(guidance_scale=s.guidance_scale)
    result = pipeline(
        prompt=spec.prompt,
        negative_prompt=s.negative_prompt,
        num_frames=s.num_frames,
        num_inference_steps=s.num_inference_steps,
        generator=torch.Generator("cpu").manual_seed(s.seed),
        output_type="np",
        **options,
    )
    return as_bytes(result.frames[0])


_SMALL = {"num_frames": 5, "num_inference_steps": 2}  # a forward has 2000 tokens of text

CASES = (
    Case(
        name="HunyuanVideo 1.5",
        task="text-to-video",
        make=tiny_hunyuan,
        reference=hunyuan_reference,
        values={**_SMALL, "width": 64, "height": 48, "negative_prompt": 'blurred "words"'},
        variant={"guidance_scale": 1.0},
        on_two=(("cfg_parallel_size", 2), ("vae_parallel", "on")),
    ),
    Case(
        name="HunyuanVideo 1.5",
        task="image-to-video",
        make=tiny_hunyuan_pictured,
        reference=hunyuan_reference,
        values=_SMALL,
        images=((90, 60),),
        variant={"guidance_scale": 3.0},
        on_two=(("cfg_parallel_size", 2),),
    ),
)
