"""The manager's sockets: to the scheduler, to the supervisor, and from the output manager."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import zmq.asyncio

from safelight import log
from safelight.errors import WireError
from safelight.wire import codec, links
from safelight.wire.messages import (
    FromOutput,
    FromScheduler,
    LoadModel,
    ModelState,
    ToScheduler,
    UnloadModel,
)

logger = log.get(__name__)

BATCH = 256
"""Most messages taken at once; they share one commit."""


class Channels:
    def __init__(self, run_dir: Path) -> None:
        self._context: Any = zmq.asyncio.Context()
        self._media: Any = links.MEDIA.listen(self._context, run_dir)
        self._scheduler: Any = links.REQUESTS.connect(self._context, run_dir, links.MANAGER)
        self._supervisor: Any = links.CONTROL.connect(self._context, run_dir, links.MANAGER)

    async def send(self, message: ToScheduler) -> None:
        """To the scheduler; kept and sent later if it is not there."""
        await self._scheduler.send(codec.encode(message))

    async def ask(self, message: LoadModel | UnloadModel) -> None:
        """To the supervisor."""
        await self._supervisor.send(codec.encode(message))

    async def from_supervisor(self) -> AsyncIterator[ModelState]:
        while True:
            message = _decoded(links.CONTROL.decode_down, await self._supervisor.recv())
            if isinstance(message, ModelState):
                yield message

    async def from_scheduler(self) -> AsyncIterator[FromScheduler]:
        while True:
            data = await self._scheduler.recv()
            if (message := _decoded(links.REQUESTS.decode_down, data)) is not None:
                yield message

    async def from_output(self) -> AsyncIterator[list[FromOutput]]:
        """All messages that have arrived, at least one at a time."""
        while True:
            frames = [await self._media.recv_multipart()]
            while len(frames) < BATCH and await self._media.poll(0):
                frames.append(await self._media.recv_multipart())
            decoded = [_decoded(links.MEDIA.decode_up, frame[-1]) for frame in frames]
            if messages := [message for message in decoded if message is not None]:
                yield messages

    async def close(self) -> None:
        """Close; waits up to the links' linger for what is not sent yet."""
        self._scheduler.close()
        self._supervisor.close()
        self._media.close()
        await asyncio.to_thread(self._context.term)


def _decoded(decoder: codec.Decoder[Any], data: bytes) -> Any | None:
    """The message, or None if it is not one of the link's: a bad peer must not stop the good."""
    try:
        return decoder(data)
    except WireError as failure:
        logger.warning("refused a message", reason=str(failure))
        return None
