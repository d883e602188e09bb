"""What is known of transformers by class: how sequences are split, what forbids it, and caches.

Data only, and no torch: the entrypoint checks a layout with it. Only what `test_sequence.py`
compares with one rank is here; of a class that is not, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from safelight.errors import ConfigError
from safelight.parallel.plan import Gather, SequencePlan, Split

Masks = Literal["never", "mixed", "always"]
"""Whether attention takes a mask: `mixed` if samples with prompts of different lengths share a
forward, and not otherwise."""


class Transformer(msgspec.Struct, frozen=True, kw_only=True):
    """One class of transformers."""

    plan: SequencePlan = SequencePlan()
    """Of its sequence."""
    heads: str = "num_attention_heads"
    """Key of `config.json` with the number of attention heads."""
    masks: Masks = "never"
    cached: bool = False
    """Whether its family runs it with a step cache: `test_first_block.py` compares it."""


TRANSFORMERS = {
    "FluxTransformer2DModel": Transformer(cached=True),
    "Flux2Transformer2DModel": Transformer(),
    "LTXVideoTransformer3DModel": Transformer(plan=SequencePlan(masks_repeat=True), masks="always"),
    # diffusers' own plan forgets the positions of the attention between video and sound. The sound
    # stays whole: it has few tokens, seldom a number that ranks can share.
    "LTX2VideoTransformer3DModel": Transformer(
        plan=SequencePlan(
            modules={
                "": {
                    "hidden_states": Split(1),
                    "encoder_hidden_states": Split(1),
                    "audio_encoder_hidden_states": Split(1),
                    "encoder_attention_mask": Split(1),
                    "audio_encoder_attention_mask": Split(1),
                    "timestep": Split(1),
                    "video_coords": Split(2),
                },
                "proj_out": Gather(1),
            },
            masks_repeat=True,
        ),
        masks="always",
    ),
    "QwenImageTransformer2DModel": Transformer(masks="mixed", cached=True),
    "WanTransformer3DModel": Transformer(cached=True),
    # Image and text are refined apart and whole, then joined: there the split begins. The joined
    # sequence is padded to a multiple of 32.
    "ZImageTransformer2DModel": Transformer(
        plan=SequencePlan(
            modules={
                "layers.0": {"x": Split(1)},
                "layers.*": {"attn_mask": Split(1), "freqs_cis": Split(1)},
                "all_final_layer.2-1": Gather(1),
            },
            attention=("layers",),
        ),
        heads="n_heads",
        masks="mixed",
    ),
}


def plan_of(class_name: str) -> SequencePlan | None:
    """How the sequence of this class is split; None if that is not known."""
    known = TRANSFORMERS.get(class_name)
    return None if known is None else known.plan


def sequence(class_name: str) -> bool:
    """Whether the sequence of this class can be split."""
    return class_name in TRANSFORMERS


def masked(class_name: str, *, mixed: bool = True) -> bool:
    """Whether the attention of this class may take a mask, which rules out ring attention.

    `mixed`: whether prompts of different lengths may share a forward, which depends on the family.
    """
    known = TRANSFORMERS.get(class_name, Transformer())
    return known.masks == "always" or (mixed and known.masks == "mixed")


def cached(class_name: str) -> bool:
    """Whether a family runs this class with a step cache."""
    return TRANSFORMERS.get(class_name, Transformer()).cached


def heads(config: Mapping[str, Any]) -> int:
    """Attention heads of a transformer, from its `config.json`. Raises `ConfigError` if the number
    is not in it."""
    name = config.get("_class_name", "The transformer")
    key = TRANSFORMERS.get(name, Transformer()).heads
    number = config.get(key)
    if not isinstance(number, int):
        raise ConfigError(f"{name} does not say how many attention heads it has: no '{key}'.")
    return number
