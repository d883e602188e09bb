"""How many bytes a rank sends in one forward, from the shapes. Needs no torch.

For transformers that split their self-attention only, as Wan does: each rank keeps the whole text.
`docs/communication.md` derives the formulas; `Traffic` counts what is sent.
"""

from __future__ import annotations

import msgspec

from safelight.parallel.layout import Layout


class Forward(msgspec.Struct, frozen=True, kw_only=True):
    """The shapes of one forward."""

    batch: int = 1
    tokens: int
    """Of one sample; a multiple of the ranks that share them."""
    layers: int
    hidden: int
    """Attention heads × their width."""
    outputs: int
    """Numbers a token becomes: channels × the volume of a patch."""
    itemsize: int = 2
    """Bytes of a number; 2 is bfloat16."""


def sent(layout: Layout, forward: Forward) -> dict[str, int]:
    """Bytes that a rank sends, by ``axis.collective`` as `Traffic.take` has them."""
    by_collective = {
        "ulysses.all_to_all": forward.layers * _all_to_all(layout, forward),
        "ring.all_gather": forward.layers * _ring(layout, forward),
        "sequence.all_gather": _output(layout, forward),
    }
    return {name: nbytes for name, nbytes in by_collective.items() if nbytes}


def _part(layout: Layout, forward: Forward) -> int:
    """Bytes of one rank's queries, or keys, or values, or attention outputs, in one layer."""
    return forward.batch * forward.tokens // layout.sp * forward.hidden * forward.itemsize


def _all_to_all(layout: Layout, forward: Forward) -> int:
    """Queries, keys and values to the ranks that have their heads, the outputs back."""
    return 4 * _part(layout, forward) * (layout.ulysses - 1) // layout.ulysses


def _ring(layout: Layout, forward: Forward) -> int:
    """Keys and values past all ranks of the ring. Ulysses, if there is any, has exchanged tokens
    for heads before: as many numbers."""
    return 2 * _part(layout, forward) * (layout.ring - 1)


def _output(layout: Layout, forward: Forward) -> int:
    """The output, once."""
    part = forward.batch * forward.tokens // layout.sp * forward.outputs * forward.itemsize
    return part * (layout.sp - 1)
