"""The denoiser (``WanTransformer3DModel``): its start values and a lean forward pass.

:func:`velocity` computes what the unmodified diffusers class computes with the
text padded to 512 keys (a test compares them), without most of its overhead.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor
from transformers import UMT5EncoderModel

from . import world
from .text import EMPTY_PROMPT, TEXT_DIM, TextKeys, embed_words, text_keys
from .vae import LATENT_CHANNELS

HEADS = 4
HEAD_DIM = 32
LAYERS = 6
PATCH = 2
EPSILON = 1e-6

Rotation = tuple[Tensor, Tensor]
Module = Any  # parts of diffusers' models, which declare no types for their own parts


def make_transformer() -> WanTransformer3DModel:
    """The denoiser, with random weights."""
    return WanTransformer3DModel(
        patch_size=(1, PATCH, PATCH),
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=384,
        num_layers=LAYERS,
        cross_attn_norm=True,
        rope_max_seq_len=128,
    )


# ------------------------------------------------------------------------- start values


@torch.no_grad()
def initialize(model: WanTransformer3DModel, encoder: UMT5EncoderModel, seed: int) -> None:
    """Set start values under which the words are heard over the pads.

    The pads' keys and values are exactly zero and stay so (:func:`frozen`); the words
    share a direction in key space that every query looks at from the start.
    """
    model.proj_out.weight.zero_()
    model.proj_out.bias.zero_()
    model.scale_shift_table.mul_(0.1)
    embedder = model.condition_embedder
    embedder.time_proj.weight.normal_(0, 0.02)
    embedder.time_proj.bias.zero_()
    first, second = embedder.text_embedder.linear_1, embedder.text_embedder.linear_2
    first.weight.normal_(0, TEXT_DIM**-0.5)
    second.weight.normal_(0, 1.2 * second.in_features**-0.5)
    first.bias.zero_()
    second.bias.zero_()

    rng = random.Random(seed)
    prompts = [world.tokenize(world.caption(s, rng)) for s in world.sample_scenes(64, rng)]
    words, mask = embed_words(encoder, prompts)
    mean_word = embedder.text_embedder(words)[mask].mean(0)
    for block in model.blocks:
        block.scale_shift_table.mul_(0.1)
        block.scale_shift_table[:, [2, 5]] += 0.5  # both gates half open
        _initialize_text_attention(block.attn2, mean_word)


def _initialize_text_attention(attention: Module, mean_word: Tensor) -> None:
    width = len(mean_word)
    shared = 1.2 * torch.randn(width).sign()
    for projection in (attention.to_q, attention.to_k, attention.to_v):
        projection.weight.normal_(0, width**-0.5)
        projection.bias.zero_()
    attention.to_q.bias.copy_(shared)
    attention.to_k.weight.add_(torch.outer(shared, mean_word) / mean_word.square().sum())
    attention.norm_q.weight.fill_(1.4)
    attention.norm_k.weight.fill_(1.4)


def frozen(name: str) -> bool:
    """Whether a parameter has to stay zero, so that padded keys stay zero."""
    return name.endswith("attn2.to_k.bias") or (
        "text_embedder.linear" in name and name.endswith("bias")
    )


# ------------------------------------------------------------------------- forward pass


def rotation(model: WanTransformer3DModel, latents: Tensor) -> Rotation:
    """Cosines and sines of the rotary embedding, [tokens, head_dim / 2]."""
    cosines, sines = model.rope(latents)
    return cosines[0, :, 0, 0::2].float(), sines[0, :, 0, 1::2].float()


def _rotate(x: Tensor, by: Rotation) -> Tensor:
    cosines, sines = by
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = (even * cosines - odd * sines, even * sines + odd * cosines)
    return torch.stack(turned, dim=-1).flatten(-2)


def _attend(
    attention: Module, x: Tensor, by: Rotation | None = None, text: TextKeys | None = None
) -> Tensor:
    """Self-attention (``by`` given), or cross-attention to ``text`` (already embedded)."""
    source = x if text is None else text.embeddings
    query = attention.norm_q(attention.to_q(x))
    key = attention.norm_k(attention.to_k(source))
    query, key, value = (
        part.unflatten(2, (HEADS, -1)).transpose(1, 2)
        for part in (query, key, attention.to_v(source))
    )
    if by is not None:
        query, key = _rotate(query, by), _rotate(key, by)
    bias = None if text is None else text.bias
    if text is not None and text.pad_mass is not None:
        weights = torch.softmax(query @ key.mT * HEAD_DIM**-0.5 + bias, dim=-1)
        text.pad_mass.append(weights[..., -1].mean().item())
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return attention.to_out[0](out.transpose(1, 2).flatten(2))


def _normalize(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale) + shift


def _block(block: Module, x: Tensor, modulation: Tensor, by: Rotation, text: TextKeys) -> Tensor:
    parts = (block.scale_shift_table + modulation).chunk(6, dim=1)
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = parts
    x = x + _attend(block.attn1, _normalize(x, scale, shift), by) * gate
    normed = F.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias, EPSILON)
    x = x + _attend(block.attn2, normed, text=text)
    up, down = block.ffn.net[0].proj, block.ffn.net[2]
    hidden = F.gelu(up(_normalize(x, ffn_scale, ffn_shift)), approximate="tanh")
    return x + down(hidden) * ffn_gate


def velocity(
    model: WanTransformer3DModel, latents: Tensor, timesteps: Tensor, text: TextKeys
) -> Tensor:
    """What the model predicts (noise minus clip) for latents [n, c, frames, h, w]."""
    batch, channels, frames, height, width = latents.shape
    rows, columns = height // PATCH, width // PATCH
    patches = latents.view(batch, channels, frames, rows, PATCH, columns, PATCH)
    patches = patches.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
    embedding = model.patch_embedding
    x = F.linear(patches, embedding.weight.flatten(1), embedding.bias)
    time, modulation, words, _ = model.condition_embedder(timesteps, text.embeddings)
    modulation = modulation.unflatten(1, (6, -1))
    embedded = TextKeys(words, text.bias, text.pad_mass)
    by = rotation(model, latents)
    for block in model.blocks:
        x = _block(block, x, modulation, by, embedded)
    shift, scale = (model.scale_shift_table + time[:, None]).chunk(2, dim=1)
    x = model.proj_out(_normalize(x, scale, shift))
    x = x.view(batch, frames, rows, columns, PATCH, PATCH, channels)
    return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(latents.shape)


@torch.no_grad()
def sample(
    model: WanTransformer3DModel,
    encoder: UMT5EncoderModel,
    prompts: list[list[int]],
    latent_frames: int,
    generator: torch.Generator,
    steps: int = 10,
    guidance: float = 3.0,
) -> Tensor:
    """Normalised latents of token lists, by Euler steps: the quick check in training."""
    count = len(prompts)
    shape = (count, LATENT_CHANNELS, latent_frames, 8, 8)
    latents = torch.randn(shape, generator=generator)
    text = text_keys(encoder, prompts + [EMPTY_PROMPT] * count)
    sigmas = torch.linspace(1, 0, steps + 1)
    sigmas = 3 * sigmas / (1 + 2 * sigmas)
    for now, then in itertools.pairwise(sigmas.tolist()):
        timesteps = torch.full((2 * count,), 1000 * now)
        asked, empty = velocity(model, torch.cat((latents, latents)), timesteps, text).chunk(2)
        latents = latents + (then - now) * (empty + guidance * (asked - empty))
    return latents
