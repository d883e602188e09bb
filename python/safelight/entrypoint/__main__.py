"""The entrypoint process: the request manager and the HTTP server in one event loop."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import zmq.asyncio

from safelight import log
from safelight.entrypoint.app import create_app
from safelight.entrypoint.server import HttpServer, address_of, listen
from safelight.errors import ConfigError, SafelightError
from safelight.manager.manager import RequestManager
from safelight.models.registry import load_cards
from safelight.wire import links
from safelight.wire.child import Child, arguments
from safelight.wire.messages import PeerRestarted, Stop

logger = log.get(__name__)

NAME = "entrypoint"
RESPONSES_SHARE = 0.7
"""Part of the grace that responses under way may use; the rest is for closing the store."""


def main() -> int:
    child = Child.enter(NAME, arguments(NAME))
    # Ctrl-C reaches every process of the terminal; the supervisor is the one that answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        asyncio.run(_serve(child))
    except SafelightError as failure:
        logger.error(failure.message)
        return 2 if isinstance(failure, ConfigError) else 1
    finally:
        child.close()
    return 0


async def _serve(child: Child) -> None:
    """Until the supervisor says stop. Raises what keeps the process from serving."""
    config = child.config
    config, cards = load_cards(config)
    manager = RequestManager(config, cards, child.run_dir)
    await manager.start()
    try:
        listener = listen(config.server.host, config.server.port)
        app = create_app(manager, config)
        app.openapi()  # kept: later it would hold up the event loop
        server = HttpServer(app, lambda: child.ready(address_of(listener)))
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGTERM, lambda: server.stop(RESPONSES_SHARE * config.runtime.shutdown_grace)
        )
        await _first_of(
            server.serve(sockets=[listener]), _obey(child, server, manager), manager.broken
        )
    finally:
        await manager.close()


async def _first_of(serving: Coroutine[Any, Any, None], *vital: Any) -> None:
    """Serve to the end, unless something vital raises first: then end with its error."""
    server = asyncio.ensure_future(serving)
    others = {asyncio.ensure_future(one) for one in vital}
    try:
        pending = {server, *others}
        while not server.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
    finally:
        for one in (server, *others):
            one.cancel()
        await asyncio.gather(server, *others, return_exceptions=True)


async def _obey(child: Child, server: HttpServer, manager: RequestManager) -> None:
    """What the supervisor says, until it says stop."""
    control = zmq.asyncio.Socket.from_socket(child.control)
    while True:
        message = links.CONTROL.decode_down(await control.recv())
        match message:
            case Stop():
                server.stop(RESPONSES_SHARE * message.grace)
                return
            case PeerRestarted():
                logger.info("a peer is back", peer=message.process)
                await manager.peer_restarted(message.process)


if __name__ == "__main__":
    sys.exit(main())
