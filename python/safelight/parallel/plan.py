"""How a transformer's sequence is split over ranks, as data. Needs no torch.

diffusers brings such plans for some transformers (`_cp_plan`); this is the same in our own words,
for the others.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Split(msgspec.Struct, frozen=True):
    """Every rank goes on with its part of a tensor, cut along `dim`."""

    dim: int


class Gather(msgspec.Struct, frozen=True):
    """What a module returns is put together again along `dim`."""

    dim: int


Splits = Mapping[str, Split]
"""Parameter of the module's `forward` -> how it is split. None stays None."""


class SequencePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to the sequence of one class of transformers."""

    modules: Mapping[str, Splits | Gather] | None = None
    """Module -> what is split before it or gathered after it. `layers.*` is every module of the
    list `layers`, the empty name the transformer itself. None: diffusers' own plan."""
    attention: tuple[str, ...] = ()
    """Where attention runs over the split sequence: modules with these prefixes; empty: all."""
    masks_repeat: bool = False
    """Whether masks come once for every head, all alike: one of them will do."""
