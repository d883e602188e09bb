"""The adapters of one loaded pipeline: loaded when first asked for, in force when told so."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from safelight.errors import GenerationFailed
from safelight.lora.files import CODE, check, explained, layers_of, unfit
from safelight.lora.kept import Kept, limit_of
from safelight.lora.layers import Layers, Worn
from safelight.lora.plain import loader_of
from safelight.lora.room import Room
from safelight.request import Adapter

ALL = "all"
"""The target of an adapter that changes whatever its file has weights for."""

SECOND = "transformer_2"
"""A second expert: files do not say for which of the two they are, and may be used for both."""

DENOISERS = ("transformer", SECOND, "unet")
"""Components that make the steps; others are part of what a prompt is encoded to."""


class Adapters:
    """Which adapters of a pipeline are in force. Starts with none."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._loader = loader_of(pipeline)
        names = () if self._loader is None else self._loader._lora_loadable_modules
        parts = {name: pipeline.components.get(name) for name in names}
        room = Room()
        self._parts = {
            name: Layers(name, part, room) for name, part in parts.items() if part is not None
        }
        self._loaded: dict[tuple[str, str], dict[str, int]] = {}
        """Layers by component, of what was loaded: by digest and how it was loaded."""
        self._kept = Kept()

    @property
    def of_prompts(self) -> tuple[tuple[str, Worn], ...]:
        """Those in force that change what prompts are encoded to."""
        return tuple(
            (name, part.worn)
            for name, part in self._parts.items()
            if part.worn and name not in DENOISERS
        )

    def wear(self, adapters: Sequence[Adapter], *, merged: bool = False) -> None:
        """From now on these are in force, and no others; `merged` into the weights of what makes
        the steps. Those that are not loaded are loaded.

        Raises `GenerationFailed` if one does not fit the model, which is then unharmed.
        """
        scales: dict[str, dict[str, float]] = {}
        needed = {adapter.digest for adapter in adapters}
        for adapter in adapters:
            for name in self.load(adapter, needed):
                of_part = scales.setdefault(name, {})
                of_part[adapter.digest] = of_part.get(adapter.digest, 0.0) + adapter.scale
        for name, part in self._parts.items():
            worn = tuple(scales.get(name, {}).items())
            part.wear(worn, merged=merged and name in DENOISERS)

    def load(self, adapter: Adapter, needed: Collection[str] = ()) -> dict[str, int]:
        """Load one if it is not; the layers it changes, by component that it is meant for.

        If something had to be loaded, no adapter is in force afterwards, and others may have been
        dropped for it, but none of the digests in `needed`. Raises `GenerationFailed` as `wear`.
        """
        self._check_target(adapter)
        layers: dict[str, int] = {}
        for way in self._ways(adapter.target):
            if (adapter.digest, way) not in self._loaded:
                self._loaded[adapter.digest, way] = self._load(adapter, way, needed)
            layers |= self._loaded[adapter.digest, way]
        self._kept.used(adapter.digest)
        if adapter.target == ALL:
            return layers
        if adapter.target not in layers:
            raise unfit(
                adapter, f"has no weights for {adapter.target}, but for {', '.join(layers)}."
            )
        return {adapter.target: layers[adapter.target]}

    def _check_target(self, adapter: Adapter) -> None:
        if not self._parts:
            kind = type(self._pipeline).__name__
            raise GenerationFailed(f"{kind} takes no adapters: diffusers loads none.", code=CODE)
        if adapter.target != ALL and adapter.target not in self._parts:
            raise unfit(
                adapter,
                f"is meant for {adapter.target}, which adapters of this model cannot change. Its "
                f"targets are: {', '.join([ALL, *self._parts])}.",
            )

    def _ways(self, target: str) -> list[str]:
        """How it is loaded for a target: for the second expert apart from the rest."""
        if SECOND not in self._parts:
            return [ALL]
        return [ALL, SECOND] if target == ALL else [SECOND if target == SECOND else ALL]

    def _load(self, adapter: Adapter, way: str, needed: Collection[str]) -> dict[str, int]:
        """The layers that it changes, by component; none of it is left if it fails."""
        check(adapter)
        self.wear(())
        first = {name: part.component for name, part in self._parts.items() if name != SECOND}
        wanted = layers_of(self._loader, adapter, first)
        self._make_room(adapter, needed)
        parts = [part for name, part in self._parts.items() if (name == SECOND) == (way == SECOND)]
        try:
            with ExitStack() as stack:
                stack.enter_context(explained(adapter))
                # What is loaded in inference mode could be changed in it alone.
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.no_grad())
                for part in parts:
                    expected = wanted.get("transformer" if part.name == SECOND else part.name, 0)
                    stack.enter_context(part.opened(adapter.digest, expected))
                self._read(adapter, way)
        except BaseException:
            self.drop(adapter.digest)  # of what had been loaded before the rest failed
            raise
        counts = {part.name: part.count(adapter.digest) for part in parts}
        return {name: count for name, count in counts.items() if count}

    def _make_room(self, adapter: Adapter, needed: Collection[str]) -> None:
        """Drop others that were not used for long, if it would be too many with this one."""
        nbytes = Path(adapter.path).stat().st_size
        limit = limit_of(next(iter(self._parts.values())).component.device)
        for digest in self._kept.superfluous(nbytes, limit, {*needed, adapter.digest}):
            self.drop(digest)
        self._kept.add(adapter.digest, nbytes)

    def _read(self, adapter: Adapter, way: str) -> None:
        second = {"load_into_transformer_2": True} if way == SECOND else {}
        with warnings.catch_warnings():
            # peft warns of every adapter after the first, and of one that is taken back.
            warnings.filterwarnings("ignore", "Already found a `peft_config`|Adapter .* deleted")
            self._loader.load_lora_weights(
                adapter.path,
                adapter_name=adapter.digest,
                use_safetensors=True,
                local_files_only=True,
                **second,
            )

    def forget_merged(self) -> None:
        """Give the memory of merged weights back, unless they are in force."""
        for part in self._parts.values():
            part.forget_merged()

    def drop(self, digest: str) -> None:
        """Forget an adapter; unknown ones are ignored."""
        for part in self._parts.values():
            part.drop(digest)
        self._kept.drop(digest)
        self._loaded = {key: value for key, value in self._loaded.items() if key[0] != digest}
