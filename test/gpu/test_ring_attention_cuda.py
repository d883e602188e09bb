"""Native attention that returns its log-sum-exp, on CUDA: the kernels that ring attention needs."""

from __future__ import annotations

import pytest
import torch
from diffusers.models import attention_dispatch

from safelight.parallel import diffusers_compat

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
)
@pytest.mark.parametrize("queries", [7, 32, 100])
def test_attention_with_its_logsumexp(
    dtype: torch.dtype, tolerance: float, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of queries that are no multiple of the kernel's rows, too."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    diffusers_compat.install()
    forward = attention_dispatch._native_attention_forward_op
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, queries, 3, 64, generator=generator).to("cuda", dtype)
    key, value = torch.randn(2, 2, 50, 3, 64, generator=generator).to("cuda", dtype)
    out, logsumexp = forward(
        None, query, key, value, return_lse=True, _save_ctx=False, _parallel_config=None
    )
    scores = torch.einsum("bqhd,bkhd->bhqk", query.double(), key.double()) * 64**-0.5
    expected = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value.double())
    assert logsumexp.shape == (2, queries, 3)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(
        logsumexp.double(), scores.logsumexp(-1).transpose(1, 2), rtol=0, atol=1e-3
    )
