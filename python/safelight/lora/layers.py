"""The layers of one component that adapters change: as they were made, or with adapters.

What peft puts in the place of a layer stands there only while an adapter is in force; otherwise the
layer itself does, so that a request without adapters runs the model as it was loaded, bits and
speed. Merged weights are other tensors, put in the place of the pristine ones, which are never
written to and stay on the device: to unmerge is to put them back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from safelight import log
from safelight.errors import GenerationFailed
from safelight.lora.room import Room
from safelight.parallel import diffusers_compat

logger = log.get(__name__)

Worn = tuple[tuple[str, float], ...]
"""Digest and scale of every adapter in force, in order."""

Weights = dict[str, nn.Parameter]
"""Of one layer, by name."""

WHOLE = (torch.float32, torch.bfloat16, torch.float16)
"""Precisions that weights can be merged in."""


@dataclass(eq=False)
class Layer:
    """One layer, and what peft puts in its place."""

    path: str
    parent: nn.Module
    attribute: str
    base: nn.Module
    tuner: Any
    placed: bool
    """Whether it is peft's that stands there."""
    _set: Worn | None = None
    """What peft's is set to; None where peft has set it, which activates what it loads."""

    def place(self, adapted: bool) -> None:
        """Put the one or the other there, with the hooks that split or gather a sequence there."""
        if adapted != self.placed:
            now, then = (self.tuner, self.base) if adapted else (self.base, self.tuner)
            diffusers_compat.hand_over(then, now)
            setattr(self.parent, self.attribute, now)
            self.placed = adapted

    def open(self) -> None:
        """Let peft load into it."""
        self.place(adapted=True)
        self._set = None

    def has(self, digests: Sequence[str]) -> bool:
        """Whether one of these adapters changes it."""
        return any(digest in self.tuner.scaling for digest in digests)

    def set(self, worn: Worn) -> None:
        if worn != self._set:
            # Not by `set_adapter`, which goes through all weights: 0.1 ms a layer, at every switch.
            self.tuner._active_adapter = [digest for digest, _ in worn]
            for digest, scale in worn:
                self.tuner.set_scale(digest, scale)
            self._set = worn

    def drop(self, digest: str) -> None:
        self.set(())
        self.tuner.delete_adapter(digest)

    @property
    def weights(self) -> Weights:
        """By name; those that are in force now."""
        return dict(self.base.named_parameters(recurse=False))

    def put(self, weights: Weights) -> None:
        for name, weight in weights.items():
            setattr(self.base, name, weight)

    def merged(self, worn: Worn) -> Weights:
        """Its weights with the adapters added; the pristine ones stay as they are."""
        pristine = self.weights
        copies = {name: nn.Parameter(one.clone(), False) for name, one in pristine.items()}
        self.set(worn)
        self.put(copies)
        try:
            self.tuner.merge(adapter_names=[d for d, _ in worn if self.has([d])])
            return self.weights
        finally:
            self.tuner.merged_adapters.clear()
            self.put(pristine)


class Unmergeable(GenerationFailed):
    """Weights that a merge would round once more."""

    code = "adapter_not_mergeable"


class Layers:
    """All layers of a component that any adapter changes."""

    def __init__(self, name: str, component: Any, room: Room) -> None:
        """`room`: of all components together."""
        self.name = name
        self.component = component
        self._room = room
        self.worn: Worn = ()
        """In force now."""
        self._layers: list[Layer] = []
        self._merged: list[tuple[Layer, Weights, Weights]] = []
        """Layers with their pristine and their merged weights."""
        self._merged_for: Worn = ()
        """What those were made for; one set is kept."""
        self._as_merged = False

    def count(self, digest: str) -> int:
        """Layers that an adapter changes."""
        return sum(layer.has([digest]) for layer in self._layers)

    # ---------------------------------------------------------------------------- what is in force

    def wear(self, worn: Worn, *, merged: bool = False) -> None:
        """From now on these adapters are in force, and no others. Raises `Unmergeable`, with none
        in force, where weights cannot be merged."""
        merged = merged and bool(worn)
        if worn == self.worn and merged == self._as_merged:
            return
        self._undress()
        if merged and self._can_merge(worn):
            self._put_merged(worn)
        else:
            for layer in self._touched(worn):
                layer.set(worn)
                layer.place(adapted=True)
        self.worn, self._as_merged = worn, merged

    def _undress(self) -> None:
        """The model as it was loaded."""
        if self._as_merged:
            for layer, pristine, _ in self._merged:
                layer.put(pristine)
        for layer in self._layers:
            layer.place(adapted=False)
        self.worn, self._as_merged = (), False

    # ---------------------------------------------------------------------------------- merging

    def _can_merge(self, worn: Worn) -> bool:
        """Whether there is room for merged weights beside the pristine ones."""
        touched = self._touched(worn)
        for layer in touched:
            for name, weight in layer.weights.items():
                if type(weight) is not nn.Parameter or weight.dtype not in WHOLE:
                    raise Unmergeable(
                        f"Adapters cannot be merged into {self.name}: {layer.path}.{name} is "
                        "quantized, and would be rounded again. Use them unmerged."
                    )
        if worn == self._merged_for:
            return True
        self._forget_merged()
        need = sum(w.nbytes for layer in touched for w in layer.weights.values())
        if need <= (room := self._room.left(self.component.device)):
            return True
        logger.warning("adapters run unmerged: no room", need=need, room=room, part=self.name)
        return False

    def _touched(self, worn: Worn) -> list[Layer]:
        digests = [digest for digest, _ in worn]
        return [layer for layer in self._layers if layer.has(digests)]

    def _put_merged(self, worn: Worn) -> None:
        if worn != self._merged_for:
            with torch.inference_mode(False), torch.no_grad():
                self._merged = [(one, one.weights, one.merged(worn)) for one in self._touched(worn)]
            self._merged_for = worn
        for layer, _, merged in self._merged:
            layer.put(merged)

    def forget_merged(self) -> None:
        """Give the memory of merged weights back, unless they are in force."""
        if not self._as_merged:
            self._forget_merged()

    def _forget_merged(self) -> None:
        self._merged, self._merged_for = [], ()

    # ------------------------------------------------------------------------- loading, dropping

    @contextmanager
    def opened(self, digest: str, expected: int) -> Iterator[None]:
        """Within it peft's layers stand in their places, and an adapter of so many may be added.

        If it fails, nothing of the adapter is left; either way, no adapter is in force afterwards.
        Raises `ValueError` where layers that it changes are not there.
        """
        self._undress()
        for layer in self._layers:
            layer.open()
        before = {module: dict(module._modules) for module in self.component.modules()}
        try:
            with _in_precision(self.component):
                yield
            added = self._added(before)
            found = self.count(digest) + sum(layer.has([digest]) for layer in added)
            if found < expected:
                raise ValueError(f"{self.name} lacks {expected - found} of its {expected} layers")
            self._layers += added
        except BaseException:
            self._roll_back(digest, before)
            raise
        finally:
            self._undress()

    def _added(self, before: Mapping[nn.Module, Mapping[str, nn.Module | None]]) -> list[Layer]:
        """The layers that now have adapters for the first time."""
        known = {layer.tuner for layer in self._layers}
        added = []
        for path, module in self.component.named_modules():
            if isinstance(module, BaseTunerLayer) and module not in known:
                tuner: Any = module
                above, _, attribute = path.rpartition(".")
                parent = self.component.get_submodule(above)
                base: nn.Module = tuner.get_base_layer()
                if before.get(parent, {}).get(attribute) is not base:
                    raise ValueError(f"it would replace {path}")
                tuner.eval()  # it may have dropout
                added.append(Layer(path, parent, attribute, base, tuner, placed=True))
        return added

    def _roll_back(
        self, digest: str, before: Mapping[nn.Module, Mapping[str, nn.Module | None]]
    ) -> None:
        for layer in self._layers:
            layer.drop(digest)
        for module, children in before.items():
            for name, child in children.items():
                if module._modules.get(name) is not child:
                    setattr(module, name, child)
        self._forget(digest)

    def drop(self, digest: str) -> None:
        """Forget an adapter. None is in force afterwards."""
        self._undress()
        if any(digest == one for one, _ in self._merged_for):
            self._forget_merged()
        for layer in self._layers:
            if layer.has([digest]):
                layer.drop(digest)
        self._layers = [layer for layer in self._layers if layer.tuner.scaling]
        self._forget(digest)

    def _forget(self, digest: str) -> None:
        """What the component itself has noted of it."""
        if "peft_config" in vars(self.component):
            self.component.peft_config.pop(digest, None)
            if not self.component.peft_config:
                del self.component.peft_config
                self.component._hf_peft_config_loaded = False


@contextmanager
def _in_precision(component: Any) -> Iterator[None]:
    """Within it layers whose weights are stored in float8 have others, without content, of the
    precision that they compute in: peft gives adapters that of the weights."""
    stored = [
        (module, weight)
        for module in component.modules()
        for name, weight in module.named_parameters(recurse=False)
        if name == "weight" and weight.is_floating_point() and weight.dtype.itemsize == 1
    ]
    for module, weight in stored:
        empty = torch.empty(1, dtype=component.dtype, device=weight.device)
        module.weight = nn.Parameter(empty.expand(weight.shape), False)
    try:
        yield
    finally:
        for module, weight in stored:
            module.weight = weight
