"""Loading and unloading models at run time: `residency` decides, this carries it out.

The scheduler drains a model, the supervisor starts and ends its worker groups.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

from safelight import host, log
from safelight.config import EngineConfig
from safelight.errors import ConfigError, ModelNotFound, Unavailable
from safelight.manager.residency import Model, Residency, Standing, Verb
from safelight.models.footprint import footprint
from safelight.parallel.layout import complete
from safelight.wire.messages import Drain, LoadModel, ModelState, UnloadModel

logger = log.get(__name__)

Send = Callable[[Drain | LoadModel | UnloadModel], Awaitable[None]]
_SAYING: Mapping[Verb, type[Drain | LoadModel | UnloadModel]] = {
    Verb.DRAIN: Drain,
    Verb.LOAD: LoadModel,
    Verb.UNLOAD: UnloadModel,
}
_SPARE = 0.1
"""Share of the memory that stays free of weights: activations, and everybody else on the host."""


class Models:
    """The models of an engine, as the manager keeps them loaded."""

    def __init__(self, config: EngineConfig, send: Send) -> None:
        self._config = config
        self._send = send
        self._changed = asyncio.Condition()
        several = len(config.entries) > 1
        self._residency = Residency(
            (
                Model(e.name, weights_of(config.of(e.name)) if several else 0)
                for e in config.entries
            ),
            most=config.models.max_loaded_models,
            room=self._room if several else lambda: None,
        )

    def standing(self, name: str) -> Standing:
        """Where a model stands."""
        return self._model(name).standing

    @property
    def idle(self) -> bool:
        """Whether none is loaded, or should be."""
        return all(m.standing is Standing.UNLOADED for m in self._residency.models.values())

    async def start(self) -> None:
        """Ask for those that are loaded from the start; they may be there already. If this is not
        the first manager, they may have made room for others."""
        for name in self._config.at_start:
            self._model(name).standing = Standing.LOADING
            await self._send(LoadModel(model=name, wanted=False))

    async def repeat(self) -> None:
        """The scheduler has forgotten what it was told."""
        for name in self._residency.draining():
            await self._send(Drain(model=name))

    async def want(self, name: str) -> None:
        """A request for it was accepted."""
        await self._do(self._residency.want(name, time.monotonic()))

    async def load(self, name: str) -> None:
        """Have it loaded; returns when it serves. Raises `ModelNotFound`, or `Unavailable` with the
        reason if it cannot be loaded, or was unloaded first."""
        model = self._model(name)
        await self.want(name)
        async with self._changed:
            await self._changed.wait_for(
                lambda: model.standing in (Standing.LOADED, Standing.FAILED) or _given_up(model)
            )
        if model.standing is Standing.FAILED:
            text = f"The model {name} could not be loaded: {model.detail}"
            raise Unavailable(text, code="model_load_failed")
        if model.standing is Standing.UNLOADED:
            raise Unavailable(f"The model {name} was unloaded before it was loaded.")

    async def unload(self, name: str) -> None:
        """Have it unloaded once what was accepted for it is done; returns when it is gone. The next
        request for it loads it again."""
        model = self._model(name)
        await self._do(self._residency.unload(name))
        async with self._changed:
            await self._changed.wait_for(
                lambda: model.standing not in (Standing.DRAINING, Standing.UNLOADING)
            )

    async def serves(self, name: str) -> None:
        """A worker group of it is ready."""
        if name in self._residency.models:
            await self._do(self._residency.loaded(name))

    async def drained(self, name: str) -> None:
        """The scheduler has nothing of it any more."""
        await self._do(self._residency.drained(name))

    async def hear(self, message: ModelState) -> None:
        """What the supervisor did."""
        match message.state:
            case "loaded":
                await self._do(self._residency.loaded(message.model))
            case "unloaded":
                await self._do(self._residency.gone(message.model))
            case "failed":
                logger.warning("not loaded", model=message.model, reason=message.detail)
                await self._do(self._residency.failed(message.model, message.detail))

    def _model(self, name: str) -> Model:
        if name not in self._residency.models:
            raise ModelNotFound(f"The model '{name}' does not exist.")
        return self._residency.models[name]

    async def _do(self, verbs: Iterable[tuple[Verb, str]]) -> None:
        for verb, name in verbs:
            await self._send(_SAYING[verb](model=name))
        async with self._changed:
            self._changed.notify_all()

    def _room(self) -> int | None:
        """Bytes of weights that still fit."""
        limit = self._config.models.model_memory_gib
        if limit is not None:
            present = (Standing.LOADED, Standing.DRAINING, Standing.UNLOADING)
            held = sum(m.nbytes for m in self._residency.models.values() if m.standing in present)
            return int(limit * 2**30) - held
        if any(entry.model.device != "cpu" for entry in self._config.entries):
            return None  # of GPUs only the ranks know; without a limit all models are taken to fit
        return int((1 - _SPARE) * host.available_memory())


def check_memory(config: EngineConfig) -> None:
    """Raise `ConfigError` if what is loaded at the start is more than may be loaded at once."""
    limit = config.models.model_memory_gib
    if limit is None:
        return
    needed = sum(weights_of(config.of(name)) for name in config.at_start) / 2**30
    if needed > limit:
        raise ConfigError(
            f"The models loaded at the start have {needed:.3g} GiB of weights, --model-memory-gib "
            f"is {limit:g}: give some of them 'load: false', or lower --max-loaded-models.",
            param="model_memory_gib",
        )


def _given_up(model: Model) -> bool:
    """Whether it is unloaded, and nobody waits for it any more."""
    return model.standing is Standing.UNLOADED and model.wanted is None


def weights_of(config: EngineConfig) -> int:
    """Bytes of a model's weights on all ranks together."""
    layout = complete(config.parallel)
    one = footprint(config, layout, cuda=config.model.device == "cuda")
    return sum(one.weights.values()) * layout.num_gpus
