"""xfuser's attention over a split sequence, against diffusers' over the whole of it.

Written against the source of xfuser 0.7.0: where this was written there was no CUDA device, so
neither these tests nor xfuser's kernels have run on one. One device tests that xfuser imports,
makes its groups and attends; two and four test that ranks do it together.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from fakes import xfuser_work
from safelight.parallel import xfuser_backend
from safelight.parallel.layout import Layout
from safelight.parallel.volume import Forward, sent

REASON = xfuser_backend.available("cuda")
TOLERANCE = 1e-2
"""Of bf16, whose numbers around 1 are 8e-3 apart: kernels differ in the last bit."""

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.timeout(600),
]


@pytest.mark.parametrize(
    "layout",
    [
        Layout(),
        Layout(ulysses=2),
        Layout(ring=2),
        Layout(ring=2, ulysses=2),
        Layout(cfg=2, ulysses=2),
        Layout(spare=2, ring=2),
    ],
    ids=Layout.flags,
)
def test_ranks_attend_to_the_whole_sequence(layout: Layout, tmp_path: Path) -> None:
    if torch.cuda.device_count() < layout.group_size:
        pytest.skip(f"{layout.group_size} CUDA devices are needed")
    spawn = multiprocessing.get_context("spawn")
    work = partial(xfuser_work.on_cuda, rendezvous=str(tmp_path / "store"), layout=layout)
    with ProcessPoolExecutor(layout.group_size, mp_context=spawn) as ranks:
        outcomes = list(ranks.map(work, range(layout.group_size)))
    forward = Forward(
        batch=xfuser_work.BATCH,
        tokens=xfuser_work.TOKENS,
        layers=1,
        hidden=xfuser_work.HEADS * xfuser_work.WIDTH,
        outputs=0,
    )
    for outcome in outcomes:
        assert outcome.difference < TOLERANCE
        assert outcome.sent == sent(layout, forward)
