"""xfuser as the provider of attention: refused with the reason, imported only if chosen, and given
what it expects. With a stub in its place: it does not import without a CUDA device."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch as attention

from fakes import xfuser_work
from fakes.ranks import RankPool
from safelight.errors import ConfigError, GenerationFailed
from safelight.parallel import providers, xfuser_backend
from safelight.parallel.layout import Layout
from safelight.parallel.mesh import Mesh
from safelight.parallel.volume import Forward, sent
from safelight.parallel.xfuser_backend import UnifiedAttention

CPU = torch.device("cpu")
FLAG = "--sequence-parallel-backend"
INSTEAD = f"; use {FLAG} diffusers."
EVEN = SimpleNamespace(
    context_parallel_config=SimpleNamespace(ulysses_anything=False, ring_anything=False)
)


def have(monkeypatch: pytest.MonkeyPatch, xfuser: str | None, triton: bool = True) -> None:
    """Pretend that these are installed."""

    def version(name: str) -> str:
        if xfuser is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return {"xfuser": xfuser}[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if triton else None)


# --------------------------------------------------------------------------------------- refusals


def test_on_the_cpu_it_is_refused_whatever_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, "0.7.0")
    assert providers.refusal("xfuser", "cpu") == (
        f"{FLAG} xfuser needs CUDA: it does not run with --device cpu{INSTEAD}"
    )


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("xfuser", "triton", "why"),
    [
        (None, True, "needs its package, which is not installed"),
        ("0.6.0", True, "needs xfuser 0.7, and 0.6.0 is installed"),
        ("0.8.1", True, "needs xfuser 0.7, and 0.8.1 is installed"),
        ("1.7.0", True, "needs xfuser 0.7, and 1.7.0 is installed"),
        ("0.7.0", False, "needs Triton, which xfuser does not install"),
    ],
)
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, device: str, xfuser: str | None, triton: bool, why: str
) -> None:
    have(monkeypatch, xfuser, triton)
    expected = f"{FLAG} xfuser {why}: pip install 'safelight[xfuser]'{INSTEAD}"
    assert providers.refusal("xfuser", device) == expected


@pytest.mark.parametrize("version", ["0.7.0", "0.7.3.post1"])
def test_where_all_is_there_it_may_be(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    have(monkeypatch, version)
    assert [providers.refusal("xfuser", device) for device in ("auto", "cuda")] == [None, None]


def test_diffusers_may_be_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, None, triton=False)
    assert [providers.refusal("diffusers", d) for d in ("auto", "cpu", "cuda")] == [None] * 3


def test_a_device_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, "0.7.0")
    for found in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        assert xfuser_backend.available("cpu") == (
            f"{FLAG} xfuser needs CUDA: the model runs on cpu{INSTEAD}"
        )
        assert xfuser_backend.available("cuda") == (
            None if found else f"{FLAG} xfuser needs CUDA: torch sees no CUDA device{INSTEAD}"
        )
    have(monkeypatch, None)
    assert "package" in str(xfuser_backend.available("cuda"))


def test_it_is_not_installed_where_it_cannot_be_used() -> None:
    before = attention._templated_context_parallel_attention
    with pytest.raises(ConfigError, match="needs CUDA") as refused:
        xfuser_backend.install(Mesh(Layout(ulysses=2), 0, CPU))
    assert refused.value.param == "sequence_parallel_backend"
    assert attention._templated_context_parallel_attention is before


def test_a_failing_import_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "warning")
    monkeypatch.setitem(sys.modules, "xfuser", None)
    with pytest.raises(ConfigError, match=r"could not be imported: .*xfuser"):
        xfuser_backend.initialise(Mesh(Layout(ulysses=2), 0, CPU))


# ---------------------------------------------------------------------------------------- imports


@pytest.mark.parametrize(
    ("script", "heavy"),
    [
        ("from safelight.parallel.providers import refusal; refusal('xfuser', 'cuda')", False),
        (
            "import torch\n"
            "from safelight.parallel import diffusers_compat, xfuser_backend\n"
            "from safelight.parallel.mesh import Mesh\n"
            "diffusers_compat.install()\n"
            "xfuser_backend.available('cuda')\n"
            "xfuser_backend.install(Mesh.single(torch.device('cpu')))",
            True,
        ),
    ],
)
def test_xfuser_is_not_looked_for_unless_it_is_chosen(script: str, heavy: bool) -> None:
    """In a fresh interpreter, where it may be installed or not."""
    spy = (
        "import sys\n"
        "class Spy:\n"
        "    def find_spec(self, name, *others):\n"
        "        if name in ('xfuser', 'yunchang'): print('looked for', name)\n"
        "sys.meta_path.insert(0, Spy())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{spy}{script}\nprint('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.split("\n"), done.returncode) == ([str(heavy), ""], 0), done.stderr


# ---------------------------------------------------------------------------------------- routing


def recorder(calls: list[Any]) -> Any:
    """A USP whose output is its queries, negative."""

    def usp(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, backend: Any) -> Any:
        calls.append((query, key, value, backend))
        return -query

    return usp


def unified(layout: Layout, calls: list[Any]) -> UnifiedAttention:
    return UnifiedAttention(Mesh(layout, 0, CPU), recorder(calls), "exact")


@pytest.mark.parametrize(("dtype", "kernel"), [(torch.bfloat16, None), (torch.float32, "exact")])
def test_usp_has_the_heads_first(dtype: torch.dtype, kernel: str | None) -> None:
    calls: list[Any] = []
    tensors = [torch.randn(2, 6, 4, 8, dtype=dtype) for _ in range(3)]
    out = unified(Layout(ulysses=2), calls).attend(*tensors, _parallel_config=EVEN)
    (*given, backend), *more = calls
    assert (backend, more) == (kernel, [])
    for tensor, heads_first in zip(tensors, given, strict=True):
        assert torch.equal(heads_first, tensor.permute(0, 2, 1, 3))
    assert torch.equal(out, -tensors[0])


@pytest.mark.parametrize(
    "layout", [Layout(ulysses=4), Layout(ring=3), Layout(cfg=2, ring=2, ulysses=2)]
)
def test_what_it_sends_is_what_follows_from_the_shapes(layout: Layout) -> None:
    attend = unified(layout, [])
    part = torch.zeros(2, 12 // layout.sp, 4, 8, dtype=torch.bfloat16)
    attend.attend(part, part, part, _parallel_config=EVEN)
    forward = Forward(batch=2, tokens=12, layers=1, hidden=32, outputs=0)
    assert attend.mesh.traffic.take() == sent(layout, forward)


@pytest.mark.parametrize(
    ("layout", "changes", "why"),
    [
        (Layout(ulysses=2), {"attn_mask": torch.ones(1, 1, 1, 8)}, "takes no attention mask"),
        (Layout(ulysses=2), {"dropout_p": 0.1}, "takes no dropout"),
        (Layout(ulysses=2), {"is_causal": True}, "is not causal"),
        (Layout(ulysses=2), {"scale": 1.0}, "scales by the width of a head alone"),
        (Layout(ulysses=2), {"enable_gqa": True}, "needs as many heads of keys as of queries"),
        (Layout(ulysses=2), {"return_lse": True}, "returns no log-sum-exp"),
        (Layout(ulysses=2), {"uneven": "ulysses"}, "needs tokens that divide into 2 equal parts"),
        (Layout(ring=3), {"uneven": "ring"}, "needs tokens that divide into 3 equal parts"),
        (Layout(ring=2), {}, "needs bf16 or fp16 where there is a ring"),
    ],
)
def test_what_usp_cannot_do_is_refused_before_anything_is_sent(
    layout: Layout, changes: dict[str, Any], why: str
) -> None:
    calls: list[Any] = []
    attend = unified(layout, calls)
    uneven = changes.pop("uneven", None)
    parts = SimpleNamespace(ulysses_anything=uneven == "ulysses", ring_anything=uneven == "ring")
    config = SimpleNamespace(context_parallel_config=parts)
    part = torch.zeros(1, 4, 2, 8)
    with pytest.raises(GenerationFailed) as refused:
        attend.attend(part, part, part, **changes, _parallel_config=config)
    assert str(refused.value) == f"xfuser's attention {why}{INSTEAD}"
    assert (calls, attend.mesh.traffic.collectives) == ([], 0)


def test_the_usual_scale_may_be_given() -> None:
    calls: list[Any] = []
    part = torch.zeros(1, 4, 2, 64)
    unified(Layout(ulysses=2), calls).attend(part, part, part, scale=0.125, _parallel_config=EVEN)
    assert len(calls) == 1


def test_one_rank_alone_is_left_to_diffusers() -> None:
    before = attention._templated_context_parallel_attention
    for layout in (Layout(), Layout(cfg=2), Layout(spare=2)):
        xfuser_backend.install(Mesh(layout, 0, CPU))
    assert attention._templated_context_parallel_attention is before


def test_installing_again_counts_for_the_new_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def initialise(mesh: Mesh) -> UnifiedAttention:
        made.append(mesh)
        return UnifiedAttention(mesh, recorder([]), "exact")

    monkeypatch.setattr(xfuser_backend, "require", lambda device: None)
    monkeypatch.setattr(xfuser_backend, "initialise", initialise)
    monkeypatch.setattr(xfuser_backend, "_installed", None)
    monkeypatch.setattr(attention, "_templated_context_parallel_attention", None)
    first, second = (Mesh(Layout(ulysses=2), 0, CPU) for _ in range(2))
    xfuser_backend.install(first)
    routed = attention._templated_context_parallel_attention
    xfuser_backend.install(second)
    assert attention._templated_context_parallel_attention is routed
    part = torch.zeros(1, 4, 2, 8)
    routed(part, part, part, _parallel_config=EVEN)
    assert (made, first.traffic.collectives, second.traffic.collectives) == ([first], 0, 4)
    with pytest.raises(ConfigError, match="--ring-degree 1: they cannot serve"):
        xfuser_backend.install(Mesh(Layout(ring=2), 0, CPU))


# ------------------------------------------------------------------------------------- real ranks


@pytest.mark.parametrize(
    ("layout", "dtype", "kernels"),
    [
        (
            Layout(ring=2, ulysses=2),
            torch.bfloat16,
            ["runtime state with SDPA_FLASH", "kernel None"],
        ),
        (Layout(cfg=2, ulysses=2), torch.float32, ["runtime state with None", "kernel SDPA"]),
        (Layout(spare=2, ulysses=2), torch.bfloat16, ["runtime state with None", "kernel None"]),
    ],
)
def test_ranks_attend_to_the_whole_sequence(
    four_ranks: RankPool, layout: Layout, dtype: torch.dtype, kernels: list[str]
) -> None:
    forward = Forward(
        batch=xfuser_work.BATCH,
        tokens=xfuser_work.TOKENS,
        layers=1,
        hidden=xfuser_work.HEADS * xfuser_work.WIDTH,
        outputs=0,
        itemsize=dtype.itemsize,
    )
    for outcome in four_ranks.run(xfuser_work.on_cpu, layout, dtype):
        assert outcome.difference < (1e-2 if dtype == torch.bfloat16 else 1e-6)
        assert outcome.sent == sent(layout, forward)
        assert outcome.calls == ["device 0", *kernels]


def test_groups_in_another_order_are_refused(four_ranks: RankPool) -> None:
    refused = four_ranks.run(xfuser_work.misordered, Layout(ring=2, ulysses=2))
    assert [f"{FLAG} xfuser orders ranks otherwise: ulysses" in text for text in refused] == [
        True
    ] * 4
