"""Tiny random transformers of the families that sequence parallelism knows, with inputs for them.

Four heads each. Inputs are given by their grid of image tokens (frames, rows, columns) and their
number of words.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    QwenImageTransformer2DModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF

Inputs = dict[str, Any]
"""Arguments of a transformer's `forward`."""
Grid = tuple[int, int, int]
Fed = tuple[Inputs, tuple[int, ...]]
"""Inputs, and the lengths of the sequences that are split."""

EVEN = ((2, 4, 4), 8)
"""A grid and words that two and four ranks share equally."""
UNEVEN = ((3, 3, 3), 7)
"""And one that neither two nor four do."""


@dataclass(frozen=True)
class Subject:
    """A transformer and how to feed it."""

    build: Callable[[], Any]
    feed: Callable[[int, Grid, int], Fed]
    """Of a batch, a grid and words."""
    least: int = 1
    """Smallest batch."""
    padded: bool = False
    """Whether it pads its sequences, so that any length is even."""


def build(name: str) -> Any:
    """The transformer, with the same random weights each time."""
    torch.manual_seed(0)
    return SUBJECTS[name].build().eval().requires_grad_(False)


def feed(name: str, batch: int, even: bool, seed: int) -> Fed:
    """Inputs, random by `seed`, of `EVEN` or `UNEVEN` lengths."""
    return feed_grid(name, batch, *(EVEN if even else UNEVEN), seed=seed)


def feed_grid(name: str, batch: int, grid: Grid, words: int, *, seed: int) -> Fed:
    """Inputs of these lengths, random by `seed`."""
    torch.manual_seed(seed + 1)
    return SUBJECTS[name].feed(batch, grid, words)


def output(transformer: Any, inputs: Inputs) -> torch.Tensor:
    """One forward; of several outputs, all, flat behind one another."""
    result, *others = transformer(**inputs, return_dict=False)
    if others:
        return torch.cat([part.flatten(1) for part in (result, *others)], dim=1)
    return torch.stack(result) if isinstance(result, list) else result


def _timesteps(batch: int) -> torch.Tensor:
    return torch.tensor([900.0, 250.0][:batch])


def _text_mask(batch: int, words: int) -> torch.Tensor:
    """All words but the last three of each sample."""
    mask = torch.ones(batch, words)
    mask[:, -3:] = 0
    return mask


def _wan() -> Any:
    return WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        rope_max_seq_len=32,
    )


def _feed_wan(batch: int, grid: Grid, words: int) -> Fed:
    frames, rows, columns = grid
    inputs = {
        "hidden_states": torch.randn(batch, 4, frames, 2 * rows, 2 * columns),
        "timestep": _timesteps(batch),
        "encoder_hidden_states": torch.randn(batch, 7, 16),  # not split, so of any length
    }
    return inputs, (frames * rows * columns,)


def _flux() -> Any:
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )


def _feed_flux(batch: int, grid: Grid, words: int) -> Fed:
    inputs = {
        "hidden_states": torch.randn(batch, math.prod(grid), 16),
        "encoder_hidden_states": torch.randn(batch, words, 32),
        "pooled_projections": torch.randn(batch, 32),
        "timestep": _timesteps(batch) / 1000,
        "img_ids": torch.cartesian_prod(*map(torch.arange, grid)).float(),
        "txt_ids": torch.zeros(words, 3),
        "guidance": torch.full((batch,), 3.5),
    }
    return inputs, (math.prod(grid), words)


def _flux2() -> Any:
    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )


def _feed_flux2(batch: int, grid: Grid, words: int) -> Fed:
    image_ids = torch.cartesian_prod(*map(torch.arange, (*grid, 1))).float()
    text_ids = torch.cartesian_prod(*map(torch.arange, (1, 1, 1, words))).float()
    inputs = {
        "hidden_states": torch.randn(batch, math.prod(grid), 16),
        "encoder_hidden_states": torch.randn(batch, words, 32),
        "timestep": _timesteps(batch) / 1000,
        "img_ids": image_ids.expand(batch, -1, -1),
        "txt_ids": text_ids.expand(batch, -1, -1),
        "guidance": torch.full((batch,), 3.5),
    }
    return inputs, (math.prod(grid), words)


def _qwen() -> Any:
    return QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
    )


def _feed_qwen(batch: int, grid: Grid, words: int) -> Fed:
    inputs = {
        "hidden_states": torch.randn(batch, math.prod(grid), 16),
        "encoder_hidden_states": torch.randn(batch, words, 32),
        "timestep": _timesteps(batch) / 1000,
        "img_shapes": [[grid]] * batch,
    }
    return inputs, (math.prod(grid), words)


def _feed_qwen_masked(batch: int, grid: Grid, words: int) -> Fed:
    inputs, lengths = _feed_qwen(batch, grid, words)
    return {**inputs, "encoder_hidden_states_mask": _text_mask(batch, lengths[1])}, lengths


def _ltx() -> Any:
    return LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=16,
        cross_attention_dim=64,
        num_layers=2,
        caption_channels=32,
    )


def _feed_ltx(batch: int, grid: Grid, words: int) -> Fed:
    inputs = {
        "hidden_states": torch.randn(batch, math.prod(grid), 8),
        "encoder_hidden_states": torch.randn(batch, words, 32),
        "timestep": _timesteps(batch),
        "encoder_attention_mask": None,
        **dict(zip(("num_frames", "height", "width"), grid, strict=True)),
    }
    return inputs, (math.prod(grid), words)


def _feed_ltx_masked(batch: int, grid: Grid, words: int) -> Fed:
    inputs, lengths = _feed_ltx(batch, grid, words)
    return {**inputs, "encoder_attention_mask": _text_mask(batch, lengths[1])}, lengths


def _ltx2() -> Any:
    return LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=16,
        cross_attention_dim=64,
        audio_in_channels=8,
        audio_out_channels=8,
        audio_num_attention_heads=4,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )


def _feed_ltx2(batch: int, grid: Grid, words: int) -> Fed:
    """A timestep for every token of the video, and sound that no number of ranks shares evenly."""
    tokens, mask = math.prod(grid), _text_mask(batch, words)
    model = _ltx2()
    inputs = {
        "hidden_states": torch.randn(batch, tokens, 8),
        "audio_hidden_states": torch.randn(batch, 5, 8),
        "encoder_hidden_states": torch.randn(batch, words, 32),
        "audio_encoder_hidden_states": torch.randn(batch, words, 32),
        "timestep": _timesteps(batch)[:, None] * torch.rand(batch, tokens),
        "audio_timestep": _timesteps(batch),
        "sigma": _timesteps(batch),
        "encoder_attention_mask": mask,
        "audio_encoder_attention_mask": mask,
        "video_coords": model.rope.prepare_video_coords(batch, *grid, "cpu"),
        "audio_coords": model.audio_rope.prepare_audio_coords(batch, 5, "cpu"),
        "use_cross_timestep": True,
    }
    return inputs, (tokens, words)


def _z_image() -> Any:
    model = ZImageTransformer2DModel(
        in_channels=4,
        dim=64,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=32,
        axes_dims=[4, 4, 8],
        axes_lens=[128, 32, 32],
    )
    torch.nn.init.normal_(model.x_pad_token)
    torch.nn.init.normal_(model.cap_pad_token)
    return model


def _feed_z_image(batch: int, grid: Grid, words: int) -> Fed:
    _, rows, columns = grid
    inputs = {
        "x": [torch.randn(4, 1, 2 * rows, 2 * columns) for _ in range(batch)],
        "t": _timesteps(batch) / 1000,
        "cap_feats": [torch.randn(words, 32) for _ in range(batch)],
    }
    return inputs, (_padded(rows * columns) + _padded(words),)


def _feed_z_image_mixed(batch: int, grid: Grid, words: int) -> Fed:
    inputs, _ = _feed_z_image(batch, grid, words)
    inputs["cap_feats"][0] = torch.randn(words + 32, 32)
    return inputs, (_padded(math.prod(grid[1:])) + _padded(words + 32),)


def _padded(length: int) -> int:
    return math.ceil(length / SEQ_MULTI_OF) * SEQ_MULTI_OF


SUBJECTS = {
    "Wan": Subject(_wan, _feed_wan),
    "Flux": Subject(_flux, _feed_flux),
    "Flux2": Subject(_flux2, _feed_flux2),
    "QwenImage": Subject(_qwen, _feed_qwen),
    "QwenImage, text mask": Subject(_qwen, _feed_qwen_masked),
    "LTX": Subject(_ltx, _feed_ltx),
    "LTX, text mask": Subject(_ltx, _feed_ltx_masked),
    "LTX-2, text mask": Subject(_ltx2, _feed_ltx2),
    "Z-Image": Subject(_z_image, _feed_z_image, padded=True),
    "Z-Image, prompts of two lengths": Subject(_z_image, _feed_z_image_mixed, least=2, padded=True),
}
