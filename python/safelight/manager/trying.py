"""Adapters that the ranks are asked to load, and what they say of them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping

from safelight.errors import InvalidRequest, Unavailable
from safelight.request import Adapter
from safelight.wire.messages import AdaptersLoaded, ForgetAdapters, LoadAdapters

Send = Callable[[LoadAdapters | ForgetAdapters], Awaitable[None]]


class Trying:
    """Belongs to one event loop."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._asked: dict[str, tuple[LoadAdapters, asyncio.Future[AdaptersLoaded]]] = {}
        self._layers: dict[tuple[str, str, str], Mapping[str, int]] = {}

    async def load(self, model: str, adapter: Adapter, *, param: str) -> None:
        """Have all ranks of a model load an adapter, which has its path; a model that is not loaded
        takes any. Raises `InvalidRequest` if it does not fit, `Unavailable` if nobody will answer.
        """
        message = LoadAdapters(ticket=secrets.token_hex(8), model=model, adapters=(adapter,))
        answer = asyncio.get_running_loop().create_future()
        self._asked[message.ticket] = message, answer
        try:
            await self._send(message)
            loaded: AdaptersLoaded = await answer
        finally:
            del self._asked[message.ticket]
        if loaded.error is not None:
            raise InvalidRequest(loaded.error, param=param, code="adapter_refused")
        self._layers[model, adapter.digest, adapter.target] = loaded.layers

    def fits(self, model: str, adapter: Adapter) -> bool:
        """Whether the ranks have loaded it before."""
        return bool(self._layers.get((model, adapter.digest, adapter.target)))

    def hear(self, message: AdaptersLoaded) -> None:
        """What the ranks said."""
        if message.ticket in self._asked:
            _, answer = self._asked[message.ticket]
            if not answer.done():
                answer.set_result(message)

    async def repeat(self) -> None:
        """The scheduler has forgotten what it was asked."""
        for message, _ in list(self._asked.values()):
            await self._send(message)

    def close(self) -> None:
        """Nobody will answer any more."""
        for _, answer in self._asked.values():
            if not answer.done():
                answer.set_exception(Unavailable("The server is going down."))

    def layers(self, model: str, adapter: Adapter) -> Mapping[str, int]:
        """How many layers of which components an adapter changes, as the ranks counted them; if
        they have not, none of what it is aimed at."""
        counted = self._layers.get((model, adapter.digest, adapter.target))
        return counted or dict.fromkeys(self.components(model, adapter), 0)

    def components(self, model: str, adapter: Adapter) -> list[str]:
        """What an adapter changes; `all` if no rank has said."""
        if adapter.target != "all":
            return [adapter.target]
        return list(self._layers.get((model, adapter.digest, "all"), {})) or ["all"]
