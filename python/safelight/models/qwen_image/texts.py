"""Prompts of different lengths in one forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def padded(texts: Sequence[torch.Tensor], ranks: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings [1, words, dim] as one tensor [texts, words, dim], and which words are theirs.

    Without a mask if they are equally long, as alone. With one, their length is a multiple of
    `ranks`: masks are put together from equal parts only.
    """
    lengths = [text.shape[1] for text in texts]
    longest = max(lengths)
    if min(lengths) == longest >= ranks:
        return torch.cat(list(texts)), None
    longest = -(-longest // ranks) * ranks
    rows = texts[0].new_zeros(len(texts), longest, texts[0].shape[2])
    mask = torch.zeros(len(texts), longest, dtype=torch.bool, device=rows.device)
    for index, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        rows[index, :length] = text[0]
        mask[index, :length] = True
    return rows, mask


def groups(texts: Sequence[torch.Tensor], *, apart: bool) -> list[list[int]]:
    """Which of them share a forward, by index: all, or, `apart`, those that are equally long."""
    if not apart:
        return [list(range(len(texts)))]
    found: dict[int, list[int]] = {}
    for index, text in enumerate(texts):
        found.setdefault(text.shape[1], []).append(index)
    return list(found.values())
