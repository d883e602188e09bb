"""Corners of DistVAE, as they are: a test that fails here says that a mend of
`parallel/distvae_compat.py` can go."""

from __future__ import annotations

import importlib
import pkgutil
from types import SimpleNamespace

import distvae.models
import distvae.modules
import pytest
import torch
import torch.distributed as dist
from distvae.models.layers.conv2d import PatchConv2d
from distvae.models.layers.normalization import PatchGroupNorm
from distvae.utils import ParallelContext

from fakes import vae_work, vaes_zoo
from fakes.ranks import RankPool
from safelight.parallel import distvae_compat, vaes
from safelight.parallel.traffic import Traffic
from safelight.parallel.vae import facts_of


@pytest.mark.parametrize(
    ("name", "decoder", "encoder"),
    [
        ("AutoencoderKLHunyuanVideo15", 1, 8),  # which narrows by 16
        ("AutoencoderKLLTX2Video", 4, 2),  # by 32
        ("AutoencoderKLWan (2.2)", 2, 8),
        ("builtin:shapes", 4, 2),
    ],
)
def test_bands_are_cut_wrong(two_ranks: RankPool, name: str, decoder: int, encoder: int) -> None:
    for found in two_ranks.run(vae_work.upstream, name):
        assert (found.decoder_factor, found.encoder_factor) == (decoder, encoder)
    right = vaes.narrowing(facts_of(vaes_zoo.build(name)))
    assert (decoder, encoder) != (1, right)


def test_received_rows_are_kept(two_ranks: RankPool) -> None:
    for found in two_ranks.run(vae_work.upstream, "AutoencoderKLWan"):
        assert found.kept > 10


def test_norms_overflow_in_half_precision() -> None:
    norm = PatchGroupNorm(1, 2, parallel_context=ParallelContext(None, 0, 1, -2)).half()
    hidden = torch.tensor([-1000.0, 1000.0]).half().view(1, 2, 1, 1)
    torchs = torch.nn.functional.group_norm(hidden, 1).flatten().tolist()
    assert torchs == [-1, 1]
    assert norm(hidden).flatten().tolist() != torchs
    assert distvae_compat._Float32(norm)(hidden).flatten().tolist() == torchs


def test_norms_are_as_exact_as_unsplit_ones(two_ranks: RankPool) -> None:
    for whole, split in two_ranks.run(vae_work.half_precision, "AutoencoderKL"):
        assert split < 1.1 * whole


def test_wide_kernels_need_more_rows() -> None:
    context = ParallelContext(None, 0, 1, -2)

    def half(kernel: int) -> torch.nn.Module:
        return PatchConv2d(1, 1, kernel, parallel_context=context)

    for kernels, rows in (((1, 1), 1), ((3, 1), 1), ((5, 3), 2), ((3, 7), 3)):
        vae = SimpleNamespace(decoder=half(kernels[0]), encoder=half(kernels[1]))
        assert distvae_compat.least_rows(vae) == rows


def test_all_modules_that_talk_are_counted() -> None:
    """DistVAE calls `torch.distributed` as `dist`, in these modules and no others."""
    talking = set()
    for package in (distvae.models, distvae.modules):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            if dist in vars(module).values():
                talking.add(module)
    assert talking == set(distvae_compat.TALKING)


def test_counting_ends_with_the_block() -> None:
    with pytest.raises(ArithmeticError), distvae_compat.running(torch.nn.Identity(), Traffic()):
        assert all(module.dist is not dist for module in distvae_compat.TALKING)
        raise ArithmeticError
    assert all(module.dist is dist for module in distvae_compat.TALKING)


def test_what_cannot_be_counted_cannot_be_called() -> None:
    counted = distvae_compat._Counted(Traffic())
    assert not hasattr(counted, "broadcast")
