"""Samples of Qwen-Image between encode and release."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from safelight.models.session import Repainting

Grids = list[tuple[int, int, int]]
"""(1, rows, columns) of tokens, one a picture."""


@dataclass(frozen=True)
class Conditioning:
    """Prompt embeddings, [1, words, text_dim] each; with the pictures, where the model sees them.

    Lengths are those of the prompts.
    """

    positive: torch.Tensor
    negative: torch.Tensor | None
    """None without guidance."""


@dataclass(kw_only=True)
class QwenImageSession(Repainting):
    """Latents are packed: [1, tokens, 4 * channels]; a token is 2x2 latents."""

    conditioning: Conditioning
    grids: Grids
    """Of the output, then of each picture that is seen."""
    seen: torch.Tensor | None = None
    """Latents of those pictures, packed as the output's; None if there are none."""

    @property
    def input(self) -> torch.Tensor:
        """What the transformer is given: [1, tokens of all grids, 4 * channels]."""
        return self.latents if self.seen is None else torch.cat([self.latents, self.seen], dim=1)
