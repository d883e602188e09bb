"""The text encoder (a two-layer ``UMT5EncoderModel``) and the keys it gives.

WanPipeline pads the text to ``max_sequence_length`` positions of zeros (512 unless told
otherwise) and masks nothing, so every query also attends to hundreds of zero keys. Two
things keep them harmless:

* they must *stay* zero. The RMS norm of the keys would blow any small bias up to a
  full-size key, the same for every pad; so the biases on the text's way to the keys
  are zero and frozen (:func:`.transformer.initialize`).
* training must see them. The n words plus one zero key whose logit is raised by
  log(512 - n) give what 512 keys give, at a thirtieth of the cost. The number of keys
  is drawn anew every step (:func:`draw_keys`), so the model is good at any length:
  a short one makes a forward several times cheaper.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from .world import END, PAD, VOCABULARY

TEXT_DIM = 96
WORD_SLOTS = 14  # the longest caption of the world has 13 tokens
PIPELINE_KEYS = 512  # what WanPipeline pads to
COMMON_KEYS = 64  # of half the training steps
SERVED_KEYS = 32  # the `max_sequence_length` of the shipped defaults; longer than any caption

EMPTY_PROMPT = [VOCABULARY[END]]


def make_text_encoder() -> UMT5EncoderModel:
    """The text encoder, with random weights."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(VOCABULARY),
            d_model=TEXT_DIM,
            d_kv=24,
            d_ff=192,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=64,
            feed_forward_proj="gated-gelu",
            pad_token_id=VOCABULARY[PAD],
            eos_token_id=VOCABULARY[END],
            decoder_start_token_id=VOCABULARY[PAD],
        )
    )


@dataclass
class TextKeys:
    """What cross-attention attends to: the words, then one key for all further pads."""

    embeddings: Tensor  # [n, WORD_SLOTS + 1, TEXT_DIM], zero where there is no word
    bias: Tensor  # added to the logits, [1, 1, 1, WORD_SLOTS + 1]
    pad_mass: list[float] | None = None  # where given, collects the attention on pads


def draw_keys(rng: random.Random) -> int:
    """Text length of one training step: mostly a short one, at times anything up to 512."""
    kind = rng.random()
    if kind < 0.5:
        return COMMON_KEYS
    if kind < 0.75:
        return PIPELINE_KEYS
    return round(math.exp(rng.uniform(math.log(2 * WORD_SLOTS), math.log(PIPELINE_KEYS))))


def pad_bias(keys: int = PIPELINE_KEYS) -> Tensor:
    """Logit bias that makes the last key count for all the pads it stands for."""
    bias = torch.zeros(WORD_SLOTS + 1)
    bias[-1] = math.log(keys - WORD_SLOTS)
    return bias.view(1, 1, 1, -1)


def embed_words(encoder: UMT5EncoderModel, prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Embeddings [n, WORD_SLOTS, TEXT_DIM] of token lists, and where the words are."""
    ids = torch.full((len(prompts), WORD_SLOTS), VOCABULARY[PAD])
    for row, prompt in zip(ids, prompts, strict=True):
        if len(prompt) > WORD_SLOTS:
            raise ValueError(f"a caption of {len(prompt)} tokens; at most {WORD_SLOTS} fit")
        row[: len(prompt)] = torch.tensor(prompt)
    mask = ids != VOCABULARY[PAD]
    hidden = encoder(ids, mask.long()).last_hidden_state
    return hidden * mask[..., None], mask


def text_keys(
    encoder: UMT5EncoderModel, prompts: Sequence[list[int]], keys: int = PIPELINE_KEYS
) -> TextKeys:
    """The keys of token lists padded to ``keys``, ready for :func:`.transformer.velocity`."""
    words, _ = embed_words(encoder, prompts)
    embeddings = torch.cat((words, words.new_zeros(len(prompts), 1, TEXT_DIM)), dim=1)
    return TextKeys(embeddings, pad_bias(keys))
