"""What diffusers does without our mends, on real ranks. Work for `fakes.ranks`."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.hooks import context_parallel as hooks
from diffusers.models import attention_dispatch

from fakes import sequence_work
from fakes import transformers_zoo as zoo
from safelight.models.plans import plan_of
from safelight.parallel import diffusers_compat
from safelight.parallel.diffusers_compat import SequenceConfig
from safelight.parallel.layout import Layout
from safelight.parallel.sequence import SequenceParallel


def enable(rank: int) -> str:
    """What upstream's own way to split a sequence raises here."""
    transformer = zoo.build("Wan")
    try:
        transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    except Exception as failure:  # noqa: BLE001  the test says which one it expects
        return type(failure).__name__
    return "nothing"


def gather(rank: int, mended: bool) -> list[list[float]] | str:
    """Columns of two and three on two ranks, gathered along the second dimension."""
    diffusers_compat.install()
    gather = hooks._all_gather_anything
    part = torch.full((2, 2 + rank), float(rank))
    try:
        whole = (gather if mended else inspect.unwrap(gather))(part, 1, dist.group.WORLD)
    except RuntimeError as failure:
        return str(failure)
    return whole.tolist()


@contextlib.contextmanager
def unguarded() -> Iterator[None]:
    """Masks are let through, and native attention heeds them where it gives a log-sum-exp."""
    admit, forward = SequenceConfig.admit, attention_dispatch._native_attention_forward_op

    def heed(
        ctx: Any, query: Any, key: Any, value: Any, mask: Any = None, *rest: Any, **_: Any
    ) -> Any:
        if not rest[4]:  # return_lse
            return forward(ctx, query, key, value, mask, *rest, _save_ctx=False)
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *(tensor.transpose(1, 2) for tensor in (query, key, value)), attn_mask=mask
        )
        return out.transpose(1, 2), logsumexp.transpose(1, 2)

    SequenceConfig.admit = lambda config, mask, key: mask  # type: ignore[method-assign]
    attention_dispatch._native_attention_forward_op = heed
    try:
        yield
    finally:
        SequenceConfig.admit = admit  # type: ignore[method-assign]
        attention_dispatch._native_attention_forward_op = forward


@torch.inference_mode()
def masked(rank: int, layout: Layout, subject: str, grid: tuple[int, int, int], words: int) -> Any:
    """How far a masked forward is off without the guard; or what it raises."""
    mesh = sequence_work.mesh_of(layout)
    transformer = zoo.build(subject)
    inputs, lengths = zoo.feed_grid(subject, 1, grid, words, seed=0)
    expected = zoo.output(transformer, inputs)
    sequence = SequenceParallel.apply(transformer, mesh, plan_of(type(transformer).__name__))
    sequence.prepare(*lengths)
    with unguarded():
        try:
            found = zoo.output(transformer, inputs)
        except RuntimeError as failure:
            return type(failure).__name__
    return float((found - expected).abs().max())


@torch.inference_mode()
def alone(rank: int) -> tuple[bool, float]:
    """Whether the mends were there already, and what they change where one rank works alone."""
    transformer = zoo.build("Wan")
    inputs, _ = zoo.feed("Wan", 1, True, seed=0)
    before = zoo.output(transformer, inputs)
    installed = diffusers_compat.install.cache_info().currsize > 0
    diffusers_compat.install()
    return installed, float((zoo.output(transformer, inputs) - before).abs().max())
