"""What diffusers lacks, and what our mends make of it.

The first half of each test fails once diffusers has what it lacks: then the mend can go.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from diffusers.hooks import context_parallel as hooks
from diffusers.models import attention_dispatch

from fakes import compat_work
from fakes.ranks import RankPool, pool
from fakes.sequence_work import Case, compare
from safelight.parallel import diffusers_compat
from safelight.parallel.layout import Layout


@pytest.mark.skipif(torch.accelerator.is_available(), reason="it counts the accelerators")
def test_upstream_splits_no_sequence_on_the_cpu(two_ranks: RankPool) -> None:
    """`resolve` goes around `_resolve_parallel_config`."""
    assert two_ranks.run(compat_work.enable) == ["ZeroDivisionError"] * 2


# ---------------------------------------------------------------------------- log-sum-exp


def native(query: Any, key: Any, *, lse: bool, scale: float | None = None) -> Any:
    """Native attention, as it is replaced; values are the keys."""
    diffusers_compat.install()
    forward = attention_dispatch._native_attention_forward_op
    rest = (None, 0.0, False, scale, False, lse)
    return forward(None, query, key, key, *rest, _save_ctx=False, _parallel_config=None)


def exact(query: Any, key: Any, scale: float) -> tuple[Any, Any]:
    """In float64, from [batch, sequence, heads, width]."""
    query, key = query.double().transpose(1, 2), key.double().transpose(1, 2)
    scores = query @ key.mT * scale
    return (scores.softmax(-1) @ key).transpose(1, 2), scores.logsumexp(-1).transpose(1, 2)


def test_upstream_gives_no_logsumexp() -> None:
    diffusers_compat.install()
    upstream = inspect.unwrap(attention_dispatch._native_attention_forward_op)
    tensor = torch.zeros(1, 2, 1, 8)
    with pytest.raises(ValueError, match="does not support return_lse"):
        upstream(None, tensor, tensor, tensor, return_lse=True, _save_ctx=False)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize("scale", [None, 0.5])
def test_attention_with_its_logsumexp(
    dtype: torch.dtype, tolerance: float, scale: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 7, 3, 16, generator=generator).to(dtype)
    key = torch.randn(2, 5, 3, 16, generator=generator).to(dtype)
    out, logsumexp = native(query, key, lse=True, scale=scale)
    expected, expected_logsumexp = exact(query, key, scale or 16**-0.5)
    assert out.dtype == dtype
    assert logsumexp.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(logsumexp.double(), expected_logsumexp, rtol=0, atol=1e-5)


def test_without_the_logsumexp_it_is_upstreams() -> None:
    tensor = torch.randn(1, 4, 2, 8)
    upstream = inspect.unwrap(attention_dispatch._native_attention_forward_op)
    expected = upstream(None, tensor, tensor, tensor, _save_ctx=False)
    assert torch.equal(native(tensor, tensor, lse=False), expected)


def test_a_mask_is_not_dropped() -> None:
    diffusers_compat.install()
    forward = attention_dispatch._native_attention_forward_op
    tensor = torch.zeros(1, 2, 1, 8)
    with pytest.raises(ValueError, match="without mask"):
        forward(None, tensor, tensor, tensor, torch.ones(1, 1, 1, 2), return_lse=True)


# ---------------------------------------------------------------------------- uneven gathers


def test_upstream_gathers_no_unequal_parts_over_gloo(two_ranks: RankPool) -> None:
    for said in two_ranks.run(compat_work.gather, False):
        assert "invalid tensor size" in said
    rows = [[0.0, 0.0, 1.0, 1.0, 1.0]] * 2
    assert two_ranks.run(compat_work.gather, True) == [rows, rows]


# ---------------------------------------------------------------------------- masks


@pytest.mark.parametrize(
    ("subject", "layout", "grid", "words"),
    [
        ("QwenImage, text mask", Layout(ring=4), (2, 4, 4), 8),
        ("LTX, text mask", Layout(ring=4), (2, 4, 4), 8),
        ("QwenImage, text mask", Layout(ulysses=4), (1, 5, 5), 15),
    ],
)
def test_upstream_is_wrong_where_we_refuse(
    four_ranks: RankPool,
    subject: str,
    layout: Layout,
    grid: tuple[int, int, int],
    words: int,
) -> None:
    off = four_ranks.run(compat_work.masked, layout, subject, grid, words)
    assert max(off) > 1e-3


def test_upstream_takes_no_mask_that_repeats_by_head(two_ranks: RankPool) -> None:
    """Hence `SequencePlan.masks_repeat`."""
    said = two_ranks.run(compat_work.masked, Layout(ulysses=2), "LTX, text mask", (2, 4, 4), 8)
    assert said == ["RuntimeError"] * 2


# ---------------------------------------------------------------------------- counting


def test_the_exchange_of_lengths_and_masks_is_counted(two_ranks: RankPool) -> None:
    """The even collectives are compared with formulas in `test_volume.py`."""
    layouts = (Layout(ulysses=2), Layout(ring=2))
    cases = [Case(subject="Wan", layout=layout, even=False) for layout in layouts]
    cases.append(Case(subject="QwenImage, text mask", layout=Layout(ulysses=2)))
    ulysses, ring, masked = two_ranks.run(compare, cases)[0]
    # Two layers; one int64 to one other rank, for queries, keys, values and outputs.
    assert ulysses.sent["ulysses.all_gather"] == 2 * 4 * 8
    # The same for keys and values together; 14 of 27 tokens on this rank, 48 float32 each.
    assert ring.sent["ring.all_gather"] == 2 * (8 + 2 * 14 * 48 * 4)
    # 14 tokens of 4 channels × a patch of 4 numbers.
    for outcome in (ulysses, ring):
        assert outcome.sent["sequence.all_gather"] == 8 + 14 * 16 * 4
    # Two layers; 16 image tokens and 4 words, a byte each.
    assert masked.sent["ulysses.all_gather"] == 2 * (16 + 4)


def test_collectives_are_counted_one_by_one(two_ranks: RankPool) -> None:
    """Ranks compare the numbers when something fails."""
    cases = [Case(subject="Wan", layout=layout) for layout in (Layout(ulysses=2), Layout(ring=2))]
    for ulysses, ring in two_ranks.run(compare, cases):
        assert ulysses.collectives == 2 * 4 + 1
        assert ring.collectives == 2 * 1 + 1


# ---------------------------------------------------------------------------- installing


def test_installing_twice_is_installing_once() -> None:
    def places() -> list[Any]:
        return [
            attention_dispatch._templated_context_parallel_attention,
            attention_dispatch._native_attention_forward_op,
            attention_dispatch.funcol,
            attention_dispatch.dist,
            attention_dispatch.gather_size_by_comm,
            hooks.funcol,
            hooks.gather_size_by_comm,
            hooks._all_gather_anything,
            hooks.ContextParallelGatherHook.post_forward,
        ]

    diffusers_compat.install()
    once = places()
    diffusers_compat.install()
    assert all(a is b for a, b in zip(once, places(), strict=True))


def test_one_rank_has_the_bits_of_diffusers_with_the_mends_in_place() -> None:
    """In a process that has never had them."""
    with pool(1) as ranks:
        assert ranks.run(compat_work.alone) == [(False, 0.0)]
