"""A VAE whose work the ranks of a group share, by bands of rows.

DistVAE rebuilds a VAE in place out of layers that fetch rows from their neighbours. Here it
rebuilds a second tree of modules around the very same parameters, so that both are at hand: the
VAE as diffusers made it, whose bits are diffusers', and the split one. Neither their code nor
their feature caches touch each other, and the weights are there once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLHunyuanVideo15, AutoencoderKLQwenImage, AutoencoderKLWan

from safelight.parallel import distvae_compat, vaes
from safelight.parallel.mesh import Mesh

if TYPE_CHECKING:
    from diffusers.models.modeling_outputs import AutoencoderKLOutput

WITH_FEATURE_CACHE = (AutoencoderKLWan, AutoencoderKLQwenImage)
"""Classes that keep features from one frame to the next within a call."""

ONE_BY_ONE = (AutoencoderKLHunyuanVideo15,)
"""Classes whose attention mask fits one sample only: diffusers can slice the batch for them."""


class ParallelVae:
    """`vae` decoded and encoded by all ranks together, or whole by the one that asks.

    All ranks must build it alike, with tiling and slicing as they shall be, and before hooks that
    move weights are attached; the weights may be moved or cast later through `whole`. Raises
    `ConfigError` if `mode` is "on" and `vae` cannot be split.
    """

    def __init__(
        self, vae: Any, mesh: Mesh, mode: str, group: dist.ProcessGroup | None = None
    ) -> None:
        """`mode` is `--vae-parallel`; `group` is the default one, all of the mesh, if not given."""
        if isinstance(vae, ONE_BY_ONE):
            vae.enable_slicing()
        self.whole = vae
        """The VAE as diffusers made it."""
        self.split: Any = None
        """The one that is split; shares all parameters. None if it is never used."""
        self._facts = facts_of(vae)
        self.reason = vaes.why_whole(self._facts)
        """Why it cannot be split; empty if it can."""
        if not self.reason and not distvae_compat.fits(vae):
            self.reason = f"DistVAE has no adapter for this {type(vae).__name__}"
        if mode == "on" and self.reason:
            raise vaes.impossible(self.reason)
        self._mode = mode
        self._mesh = mesh
        self._ranks = dist.get_world_size(group) if mesh.several else 1
        if self._ranks > 1 and mode != "off" and not self.reason:
            self._divide(group)

    def _divide(self, group: dist.ProcessGroup | None) -> None:
        self._compression = vaes.compression(self._facts)
        self.split = _twin(self.whole)
        distvae_compat.adapt(self.split, group, vaes.narrowing(self._facts))
        self._least_rows = distvae_compat.least_rows(self.split) * self._ranks

    # ------------------------------------------------------------------ whether all take part

    def splits_decode(self, shape: Sequence[int]) -> bool:
        """Whether `decode` of latents so shaped is split: then every rank must call it.

        [samples, channels, (frames,) rows, columns]. All ranks answer alike.
        """
        if self.split is None:
            return False
        rows, columns = shape[-2:]
        return self._splits(rows, shape[0] * rows * columns * self._compression**2)

    def splits_encode(self, shape: Sequence[int]) -> bool:
        """Whether `encode` of pixels so shaped is split: then every rank must call it.

        [samples, channels, (frames,) height, width]. Never where the height is no multiple of a
        latent row's.
        """
        if self.split is None or shape[-2] % self._compression:
            return False
        return self._splits(shape[-2] // self._compression, shape[0] * shape[-2] * shape[-1])

    def _splits(self, rows: int, pixels: int) -> bool:
        if rows < self._least_rows:
            return False
        return self._mode == "on" or vaes.pays(self._ranks, rows, pixels)

    # -------------------------------------------------------------------------------- the work

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, **options: Any) -> torch.Tensor:
        """Pixels of `latents`, [samples, channels, (frames,) rows, columns]; on every rank that
        calls it, the same bits on all of them.

        Communicates only if `splits_decode`. `options` go to the VAE's `decode`.
        """
        if not self.splits_decode(latents.shape):
            return self.whole.decode(latents, return_dict=False, **options)[0]
        return self._together(self.split.decode, latents, return_dict=False, **options)[0]

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor, **options: Any) -> AutoencoderKLOutput:
        """What the VAE's `encode` gives for `pixels`, [samples, channels, (frames,) height,
        width]; on every rank that calls it, the same bits on all of them.

        Communicates only if `splits_encode`.
        """
        if not self.splits_encode(pixels.shape):
            return self.whole.encode(pixels, **options)
        return self._together(self.split.encode, pixels, **options)

    def _together(self, work: Callable[..., Any], tensor: torch.Tensor, **options: Any) -> Any:
        try:
            with distvae_compat.running(self.split, self._mesh.traffic):
                return work(tensor, **options)
        finally:
            if isinstance(self.split, WITH_FEATURE_CACHE):
                self.split.clear_cache()


def facts_of(vae: Any) -> vaes.Config:
    """What `safelight.parallel.vaes` asks of a loaded VAE."""
    return {**vae.config, "_class_name": type(vae).__name__}


def _twin(vae: Any) -> Any:
    """Another tree of modules around the same parameters and buffers."""
    shared = [*vae.parameters(), *vae.buffers()]
    return copy.deepcopy(vae, {id(tensor): tensor for tensor in shared})
