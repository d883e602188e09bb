"""Tiny random-weight Qwen-Image checkpoints in diffusers' layout, and work for ranks with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditInpaintPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
)
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from fakes import parity
from fakes.cases import Case
from fakes.qwen_processor import IMAGE, TinyQwenProcessor
from fakes.zoo import as_bytes, byte_tokenizer
from safelight.models.inputs import image
from safelight.models.qwen_image import spec as qwen
from safelight.request import SampleSpec

WORDS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE)


def tiny_qwen(directory: Path) -> Path:
    """A text-to-image pipeline of about 2 MB: 8x in space, tokens of 16 pixels."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    pipeline = QwenImagePipeline(
        tokenizer=tokenizer,
        text_encoder=_encoder(tokenizer),
        transformer=_transformer(),
        vae=_vae(1.0, base_dim=8, dim_mult=[1] * 4, num_res_blocks=1),
        scheduler=_scheduler(),
    )
    pipeline.save_pretrained(directory)
    return directory


def tiny_edit(directory: Path, kind: Any = QwenImageEditPipeline, **transformer: Any) -> Path:
    """Of one picture. Its VAE is 64x in space, with tokens of 128 pixels, and has hardly a layer:
    pictures are encoded at a megapixel whatever their size."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    pipeline = kind(
        tokenizer=tokenizer,
        processor=TinyQwenProcessor(
            Qwen2VLImageProcessorPil(
                size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84}, patch_size=14
            ),
            tokenizer,
        ),
        text_encoder=_encoder(tokenizer),
        transformer=_transformer(**transformer),
        vae=_vae(
            0.1, base_dim=4, dim_mult=[1] * 7, num_res_blocks=0, temperal_downsample=[False] * 6
        ),
        scheduler=_scheduler(),
    )
    pipeline.save_pretrained(directory)
    return directory


def tiny_edit_plus(directory: Path) -> Path:
    """Of several pictures, as 2511: they are not timed as the noise is."""
    return tiny_edit(directory, QwenImageEditPlusPipeline, zero_cond_t=True)


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(WORDS)})
    tokenizer.model_max_length = 4096
    return tokenizer


def _encoder(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    start, end, picture = (tokenizer.convert_tokens_to_ids(word) for word in WORDS[2:])
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [1, 1, 2],
                "rope_theta": 1000000.0,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=picture,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def _transformer(**values: Any) -> QwenImageTransformer2DModel:
    model = QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        **values,
    )
    return model.eval()


def _vae(contrast: float, **values: Any) -> AutoencoderKLQwenImage:
    """What it makes depends on what it is given, where the usual weights are drowned by biases."""
    vae = AutoencoderKLQwenImage(z_dim=16, **values)
    for name, weights in vae.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weights, std=0.3)
        elif weights.ndim == 5:
            # Of a single frame, two of three weights in time see nothing but zeros.
            torch.nn.init.normal_(weights, std=(3 / weights[0].numel()) ** 0.5)
        elif name.endswith("weight"):
            torch.nn.init.kaiming_normal_(weights)
    vae.decoder.conv_out.weight.data *= contrast
    return vae.eval()


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, shift_terminal=0.02
    )


# --------------------------------------------------------------------------------- references


def reference(directory: Path, spec: SampleSpec, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """What the pipeline for the sample's task makes of it."""
    s, inputs = spec.sampling, spec.inputs
    pipeline = _kind(directory, spec).from_pretrained(directory, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    pictures = [image(picture) for picture in inputs.images]
    if len(pictures) == 1:
        (pictures,) = pictures
    values: dict[str, Any] = {"width": s.width, "height": s.height}
    if inputs.images:
        values["image"] = pictures
    if inputs.mask is not None:
        values["mask_image"] = image(inputs.mask)
    if s.strength is not None:
        values["strength"] = s.strength
    result = pipeline(
        prompt=spec.prompt,
        negative_prompt=s.negative_prompt or None,
        true_cfg_scale=s.true_cfg_scale,
        num_inference_steps=s.num_inference_steps,
        max_sequence_length=s.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(s.seed),
        output_type="np",
        **values,
    )
    return as_bytes(result.images[0])


def _kind(directory: Path, spec: SampleSpec) -> Any:
    index = (directory / "model_index.json").read_text("utf-8")
    if "QwenImageEditPlusPipeline" in index:
        return QwenImageEditPlusPipeline
    masked = spec.inputs.mask is not None
    if "QwenImageEditPipeline" in index:
        return QwenImageEditInpaintPipeline if masked else QwenImageEditPipeline
    if masked:
        return QwenImageInpaintPipeline
    return QwenImageImg2ImgPipeline if spec.inputs.images else QwenImagePipeline


def quarter_of_a_side(monkeypatch: Any) -> None:
    """Pictures of 256 x 256 for a megapixel: inpainting makes an output of the input's size."""
    _smaller(monkeypatch, 16)


def half_of_a_side(monkeypatch: Any) -> None:
    """Pictures are seen at 512 x 512 for a megapixel."""
    _smaller(monkeypatch, 4)


def _smaller(monkeypatch: Any, times: int) -> None:
    modules = (
        pipeline_qwenimage_edit,
        pipeline_qwenimage_edit_inpaint,
        pipeline_qwenimage_edit_plus,
    )
    for module in modules:
        original = module.calculate_dimensions  # not all of them give as many numbers
        smaller = lambda area, ratio, size=original: size(area // times, ratio)  # noqa: E731
        monkeypatch.setattr(module, "calculate_dimensions", smaller)
    for name in ("AREA", "CONDITION_AREA"):
        monkeypatch.setattr(qwen, name, getattr(qwen, name) // times)


_FEW = {"num_inference_steps": 4, "negative_prompt": "ugly", "true_cfg_scale": 3.0}
_SMALL = {**_FEW, "width": 64, "height": 64}
_EDIT = {**_FEW, "num_inference_steps": 3, "width": 256, "height": 128}
_UNGUIDED = {"negative_prompt": "", "true_cfg_scale": 1.0}

CASES = (
    Case(
        name="Qwen-Image",
        task="text-to-image",
        make=tiny_qwen,
        reference=reference,
        values=_SMALL,
        variant=_UNGUIDED,
    ),
    Case(
        name="Qwen-Image",
        task="image-to-image",
        make=tiny_qwen,
        reference=reference,
        values={**_SMALL, "num_inference_steps": 6},
        variant={"strength": 0.9},
        images=((80, 64),),
        on_two=(("cfg_parallel_size", 2),),
    ),
    Case(
        name="Qwen-Image",
        task="inpainting",
        make=tiny_qwen,
        reference=reference,
        values={**_SMALL, "num_inference_steps": 6},
        variant=_UNGUIDED,
        images=((64, 64),),
        mask=True,
    ),
    Case(
        name="Qwen-Image-Edit",
        task="image-to-image",
        make=tiny_edit,
        reference=reference,
        values=_EDIT,
        variant=_UNGUIDED,
        images=((96, 64),),
        environment=half_of_a_side,
    ),
    Case(
        name="Qwen-Image-Edit",
        task="inpainting",
        make=tiny_edit,
        reference=reference,
        values={**_FEW, "num_inference_steps": 6},
        variant=_UNGUIDED,
        images=((64, 64),),
        mask=True,
        environment=quarter_of_a_side,
    ),
    Case(
        name="Qwen-Image-Edit-Plus",
        task="image-to-image",
        make=tiny_edit_plus,
        reference=reference,
        values=_EDIT,
        variant={"true_cfg_scale": 1.5},
        images=((96, 64), (64, 64)),
        environment=half_of_a_side,
    ),
)


@parity.one_thread()
@torch.inference_mode()
def generate(
    rank: int, settings: parity.Settings, specs: Sequence[SampleSpec]
) -> tuple[list[np.ndarray], int]:
    """Latents of samples that share forwards, and how many forwards of the transformer it took."""
    family, _ = parity._loaded(settings)
    sessions = [family.begin(spec, family.encode(spec)) for spec in specs]
    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    hook = family.transformer.register_forward_pre_hook(count)
    for _ in range(sessions[0].steps):
        family.step(sessions)
    hook.remove()
    return [s.latents.numpy() for s in sessions], forwards
