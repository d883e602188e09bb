"""Sequence parallelism in the transformer: Ulysses, ring or both, as diffusers has them.

Every rank of a sequence group runs the same forward with its part of the tokens; attention
exchanges heads (Ulysses) or keys and values (ring), and the output is gathered, so that all ranks
return all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention, MochiAttention

from safelight.errors import ConfigError, GenerationFailed
from safelight.parallel import diffusers_compat
from safelight.parallel.diffusers_compat import SequenceConfig
from safelight.parallel.mesh import Mesh
from safelight.parallel.plan import Gather, SequencePlan, Splits

ATTENTION = (Attention, MochiAttention, AttentionModuleMixin)


class SequenceParallel:
    """A transformer whose sequence is split, or is not, over the ranks of a mesh."""

    def __init__(self, config: SequenceConfig | None) -> None:
        self._config = config

    @classmethod
    def apply(
        cls, transformer: Any, mesh: Mesh, plan: SequencePlan | None = None
    ) -> SequenceParallel:
        """Split the sequence of `transformer` (a diffusers model) as the layout of `mesh` says.

        Without a plan, as diffusers' own for its class. All ranks must call it together, after
        adapters and step caches are attached and before offloading and compiling. Where one rank
        has the whole sequence nothing is changed. Raises `ConfigError`, with nothing changed, if
        the transformer cannot be split so.
        """
        layout = mesh.layout
        if layout.sp == 1:
            return cls(None)
        plan = plan or SequencePlan()
        modules = _modules(transformer, plan)
        attentions = list(_attentions(transformer, plan))
        _check(transformer, attentions, layout.ulysses)
        diffusers_compat.install()
        config = SequenceConfig(
            ring_degree=layout.ring,
            ulysses_degree=layout.ulysses,
            traffic=mesh.traffic,
            masks_repeat=plan.masks_repeat,
        )
        parallel = diffusers_compat.resolve(config, mesh)
        transformer._parallel_config = parallel
        for module in attentions:
            module.processor._parallel_config = parallel
        apply_context_parallel(transformer, config, modules)
        return cls(config)

    @property
    def ranks(self) -> int:
        """That share one sequence."""
        return 1 if self._config is None else self._config.ring_degree * self._config.ulysses_degree

    def prepare(self, *lengths: int) -> None:
        """Say how many tokens the next forwards have: one number a sequence that is split.

        Those are the image tokens, and the text tokens where the transformer's plan splits them
        too. Must be called before a forward whose numbers differ from the last one's; what
        it does depends on them alone. Raises `GenerationFailed`, on every rank alike, for numbers
        that the ranks cannot share.
        """
        config = self._config
        if config is None:
            return
        uneven = [length for length in lengths if length % self.ranks]
        if min(lengths) < self.ranks:
            raise GenerationFailed(f"{self.ranks} ranks cannot share {min(lengths)} tokens.")
        if uneven and config.ring_degree > 1 and config.ulysses_degree > 1:
            raise GenerationFailed(
                f"{uneven[0]} tokens do not divide into {self.ranks} equal parts, which ring "
                f"({config.ring_degree}) and Ulysses ({config.ulysses_degree}) together need; "
                "either alone does without."
            )
        config.ulysses_anything = bool(uneven) and config.ulysses_degree > 1
        config.ring_anything = bool(uneven) and config.ring_degree > 1


def _attentions(transformer: Any, plan: SequencePlan) -> Iterator[Any]:
    """The attention modules that work on the split sequence."""
    prefixes = tuple(f"{name}." for name in plan.attention) or ("",)
    for name, module in transformer.named_modules():
        if isinstance(module, ATTENTION) and name.startswith(prefixes):
            yield module


def _check(transformer: Any, attentions: list[Any], ulysses: int) -> None:
    name = type(transformer).__name__
    if transformer._parallel_config is not None:
        raise ConfigError(f"This {name} has been made parallel before.")
    if not attentions:
        raise ConfigError(f"No attention of {name} is known to work on a split sequence.")
    for module in attentions:
        if not diffusers_compat.splits_sequences(module.processor):
            raise ConfigError(
                f"{type(module.processor).__name__} of {name}, or the attention backend it uses, "
                "cannot work on a split sequence; use --ulysses-degree 1 --ring-degree 1."
            )
        if module.heads % ulysses:
            raise ConfigError(
                f"--ulysses-degree {ulysses} cannot share out the {module.heads} attention heads "
                f"of {name} evenly."
            )


def _modules(transformer: Any, plan: SequencePlan) -> Mapping[str, Any]:
    """The plan in diffusers' words."""
    if plan.modules is not None:
        return {name: _translated(action) for name, action in plan.modules.items()}
    if transformer._cp_plan is None:
        raise ConfigError(
            f"{type(transformer).__name__} has no plan for sequence parallelism; use "
            "--ulysses-degree 1 --ring-degree 1."
        )
    upstream: Mapping[str, Any] = transformer._cp_plan
    return upstream


def _translated(action: Splits | Gather) -> Any:
    if isinstance(action, Gather):
        return ContextParallelOutput(gather_dim=action.dim)
    return {name: ContextParallelInput(split_dim=split.dim) for name, split in action.items()}
