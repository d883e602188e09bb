"""xfuser's attention on real ranks, compared with attention over the whole sequence on one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec
import torch
from diffusers.models import attention_dispatch as attention

from fakes import xfuser_stub
from safelight.errors import ConfigError
from safelight.parallel import diffusers_compat, mesh, xfuser_backend
from safelight.parallel.diffusers_compat import SequenceConfig
from safelight.parallel.layout import Layout
from safelight.parallel.mesh import Mesh

BATCH, TOKENS, HEADS, WIDTH = 2, 48, 4, 64


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it on one rank."""

    difference: float
    """Largest."""
    sent: dict[str, int]
    """Bytes, as `Traffic.take`."""
    collectives: int
    calls: list[str] = []
    """What was asked of the stub."""


def compare(place: Mesh, dtype: torch.dtype) -> Outcome:
    """Self-attention of random tensors, by `diffusers` over all tokens and as installed over this
    rank's. The halves of a `cfg` layout have different inputs."""
    layout = place.layout
    generator = torch.Generator().manual_seed(place.index("cfg"))
    whole = [
        torch.randn(BATCH, TOKENS, HEADS, WIDTH, generator=generator).to(place.device, dtype)
        for _ in range(3)
    ]
    expected = attention.dispatch_attention_fn(*whole, backend="native")
    part = place.index("ring") * layout.ulysses + place.index("ulysses")
    mine = [tensor.chunk(layout.sp, 1)[part] for tensor in whole]
    place.traffic.take()
    before = place.traffic.collectives
    found = _attend(place, mine)
    return Outcome(
        difference=float((found - expected.chunk(layout.sp, 1)[part]).abs().max()),
        sent=place.traffic.take(),
        collectives=place.traffic.collectives - before,
        calls=list(xfuser_stub.CALLS),
    )


def _attend(place: Mesh, tensors: list[torch.Tensor]) -> torch.Tensor:
    """Through diffusers; a rank that is alone has no split sequence to route, and asks USP."""
    if place.layout.sp == 1:
        whole = SimpleNamespace(ulysses_anything=False, ring_anything=False)
        unified = xfuser_backend.initialise(place)
        config = SimpleNamespace(context_parallel_config=whole)
        return unified.attend(*tensors, _parallel_config=config)
    xfuser_backend.install(place)
    config = SequenceConfig(ring_degree=place.layout.ring, ulysses_degree=place.layout.ulysses)
    parallel = diffusers_compat.resolve(config, place)
    found: torch.Tensor = attention.dispatch_attention_fn(
        *tensors, backend="native", parallel_config=parallel
    )
    return found


# ----------------------------------------------------------------------- on the CPU, with the stub


@contextlib.contextmanager
def stubbed(initialize: Any = xfuser_stub.initialize_model_parallel) -> Iterator[None]:
    """Nothing of it is left: ranks go on to other tests."""
    diffusers_compat.install()  # before, as it stays
    with (
        xfuser_stub.installed(initialize),
        mock.patch.object(xfuser_backend, "require"),
        mock.patch.object(xfuser_backend, "_installed", None),
        mock.patch.object(attention, "_templated_context_parallel_attention"),
        mock.patch.dict("os.environ"),
    ):
        yield


@torch.inference_mode()
def on_cpu(rank: int, layout: Layout, dtype: torch.dtype) -> Outcome:
    """`compare`, with the stub."""
    with stubbed():
        return compare(Mesh.create(layout, torch.device("cpu", 0)), dtype)


def misordered(rank: int, layout: Layout) -> str:
    """How it is refused where xfuser has the ranks in another order."""
    with stubbed(xfuser_stub.misordered):
        try:
            xfuser_backend.install(Mesh.create(layout, torch.device("cpu", 0)))
        except ConfigError as refused:
            return str(refused)
    return ""


# ---------------------------------------------------------------------------------------- on CUDA


@torch.inference_mode()
def on_cuda(rank: int, rendezvous: str, layout: Layout) -> Outcome:
    """`compare` in bf16 on the device of the same number, in a process of its own, with xfuser."""
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    mesh.join(device, rendezvous, rank, layout.group_size, timeout=120)
    place = Mesh.create(layout, device)
    try:
        return compare(place, torch.bfloat16)
    finally:
        place.close()
