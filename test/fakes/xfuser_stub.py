"""As much of xfuser 0.7.0 and yunchang 0.6.4 as `parallel.xfuser_backend` uses, for the CPU.

Names, signatures, layouts and the order of ranks are theirs; the attention is another, that gathers
all keys and values. What is asked of it is recorded in `CALLS`.
"""

from __future__ import annotations

import contextlib
import enum
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol

CALLS: list[str] = []
GROUPS = SimpleNamespace(ULYSSES_PG=None, RING_PG=None)


class AttentionBackendType(enum.Enum):
    SDPA = "SDPA"
    SDPA_FLASH = "SDPA with FLASH backend"


@dataclass
class xFuserArgs:
    data_parallel_degree: int = 1
    use_cfg_parallel: bool = False
    ulysses_degree: int | None = 1
    ring_degree: int | None = 1
    attention_backend: str | None = None

    def create_config(self) -> tuple[Any, Any]:
        return self, None


class RuntimeState:
    def __init__(self, config: xFuserArgs) -> None:
        CALLS.append(f"runtime state with {config.attention_backend}")


def init_distributed_environment(
    world_size: int = -1,
    rank: int = -1,
    distributed_init_method: str = "env://",
    local_rank: int = -1,
    backend: str | None = None,
) -> None:
    CALLS.append(f"device {local_rank}")


def initialize_model_parallel(
    data_parallel_degree: int = 1,
    classifier_free_guidance_degree: int = 1,
    sequence_parallel_degree: int | None = None,
    ulysses_degree: int = 1,
    ring_degree: int = 1,
    tensor_parallel_degree: int = 1,
    pipeline_parallel_degree: int = 1,
    fully_shard_degree: int = 1,
    vae_parallel_size: int = 0,
    use_parallel_vae: bool = False,
    backend: str | None = None,
) -> None:
    """Ulysses is the fastest axis, then ring; the others are the rest."""
    shape = (-1, ring_degree, ulysses_degree)
    ranks = torch.arange(dist.get_world_size()).reshape(shape)
    GROUPS.ULYSSES_PG, *_ = dist.new_subgroups_by_enumeration(
        ranks.reshape(-1, ulysses_degree).tolist()
    )
    GROUPS.RING_PG, *_ = dist.new_subgroups_by_enumeration(
        ranks.transpose(1, 2).reshape(-1, ring_degree).tolist()
    )


def misordered(ulysses_degree: int = 1, ring_degree: int = 1, **others: Any) -> None:
    """With ring for the fastest axis, as `use_ulysses_low=False` would have it."""
    initialize_model_parallel(ulysses_degree=ring_degree, ring_degree=ulysses_degree, **others)
    GROUPS.ULYSSES_PG, GROUPS.RING_PG = GROUPS.RING_PG, GROUPS.ULYSSES_PG


def USP(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    joint_query: torch.Tensor | None = None,
    joint_key: torch.Tensor | None = None,
    joint_value: torch.Tensor | None = None,
    joint_strategy: str | None = None,
    attn_layer: Any = None,
    combine_qkv_a2a: bool | None = None,
    backend: Any = None,
    attention_kwargs: dict[str, Any] | None = None,
    head_balance_layer: Any = None,
    kv_head_repeat: int = 1,
) -> torch.Tensor:
    """[batch, heads, part of the sequence, width] of this rank, as the queries."""
    CALLS.append(f"kernel {backend and backend.name}")
    for group in (GROUPS.ULYSSES_PG, GROUPS.RING_PG):
        key, value = (funcol.all_gather_tensor(t, 2, group) + 0 for t in (key, value))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value)


@contextlib.contextmanager
def installed(initialize: Any = initialize_model_parallel) -> Iterator[None]:
    """A block in which they can be imported."""
    CALLS.clear()
    runtime_state = SimpleNamespace(RuntimeState=RuntimeState)
    contents: dict[str, dict[str, Any]] = {
        "xfuser": {},
        "xfuser.config": {"xFuserArgs": xFuserArgs},
        "xfuser.core": {},
        "xfuser.core.distributed": {
            "init_distributed_environment": init_distributed_environment,
            "initialize_model_parallel": initialize,
            "runtime_state": runtime_state,
        },
        "xfuser.core.distributed.attention_backend": {"AttentionBackendType": AttentionBackendType},
        "xfuser.model_executor": {},
        "xfuser.model_executor.layers": {},
        "xfuser.model_executor.layers.usp": {"USP": USP},
        "yunchang": {},
        "yunchang.globals": {"PROCESS_GROUP": GROUPS},
    }
    modules = {name: ModuleType(name) for name in contents}
    for name, module in modules.items():
        vars(module).update(contents[name])
    with mock.patch.dict(sys.modules, modules):
        yield
