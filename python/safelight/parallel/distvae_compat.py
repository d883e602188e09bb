"""DistVAE's corners, mended in one place.

Written for DistVAE 0.1.0. Every mend has a test that fails once upstream makes it needless
(`test/unit/parallel/test_distvae_compat.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from distvae.models.layers import conv_mixin, conv_utils, normalization
from distvae.models.layers.conv_mixin import PatchConvMixin
from distvae.modules import patch_utils
from distvae.modules.adapters.layers.norm_adapters import GroupNormAdapter
from distvae.modules.patch_utils import Patchify, widest_halo
from distvae.vae import (
    decoder_adapter_name,
    encoder_adapter_name,
    parallelize_decoder,
    parallelize_encoder,
)

from safelight.parallel.traffic import Traffic

AXIS = "vae"
"""The name under which a split VAE's traffic is counted."""

TALKING: tuple[Any, ...] = (conv_mixin, conv_utils, normalization, patch_utils)
"""The modules of DistVAE that call `torch.distributed` while an adapted VAE runs, as `dist`."""


def fits(vae: torch.nn.Module) -> bool:
    """Whether DistVAE has adapters for both halves."""
    return decoder_adapter_name(vae) is not None and encoder_adapter_name(vae) is not None


def adapt(vae: Any, group: dist.ProcessGroup | None, narrowing: int) -> None:
    """Replace encoder and decoder by ones that are split over the ranks of `group`, in place.

    `narrowing` is how many rows of its input the encoder makes one of.
    """
    parallelize_decoder(vae, group)
    parallelize_encoder(vae, group)
    _cut(vae.decoder, 1)
    _cut(vae.encoder, narrowing)
    _normalise_in_float32(vae)


def _cut(half: torch.nn.Module, factor: int) -> None:
    """Bands of whole multiples of `factor` rows.

    DistVAE guesses the encoder's from configuration keys that not all classes have: 8 where
    HunyuanVideo 1.5 narrows by 16, 2 where LTX-2 does by 32. Bands then end within a latent row,
    and ranks fail at different places or wait forever. Its decoder of a VAE that folds pixels
    into channels cuts multiples of the folding, which happens outside: an odd number of latent
    rows is refused.
    """
    for module in half.modules():
        if isinstance(module, Patchify):
            module.scale_factor = factor


class _Float32(torch.nn.Module):
    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden.float()).to(hidden.dtype)


def _normalise_in_float32(vae: torch.nn.Module) -> None:
    """DistVAE squares deviations in the VAE's own precision, where torch's GroupNorm computes in
    float32: in float16 a deviation over 255 makes the variance infinite and the picture flat."""
    for module in vae.modules():
        if isinstance(module, GroupNormAdapter):
            module.group_norm = _Float32(module.group_norm)


def least_rows(vae: Any) -> int:
    """Latent rows every rank needs: neighbours fetch as many, and from nobody but neighbours."""
    return max(1, widest_halo(vae.decoder), widest_halo(vae.encoder))


@contextlib.contextmanager
def running(vae: torch.nn.Module, traffic: Traffic) -> Iterator[None]:
    """A block in which the adapted `vae` runs: what it sends is counted under `AXIS`.

    Not reentrant, and no other adapted VAE may run meanwhile: it is DistVAE's modules that are
    told where to count.
    """
    for module in TALKING:
        module.dist = _Counted(traffic)
    try:
        yield
    finally:
        for module in TALKING:
            module.dist = dist
        _forget_halos(vae)


def _forget_halos(vae: torch.nn.Module) -> None:
    """Every convolution keeps the rows it received, for every shape it ever had."""
    for module in vae.modules():
        if isinstance(module, PatchConvMixin):
            module.halo_buffer.clear()


class _Counted:
    """As much of `torch.distributed` as DistVAE uses; what it does not have raises on every rank
    instead of going uncounted.

    An exchange of rows counts as one collective whether it has one neighbour or two: ranks that
    did the same must have the same number.
    """

    P2POp = dist.P2POp
    isend = staticmethod(dist.isend)
    irecv = staticmethod(dist.irecv)

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def all_gather(
        self, parts: list[torch.Tensor], mine: torch.Tensor, group: dist.ProcessGroup
    ) -> None:
        dist.all_gather(parts, mine, group=group)
        self._traffic.all_gather(AXIS, mine.nbytes, len(parts))

    def all_reduce(self, tensor: torch.Tensor, group: dist.ProcessGroup) -> None:
        dist.all_reduce(tensor, group=group)
        self._traffic.all_reduce(AXIS, tensor.nbytes, dist.get_world_size(group))

    def batch_isend_irecv(self, operations: Sequence[dist.P2POp]) -> list[dist.Work]:
        pending = dist.batch_isend_irecv(list(operations))
        sent = sum(o.tensor.nbytes for o in operations if o.op is dist.isend)
        self._traffic.send(AXIS, sent)
        return pending
