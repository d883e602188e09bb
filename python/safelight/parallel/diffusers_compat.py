"""Private corners of diffusers' context parallelism, mended in this one module.

Each mend says what upstream lacks, and has a test in `test_diffusers_compat.py` that fails once
upstream has it, so that the mend can go. Nothing is touched where one rank works alone: `install`
is called when a transformer is split, and what it replaces runs only under a `ParallelConfig`.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from diffusers.hooks import context_parallel as hooks
from diffusers.hooks.hooks import HookRegistry
from diffusers.models import attention_dispatch as attention
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig

from safelight.errors import GenerationFailed
from safelight.parallel.mesh import Mesh
from safelight.parallel.traffic import Traffic


@dataclass
class SequenceConfig(ContextParallelConfig):
    """diffusers' configuration of one split transformer, and what the mends need to know."""

    traffic: Traffic = field(default_factory=Traffic)
    """Where its collectives are counted."""
    masks_repeat: bool = False
    """As `SequencePlan.masks_repeat`."""

    @property
    def anything(self) -> bool:
        """Whether parts of different lengths are allowed for at present."""
        return self.ulysses_anything or self.ring_anything

    def admit(self, mask: torch.Tensor | None, key: torch.Tensor) -> torch.Tensor | None:
        """The mask as attention may have it; `key` is [batch, part of the sequence, heads, width].

        Raises `GenerationFailed` for masks that upstream would get silently wrong. Ranks get masks
        of the same kind, so it raises on all of them or on none, before they exchange anything.
        """
        if mask is None:
            return None
        if self.ring_degree > 1:
            raise GenerationFailed(
                "Ring attention does not rotate an attention mask with the keys; use Ulysses "
                "(--ring-degree 1), or prompts of one length in a batch."
            )
        if self.anything:
            raise GenerationFailed(
                f"A masked sequence does not divide into {self.ulysses_degree} equal parts "
                "(--ulysses-degree), and its mask would no longer fit the keys; choose a size and "
                "prompts whose tokens divide."
            )
        if self.masks_repeat and mask.ndim == 4:
            mask = mask[:, :1]
        if mask.shape[-1] != key.shape[1] or any(size != 1 for size in mask.shape[1:-1]):
            raise GenerationFailed(
                f"An attention mask of shape {list(mask.shape)} is not one row of this rank's "
                f"{key.shape[1]} keys, so it cannot be put together over the ranks."
            )
        return mask.contiguous()


def resolve(config: SequenceConfig, mesh: Mesh) -> ParallelConfig:
    """What `ModelMixin._resolve_parallel_config` makes of a configuration and a mesh.

    Upstream asks for the number of accelerators and divides by it: on the CPU it is zero. All ranks
    must call this together, as it makes process groups.
    """
    parallel = ParallelConfig(context_parallel_config=config)
    parallel.setup(mesh.rank, mesh.layout.group_size, mesh.device, mesh=mesh.axes)
    return parallel


def splits_sequences(processor: Any) -> bool:
    """Whether this attention processor can work on a split sequence, with the backend it uses.

    Those that cannot would attend to their own part alone, without a word: upstream skips the
    processors, and looks at the backend of the first one only.
    """
    if not hasattr(processor, "_parallel_config"):
        return False
    registry = attention._AttentionBackendRegistry
    backend = processor._attention_backend or registry.get_active_backend()[0]
    name = attention.AttentionBackendName(backend)
    return bool(registry._is_context_parallel_available(name))


# ------------------------------------------------------------------------------ the mends


def hand_over(old: torch.nn.Module, new: torch.nn.Module) -> None:
    """Let `new`, which takes the place of `old`, split and gather sequences as that did.

    diffusers has hooks for it on the modules themselves, so a layer that an adapter wraps would
    gather its own output, to which the adapter would add what it makes of one rank's part.
    """
    if "_diffusers_hook" not in vars(old):
        return
    registry = HookRegistry.check_if_exists_or_initialize(old)
    kinds = (hooks.ContextParallelSplitHook, hooks.ContextParallelGatherHook)
    for name, hook in list(registry.hooks.items()):
        if isinstance(hook, kinds):
            registry.remove_hook(name, recurse=False)
            HookRegistry.check_if_exists_or_initialize(new).register_hook(hook, name)


def _with_logsumexp(original: Callable[..., Any]) -> Callable[..., Any]:
    """Native attention that returns the log-sum-exp, which ring attention joins its parts with.

    Upstream raises `ValueError`, though torch's kernels compute it. Tensors are [batch, sequence,
    heads, width], the log-sum-exp [batch, sequence, heads] in float32. Forward only.
    """

    @functools.wraps(original)
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        return_lse: bool = False,
        **others: Any,
    ) -> Any:
        plain = (dropout_p, is_causal, scale, enable_gqa, return_lse)
        if not return_lse:
            return original(ctx, query, key, value, attn_mask, *plain, **others)
        if attn_mask is not None or enable_gqa:
            raise ValueError("The log-sum-exp is there for attention without mask and GQA only.")
        if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
            flash = attention._native_flash_attention_forward_op
            return flash(ctx, query, key, value, None, *plain, **{**others, "_save_ctx": False})
        heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
        if query.is_cuda:
            out, logsumexp, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
                *heads_first, None, True, dropout_p, is_causal, scale=scale
            )
            logsumexp = logsumexp[..., : query.shape[1]]  # the kernel rounds its rows up
        else:
            out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *heads_first, dropout_p, is_causal, scale=scale
            )
        return out.transpose(1, 2), logsumexp.transpose(1, 2)

    return forward


def _padded_gather(original: Callable[..., Any]) -> Callable[..., Any]:
    """Gathering parts of different lengths: padded, gathered, trimmed.

    Upstream gathers them as they are, which gloo refuses ("invalid tensor size").
    """

    @functools.wraps(original)
    def gather(tensor: torch.Tensor, dim: int, group: dist.ProcessGroup) -> torch.Tensor:
        dim %= tensor.ndim
        sizes = hooks.gather_size_by_comm(tensor.shape[dim], group)
        shape = list(tensor.shape)
        shape[dim] = max(sizes)
        padded = tensor.new_zeros(1, *shape)
        padded[0].narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
        parts = hooks.funcol.all_gather_tensor(padded, 0, group).unbind(0)
        trimmed = [part.narrow(dim, 0, size) for part, size in zip(parts, sizes, strict=True)]
        return torch.cat(trimmed, dim)

    return gather


def _guarded(original: Callable[..., Any]) -> Callable[..., Any]:
    """Attention over a split sequence that refuses the masks upstream gets silently wrong."""

    @functools.wraps(original)
    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *others: Any,
        _parallel_config: ParallelConfig,
        **named: Any,
    ) -> Any:
        config = _parallel_config.context_parallel_config
        if isinstance(config, SequenceConfig):
            attn_mask = config.admit(attn_mask, key)
        with _counting(config):
            return original(
                query, key, value, attn_mask, *others, _parallel_config=_parallel_config, **named
            )

    return attend


# ------------------------------------------------------------------------------ counting

_running: ContextVar[SequenceConfig | None] = ContextVar("running", default=None)
"""Whose collectives are being issued. A process group does not tell: meshes share them."""


def _counting(config: ContextParallelConfig) -> contextlib.AbstractContextManager[None]:
    """Count the collectives of a block, if it is one of our transformers that issues them.

    Not those of compiled code: counting would break its graph.
    """
    if torch.compiler.is_compiling() or not isinstance(config, SequenceConfig):
        return contextlib.nullcontext()
    return _counted(config)


@contextlib.contextmanager
def _counted(config: SequenceConfig) -> Iterator[None]:
    token = _running.set(config)
    try:
        yield
    finally:
        _running.reset(token)


def _count(
    kind: Callable[[Traffic, str, int, int], None],
    axis: str | None,
    nbytes: int,
    group: dist.ProcessGroup,
) -> None:
    """Without an axis it is the one there is: parts of different lengths exist with one only."""
    if torch.compiler.is_compiling() or (config := _running.get()) is None:
        return
    axis = axis or ("ulysses" if config.ulysses_degree > 1 else "ring")
    kind(config.traffic, axis, nbytes, dist.get_world_size(group))


def _counted_functional(gathers: str) -> types.ModuleType:
    """`_functional_collectives` with counting; `gathers` is the axis of its all-gathers."""
    counted = types.ModuleType(funcol.__name__)
    vars(counted).update(vars(funcol))

    def all_to_all_single(tensor: torch.Tensor, output: Any, given: Any, group: Any) -> Any:
        _count(Traffic.all_to_all, "ulysses", tensor.nbytes, group)
        return funcol.all_to_all_single(tensor, output, given, group)

    def all_gather_tensor(tensor: torch.Tensor, gather_dim: int, group: Any) -> Any:
        _count(Traffic.all_gather, gathers, tensor.nbytes, group)
        return funcol.all_gather_tensor(tensor, gather_dim, group)

    vars(counted).update(all_to_all_single=all_to_all_single, all_gather_tensor=all_gather_tensor)
    return counted


def _counted_distributed() -> types.ModuleType:
    """`torch.distributed` with counting: attention gathers its masks with it."""
    counted = types.ModuleType(dist.__name__)
    vars(counted).update(vars(dist))

    def all_gather(parts: list[torch.Tensor], tensor: torch.Tensor, group: Any) -> Any:
        _count(Traffic.all_gather, "ulysses", tensor.nbytes, group)
        return dist.all_gather(parts, tensor, group=group)

    vars(counted).update(all_gather=all_gather)
    return counted


def _counted_sizes(original: Callable[..., Any], axis: str | None) -> Callable[..., Any]:
    """The exchange of lengths before parts of different lengths: one int64 a rank."""

    @functools.wraps(original)
    def gather_size(size: int, group: Any) -> Any:
        _count(Traffic.all_gather, axis, torch.int64.itemsize, group)
        return original(size, group)

    return gather_size


def _counted_output(original: Callable[..., Any]) -> Callable[..., Any]:
    """The hook that gathers a module's output."""

    @functools.wraps(original)
    def post_forward(hook: Any, module: Any, output: Any) -> Any:
        with _counting(hook.parallel_config):
            return original(hook, module, output)

    return post_forward


@functools.cache
def install() -> None:
    """Put the mends in their places, once a process."""
    attend = attention._templated_context_parallel_attention
    attention._templated_context_parallel_attention = _guarded(attend)
    native = attention._native_attention_forward_op
    attention._native_attention_forward_op = _with_logsumexp(native)
    hooks._all_gather_anything = _padded_gather(hooks._all_gather_anything)

    attention.funcol = _counted_functional(gathers="ring")
    attention.dist = _counted_distributed()
    attention.gather_size_by_comm = _counted_sizes(attention.gather_size_by_comm, None)
    hooks.funcol = _counted_functional(gathers="sequence")
    hooks.gather_size_by_comm = _counted_sizes(hooks.gather_size_by_comm, "sequence")
    output = hooks.ContextParallelGatherHook
    output.post_forward = _counted_output(output.post_forward)
