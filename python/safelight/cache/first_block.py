"""diffusers' First Block Cache, with the state of a sample in its session.

The first block of a transformer is always computed. If what it adds has changed little since the
last full forward, the other blocks are left out, and what they added then is added again. Ranks
that share a sequence decide together: each sees only its part of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from diffusers.hooks import FirstBlockCacheConfig
from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK, FBCHeadBlockHook

from safelight.config import ModelConfig
from safelight.parallel.mesh import Mesh


class Remembering(Protocol):
    """A session: its state ends with it."""

    cached: dict[Any, Any]
    """What a `StepCache` knows of the sample, by cache and half."""


class StepCache:
    """Of one transformer; it may be off."""

    def __init__(self, transformer: Any, head: FBCHeadBlockHook | None) -> None:
        """`head`: the hook on the first block, which holds the state of all; None: no cache."""
        self._transformer = transformer
        self._head = head

    @classmethod
    def apply(cls, transformer: Any, mesh: Mesh, model: ModelConfig) -> StepCache:
        """Attach what `model` asks for to `transformer` (a diffusers model that `plans.cached`).

        Before its sequence is split. With no cache nothing is changed.
        """
        if model.step_cache == "none":
            return cls(transformer, None)
        transformer.enable_cache(FirstBlockCacheConfig(threshold=model.step_cache_threshold))
        head = _head(transformer)
        if mesh.layout.sp > 1:
            head._should_compute_remaining_blocks = partial(_decide, head, mesh)
        return cls(transformer, head)

    @contextmanager
    def context(self, name: str, sessions: Sequence[Remembering]) -> Iterator[None]:
        """Around the forward of `sessions`; `name` is that of the half.

        With a cache it is one sample's, as the decision is made for all rows at once. Raises
        `ValueError` for more.
        """
        if self._head is None:
            with self._transformer.cache_context(name):
                yield
            return
        if len(sessions) != 1:
            raise ValueError(f"{len(sessions)} samples would share one decision of a step cache.")
        # diffusers keeps states by the name of the context and has no way to forget one.
        states = self._head.state_manager
        known = states._state_cache = sessions[0].cached.setdefault(self, {})
        try:
            with self._transformer.cache_context(name):
                yield
        except BaseException:
            # Tried again, the step would seem to change nothing: it is computed whole.
            known.clear()
            raise
        finally:
            states._state_cache = {}
        # For the last block of this forward alone, and as large as what is needed at the next step.
        known[name].head_block_output = None


def _head(transformer: Any) -> Any:
    """The hook that decides."""
    registries = (m._diffusers_hook for m in transformer.modules() if hasattr(m, "_diffusers_hook"))
    hooks = (registry.get_hook(_FBC_LEADER_BLOCK_HOOK) for registry in registries)
    return next(hook for hook in hooks if hook is not None)


@torch.compiler.disable
def _decide(head: FBCHeadBlockHook, mesh: Mesh, residual: torch.Tensor) -> bool:
    """As diffusers decides, but of the whole sequence: the same on every rank that has a part."""
    before = head.state_manager.get_state().head_block_residual
    if before is None:
        return True
    sums = torch.stack([(residual - before).abs().float().sum(), before.abs().float().sum()])
    degrees = {"ulysses": mesh.layout.ulysses, "ring": mesh.layout.ring}
    for axis in (axis for axis, ranks in degrees.items() if ranks > 1):
        sums = torch.stack(mesh.gather(sums, axis)).sum(dim=0)
    return bool(sums[0] / sums[1] > head.threshold)
