"""Server-sent events (WHATWG HTML, section 9.2), as the OpenAI SDKs read them: every block has
data, and what keeps the connection alive is a comment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from safelight.entrypoint import envelope
from safelight.errors import SafelightError

KEEP_ALIVE_S = 15.0
"""Proxies end connections on which nothing comes for a minute or less."""


class Event(msgspec.Struct, frozen=True):
    """One block."""

    name: str
    data: dict[str, Any]
    id: str | None = None

    def encode(self) -> bytes:
        data = msgspec.json.encode(self.data).decode()
        return format_sse_event(event=self.name, data_str=data, id=self.id)


def respond(events: AsyncGenerator[Event]) -> StreamingResponse:
    """Send the events as they come. A client that leaves closes the generator."""
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return _Stream(_blocks(events), headers)


class _Stream(StreamingResponse):
    """Starlette's leaves what it sends from to the garbage collection."""

    def __init__(self, blocks: AsyncGenerator[bytes], headers: Mapping[str, str]) -> None:
        super().__init__(blocks, media_type="text/event-stream", headers=headers)
        self._blocks = blocks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._blocks):
            await super().__call__(scope, receive, send)


async def _blocks(events: AsyncGenerator[Event]) -> AsyncGenerator[bytes]:
    try:
        # From the inside out: the events cannot be closed while the next of them is waited for.
        async with aclosing(events), aclosing(_in_time(events)) as timed:
            async for event in timed:
                yield KEEPALIVE_COMMENT if event is None else event.encode()
    except SafelightError as failure:
        # Nested: the SDKs raise that, and take anything else for an event.
        yield b"data: " + bytes(envelope.of(failure).body) + b"\n\n"


async def _in_time(events: AsyncGenerator[Event]) -> AsyncGenerator[Event | None]:
    """The events; None where none has come for long."""
    while True:
        coming = asyncio.ensure_future(anext(events))
        try:
            while not (await asyncio.wait({coming}, timeout=KEEP_ALIVE_S))[0]:
                yield None
            yield coming.result()
        except StopAsyncIteration:
            return
        finally:
            coming.cancel()
            await asyncio.wait({coming})
