"""xfuser's attention over a split sequence (`--sequence-parallel-backend xfuser`).

diffusers' hooks split and gather the sequence as always. The attention between them is xfuser's
USP (Unified Sequence Parallelism): all-to-alls over `ulysses`, a ring over `ring`, and the kernel
that xfuser finds best on the device; flash-attn is used if it is there. xfuser's other attention,
`xFuserLongContextAttention`, is made for flash-attn and opts out of torch.compile.

Written against the source of xfuser 0.7.0 and yunchang 0.6.4; what is relied on is named where it
is. Its groups, runtime state and USP have run so over gloo on the CPU, with a CPU kernel put in the
place of its own; never on CUDA, for which `test/gpu/test_xfuser.py` is there. xfuser is imported by
`install` alone: it imports on machines with a device only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from diffusers.models import attention_dispatch as attention

from safelight.errors import ConfigError, GenerationFailed
from safelight.parallel import providers
from safelight.parallel.mesh import Mesh

RING_KERNEL = "SDPA_FLASH"
"""torch's flash attention: a ring needs the log-sum-exp, which not all kernels of xfuser return."""
EXACT_KERNEL = "SDPA"
"""For float32, which xfuser's own choices do not take."""


def available(device_type: str) -> str | None:
    """Why xfuser cannot be used on such a device, with what would do; None if it can."""
    if device_type != "cuda":
        return providers.refused(f"needs CUDA: the model runs on {device_type}")
    if not torch.cuda.is_available():
        return providers.refused("needs CUDA: torch sees no CUDA device")
    return providers.refusal("xfuser", device_type)


def require(device: torch.device) -> None:
    """Raises `ConfigError` where xfuser cannot be used."""
    if reason := available(device.type):
        raise ConfigError(reason, param="sequence_parallel_backend")


@dataclass
class UnifiedAttention:
    """What takes the place of diffusers' attention over a split sequence."""

    mesh: Mesh
    usp: Callable[..., torch.Tensor]
    """`xfuser.model_executor.layers.usp.USP`, on tensors [batch, heads, sequence, width]."""
    exact: Any
    """xfuser's name of `EXACT_KERNEL`."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        return_lse: bool = False,
        *,
        _parallel_config: Any,
        **operations: Any,
    ) -> torch.Tensor:
        """As `attention_dispatch._templated_context_parallel_attention`, without its `operations`.

        Tensors are this rank's [batch, part of the sequence, heads, width]. Raises
        `GenerationFailed`, before anything is exchanged, for what USP has no argument for or would
        ignore. Ranks call it with the same, so it raises on all of them or on none.
        """
        config = _parallel_config.context_parallel_config
        unsupported = {
            "takes no attention mask": attn_mask is not None,
            "takes no dropout": dropout_p != 0,
            "is not causal": is_causal,
            "scales by the width of a head alone": not _usual(scale, query.shape[-1]),
            "needs as many heads of keys as of queries": enable_gqa,
            "returns no log-sum-exp": return_lse,
            f"needs tokens that divide into {self.mesh.layout.sp} equal parts": (
                config.ulysses_anything or config.ring_anything
            ),
            "needs bf16 or fp16 where there is a ring": (
                self.mesh.layout.ring > 1 and query.dtype == torch.float32
            ),
        }
        for reason, applies in unsupported.items():
            if applies:
                raise GenerationFailed(
                    f"xfuser's attention {reason}; use --sequence-parallel-backend diffusers."
                )
        self._count(query, key, value)
        kernel = self.exact if query.dtype == torch.float32 else None
        heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return self.usp(*heads_first, backend=kernel).transpose(1, 2)

    def _count(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """What USP sends: it all goes through functions of its own, so it is not intercepted.

        torch's ring gathers the keys and values of all at once (`_AllGatherRotater`). Nothing is
        counted in compiled code, where counting would break the graph.
        """
        if torch.compiler.is_compiling():
            return
        layout, traffic = self.mesh.layout, self.mesh.traffic
        if layout.ulysses > 1:
            for tensor in (query, key, value, query):  # the output is as large as the queries
                traffic.all_to_all("ulysses", tensor.nbytes, layout.ulysses)
        if layout.ring > 1:
            traffic.all_gather("ring", key.nbytes + value.nbytes, layout.ring)


def _usual(scale: float | None, width: int) -> bool:
    """Whether this is the scale of attention that USP has, as it takes none."""
    return scale is None or math.isclose(scale, width**-0.5)


# ------------------------------------------------------------------------------ installing

_installed: UnifiedAttention | None = None


def install(mesh: Mesh) -> None:
    """Put xfuser's attention in the place of diffusers', for as long as the process lasts.

    All ranks must call it together, as it makes process groups. Called again it does nothing but
    count for the new mesh. Where one rank has the whole sequence it does nothing, and xfuser is not
    imported. Raises `ConfigError` if xfuser cannot be used, or not in this layout.
    """
    global _installed
    if mesh.layout.sp == 1:
        return
    if _installed is None:
        require(mesh.device)
        _installed = initialise(mesh)
        attention._templated_context_parallel_attention = _installed.attend
    elif _installed.mesh.layout != mesh.layout:
        raise ConfigError(
            "xfuser's process groups are made once in a process, for "
            f"{_installed.mesh.layout.flags()}: they cannot serve {mesh.layout.flags()}."
        )
    _installed.mesh = mesh


def initialise(mesh: Mesh) -> UnifiedAttention:
    """Import xfuser, make its groups and its runtime state over the ranks of `mesh`."""
    os.environ.setdefault("LOG_LEVEL", "warning")  # `xfuser.logger` prints from "debug" on
    try:
        from xfuser.core.distributed.attention_backend import AttentionBackendType
        from xfuser.model_executor.layers.usp import USP

        _set_up(mesh)
    except ImportError as failure:
        why = f"could not be imported: {failure}"
        raise ConfigError(providers.refused(why), param="sequence_parallel_backend") from failure
    return UnifiedAttention(mesh, USP, AttentionBackendType[EXACT_KERNEL])


def _set_up(mesh: Mesh) -> None:
    """xfuser's state is global in its modules: USP reads the degrees and the kernel from there."""
    from xfuser.config import xFuserArgs
    from xfuser.core.distributed import (
        init_distributed_environment,
        initialize_model_parallel,
        runtime_state,
    )

    layout = mesh.layout
    config, _ = xFuserArgs(
        data_parallel_degree=layout.spare,
        use_cfg_parallel=layout.cfg > 1,
        ulysses_degree=layout.ulysses,
        ring_degree=layout.ring,
        attention_backend=RING_KERNEL if layout.ring > 1 else None,
    ).create_config()
    # The default group is there, so this only wraps it; it also makes `local_rank` the device.
    index = mesh.device.index
    init_distributed_environment(local_rank=torch.cuda.current_device() if index is None else index)
    # `RankGenerator` is given "tp-sp-pp-cfg-dp", the fastest first: our spare × cfg × sp, with
    # `spare` for its dp. Within sp, `yunchang.globals.set_seq_parallel_pg` puts ulysses first.
    initialize_model_parallel(
        data_parallel_degree=layout.spare,
        classifier_free_guidance_degree=layout.cfg,
        sequence_parallel_degree=layout.sp,
        ulysses_degree=layout.ulysses,
        ring_degree=layout.ring,
    )
    _check_groups(mesh)
    # `initialize_runtime_state` wants a pipeline, or makes a state for one rank alone.
    runtime_state._RUNTIME = runtime_state.RuntimeState(config)


def _check_groups(mesh: Mesh) -> None:
    """Raises `ConfigError` unless xfuser's groups have the ranks of ours, in the same order."""
    from yunchang.globals import PROCESS_GROUP

    for axis, group in (("ulysses", PROCESS_GROUP.ULYSSES_PG), ("ring", PROCESS_GROUP.RING_PG)):
        ours, theirs = (dist.get_process_group_ranks(g) for g in (mesh.group(axis), group))
        if ours != theirs:
            raise ConfigError(
                providers.refused(f"orders ranks otherwise: {axis} {theirs} instead of {ours}"),
                param="sequence_parallel_backend",
            )
