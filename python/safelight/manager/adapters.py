"""The adapters (LoRA) of an engine: the catalog, what is in force for each model, and the files.

Requests name adapters of the catalog: those of `--lora-dir`, and those that an administrator
registered. What is in force is manager state that is copied into a request when it is accepted, as
are the digests of the files; so a change never touches an accepted request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from safelight import log
from safelight.config import EngineConfig
from safelight.errors import ConfigError, InvalidRequest, NotFound, RequestError, Unavailable
from safelight.manager import adapter_files, wanted
from safelight.manager.adaptable import Adaptable, adaptable
from safelight.manager.catalog import CatalogDirectory
from safelight.manager.database import Database
from safelight.manager.shelf import Held, Shelf
from safelight.manager.trying import Send, Trying
from safelight.models import hub
from safelight.request import Adapter, GenerationRequest
from safelight.store.adapters import AdapterStore, Catalog, Choice, Registered
from safelight.wire.messages import ForgetAdapters

V = TypeVar("V")

logger = log.get(__name__)
_NOTHING = Choice(adapters=(), on=False)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter as an administrator asks for it."""

    adapter: Adapter
    path: str | None = None
    """Where it is: a file, a directory, a hub id. Without one its name must be known."""
    file: str | None = None
    """Which file of a directory or repository."""


class Adapters:
    """Belongs to the manager's event loop."""

    def __init__(
        self, config: EngineConfig, send: Send, in_use: Callable[[], Iterable[Adapter]]
    ) -> None:
        """`in_use` are the adapters of unfinished jobs."""
        self.store = AdapterStore(config.data_path / "adapters")
        self.trying = Trying(send)
        self._shelf = Shelf(self.store)
        self._config = config
        self._send = send
        self._in_use = in_use
        self._directory = CatalogDirectory(config.lora.lora_dir, self._shelf)
        self._catalog = Catalog()
        self._models: dict[str, Adaptable] = {}
        self._untried: set[str] = set()
        self._changing = asyncio.Lock()

    async def start(self, db: Database) -> None:
        """Read the catalog, and put in force what the command line says. Raises `ConfigError`."""
        self._catalog = await self._shelf.open(db)
        try:
            await self._directory.names()
            await self._start_with()
        except (RequestError, Unavailable) as failure:
            raise ConfigError(failure.message, param="lora_path") from failure
        self._untried = {model for model, one in self._catalog.chosen.items() if one.on}

    # ---------------------------------------------------------------------------- what requests do

    @asynccontextmanager
    async def frozen(self, request: GenerationRequest) -> AsyncIterator[GenerationRequest]:
        """The request with the adapters that it gets, whose files stay at least as long as this is
        entered. Raises `NotFound` or `InvalidRequest`."""
        with self._shelf.holding() as held:
            if request.adapters == wanted.IN_FORCE:
                choice = self._catalog.chosen.get(request.model, _NOTHING)
                adapters, merged = choice.in_force, choice.on and choice.merged
                held.update(one.digest for one in adapters)
            else:
                merged = False
                adapters = tuple([await self._known(request, a, held) for a in request.adapters])
                wanted.check_distinct(adapters, param="lora")
            yield msgspec.structs.replace(request, adapters=adapters, merged=merged)

    async def _known(self, request: GenerationRequest, adapter: Adapter, held: Held) -> Adapter:
        """An adapter of a request, with the digest of its file."""
        self._model(request.model).check(adapter, param="lora")
        name = adapter.name
        if adapter.path not in ("", name, self._source(name)):
            if await self._find(adapter.path, held) is None:
                raise InvalidRequest(
                    "'lora' gives a path; a request names an adapter of this server. Leave the "
                    f"path out: {await self._said()}",
                    param="lora",
                )
            name = adapter.path
        digest = await self._find(name, held)
        if digest is None:
            raise await self._unknown(name, param="lora")
        known = msgspec.structs.replace(adapter, name=name, digest=digest, path="")
        if not self.trying.fits(request.model, known):
            await self._load(request.model, known, param="lora")
        return known

    async def _find(self, name: str, held: Held) -> str | None:
        """The digest of an adapter of the catalog, whose file is there then; None: no such."""
        if (entry := self._catalog.registered.get(name)) is not None:
            held.add(entry.digest)
            return entry.digest
        return await self._directory.digest(name, held)

    # ---------------------------------------------------------------------- what administrators do

    async def put(self, model: str, asked: Sequence[Asked]) -> Choice:
        """Put these adapters in force for later requests of a model, merged unless that cannot be
        or is switched off; returns when all ranks have them.

        Raises `NotFound`, `InvalidRequest` or `Unavailable`, and then nothing has changed.
        """
        able = self._model(model)
        for one in asked:
            able.check(one.adapter, param="target")
        async with self._changing:
            with self._shelf.holding() as held:
                try:
                    choice = await self._put(model, asked, held)
                finally:
                    held.clear()
                    await self.sweep()
        return choice

    async def _put(self, model: str, asked: Sequence[Asked], held: Held) -> Choice:
        registered = dict(self._catalog.registered)
        adapters = []
        for one in asked:
            digest, entry = await self._file_of(one, held)
            adapters.append(msgspec.structs.replace(one.adapter, digest=digest))
            if entry is not None:
                registered[one.adapter.name] = entry
        wanted.check_distinct(adapters, param="lora_nickname")
        for adapter in adapters:
            await self._load(model, adapter, param="lora_path")
        choice = Choice(adapters=tuple(adapters), merged=bool(adapters) and self._merges(model))
        await self._commit(registered=registered, chosen={**self._catalog.chosen, model: choice})
        return choice

    async def _file_of(self, one: Asked, held: Held) -> tuple[str, Registered | None]:
        """The digest of its file, and its entry if it is new in the catalog."""
        name, path = one.adapter.name, one.path
        known = self._catalog.registered.get(name)
        if path is None or (known is not None and known.source == path and one.file is None):
            if (digest := await self._find(name, held)) is not None:
                return digest, None
            path = path or name
            if path == name and not (hub.is_id(name) or await asyncio.to_thread(_exists, name)):
                raise await self._unknown(name, param="lora_nickname")
        file = await asyncio.to_thread(adapter_files.locate, path, one.file)
        digest = await self._shelf.bring(file, held, param="lora_path")
        return digest, Registered(source=path, digest=digest)

    async def merge(self, model: str, target: str, strength: float | None) -> Choice:
        """Have what was set merged into the weights for later requests; with a strength, at that.

        What had been unmerged is in force again, in the target. Raises `InvalidRequest`.
        """
        able = self._model(model)
        able.check_able()
        able.check_target(target, param="target")
        if able.unmergeable is not None:
            raise InvalidRequest(able.unmergeable, code="unsupported_parameter")
        async with self._changing:
            choice = self._catalog.chosen.get(model)
            if choice is None or not choice.adapters:
                raise InvalidRequest(
                    f"No adapter is set on {model}: set one with /v1/set_lora first.",
                    param="lora_nickname",
                )
            parts = [await self._parted(model, one, target) for one in choice.adapters]
            if all(inside is None for inside, _ in parts):
                raise InvalidRequest(
                    f"None of the adapters set on {model} changes {target}.", param="target"
                )
            adapters = tuple(_aimed(parts, choice.on, strength))
            choice = Choice(adapters=adapters, merged=True)
            await self._commit(chosen={**self._catalog.chosen, model: choice})
        return choice

    async def _parted(
        self, model: str, adapter: Adapter, target: str
    ) -> tuple[Adapter | None, list[Adapter]]:
        """The part of an adapter that changes `target`, and the rest. Raises `InvalidRequest` if no
        rank can say what it changes."""
        if target in ("all", adapter.target):
            return adapter, []
        if adapter.target != "all":
            return None, [adapter]
        if not self.trying.fits(model, adapter):
            await self._load(model, adapter, param="target")
        names = self.trying.components(model, adapter)
        if names == ["all"]:
            raise InvalidRequest(
                f"What '{adapter.name}' changes is known once it is loaded, and {model} is not: "
                "load the model first, or merge into all.",
                param="target",
            )
        if target not in names:
            return None, [adapter]
        replace = msgspec.structs.replace
        others = [replace(adapter, target=name) for name in names if name != target]
        return replace(adapter, target=target), others

    async def unmerge(self, model: str) -> Choice | None:
        """Later requests of a model get it as it was loaded; what was set can be merged again."""
        self._model(model).check_able()
        async with self._changing:
            choice = self._catalog.chosen.get(model)
            if choice is not None:
                choice = Choice(adapters=choice.adapters, on=False)
                await self._commit(chosen={**self._catalog.chosen, model: choice})
        return choice

    async def remove(self, model: str, name: str | None) -> tuple[str, ...]:
        """Take an adapter out of force and out of the catalog, or without a name all that were set
        on the model out of force. What was in force of them. Raises `NotFound`.

        One of `--lora-dir` stays in the catalog as long as it is in the directory.
        """
        self._model(model).check_able()
        async with self._changing:
            before = self._catalog.chosen.get(model, _NOTHING).in_force
            names = tuple(one.name for one in before if name in (None, one.name))
            if name is None:
                await self._commit(chosen=_without(self._catalog.chosen, model))
            elif names or name in await self.names():
                await self._forget(name)
            else:
                raise await self._unknown(name, param="lora_name")
            await self.sweep()
        return names

    async def _forget(self, name: str) -> None:
        chosen = {
            model: msgspec.structs.replace(
                one, adapters=tuple(a for a in one.adapters if a.name != name)
            )
            for model, one in self._catalog.chosen.items()
        }
        kept = {model: one for model, one in chosen.items() if one.adapters}
        await self._commit(registered=_without(self._catalog.registered, name), chosen=kept)

    # ------------------------------------------------------------------------------------- reading

    async def names(self) -> dict[str, str]:
        """Every adapter of the catalog and where it comes from."""
        found = {name: str(path) for name, path in (await self._directory.names()).items()}
        return found | {name: e.source for name, e in self._catalog.registered.items()}

    def registered(self) -> dict[str, str]:
        """Those that an administrator registered, and where they come from."""
        return {name: entry.source for name, entry in self._catalog.registered.items()}

    def choice(self, model: str) -> Choice:
        """What was set on a model. Raises `InvalidRequest` if it takes no adapters."""
        self._model(model).check_able()
        return self._catalog.chosen.get(model, _NOTHING)

    # ----------------------------------------------------------------------------- other processes

    async def serves(self, model: str) -> None:
        """Ranks of it are ready: let them have what is in force, before a request has to wait for
        it, and say so if it does not fit."""
        if model not in self._untried:
            return
        self._untried.discard(model)
        for adapter in self._catalog.chosen.get(model, _NOTHING).in_force:
            try:
                await self._load(model, adapter, param="lora_path")
            except InvalidRequest as failure:
                logger.error("an adapter does not fit", adapter=adapter.name, why=failure.message)

    async def _load(self, model: str, adapter: Adapter, *, param: str) -> None:
        (located,) = self.store.located([adapter])
        await self.trying.load(model, located, param=param)

    # ----------------------------------------------------------------------------------- the files

    async def sweep(self) -> None:
        """Remove the files that neither the catalog nor an unfinished job names."""
        used = {adapter.digest for adapter in self._in_use()}
        gone = await self._shelf.sweep(self._catalog.digests | self._directory.digests | used)
        for entry in self._config.entries if gone else ():
            await self._send(ForgetAdapters(model=entry.name, digests=gone))

    async def _commit(
        self,
        *,
        registered: dict[str, Registered] | None = None,
        chosen: dict[str, Choice] | None = None,
        started_with: tuple[str, ...] | None = None,
    ) -> None:
        """Change the catalog: on the disk, then here."""
        changes = {"registered": registered, "chosen": chosen, "started_with": started_with}
        given = {name: value for name, value in changes.items() if value is not None}
        catalog = msgspec.structs.replace(self._catalog, **given)
        await self._shelf.write(catalog)
        self._catalog = catalog

    # ----------------------------------------------------------------------------------- the start

    async def _start_with(self) -> None:
        """Put `--lora-path` in force, unless that was done by an earlier start with the same
        settings: what has been set since then holds."""
        settings = self._config.lora
        model = self._config.entries[0].name
        given = tuple(map(str, msgspec.structs.astuple(settings))) if settings.lora_path else ()
        if given == self._catalog.started_with:
            return
        if settings.lora_path is None:
            await self._commit(chosen=_without(self._catalog.chosen, model), started_with=())
            return
        file = settings.lora_name
        name = settings.lora_nickname or adapter_files.name_of(settings.lora_path, file)
        adapter = wanted.named(name, settings.lora_scale, param="lora_scale")
        self._model(model).check(adapter, param="lora_path")
        with self._shelf.holding() as held:
            path = await asyncio.to_thread(adapter_files.locate, settings.lora_path, file)
            digest = await self._shelf.bring(path, held, param="lora_path")
            entry = Registered(source=settings.lora_path, digest=digest)
            adapter = msgspec.structs.replace(adapter, digest=digest)
            choice = Choice(adapters=(adapter,), merged=self._merges(model))
            await self._commit(
                registered={**self._catalog.registered, name: entry},
                chosen={**self._catalog.chosen, model: choice},
                started_with=given,
            )

    # ------------------------------------------------------------------------------------- helpers

    def _merges(self, model: str) -> bool:
        """Whether what is set on it is merged without being asked for."""
        return not self._config.lora.disable_fuse_lora and self._model(model).unmergeable is None

    def _model(self, name: str) -> Adaptable:
        if name not in self._models:
            self._models[name] = adaptable(self._config.of(name))
        return self._models[name]

    def _source(self, name: str) -> str:
        entry = self._catalog.registered.get(name)
        return "" if entry is None else entry.source

    async def _unknown(self, name: str, *, param: str) -> NotFound:
        return NotFound(
            f"There is no adapter '{name:.200}'; {await self._said()}",
            param=param,
            code="adapter_not_found",
        )

    async def _said(self) -> str:
        names = sorted(await self.names())
        if not names:
            return "this server has none."
        more = f" and {len(names) - 50} more" if len(names) > 50 else ""
        return f"this server has {', '.join(names[:50])}{more}."


def _aimed(
    parts: Iterable[tuple[Adapter | None, list[Adapter]]], on: bool, strength: float | None
) -> Iterator[Adapter]:
    """Adapters as a merge into a target leaves them, from their parts inside and outside of it:
    what is off elsewhere stays off, what is in force there stays as it is."""
    for inside, outside in parts:
        if inside is not None:
            scale = inside.scale if strength is None else strength
            yield msgspec.structs.replace(inside, scale=scale)
        if on:
            yield from outside


def _without(mapping: Mapping[str, V], key: str) -> dict[str, V]:
    return {name: value for name, value in mapping.items() if name != key}


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False
