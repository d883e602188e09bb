"""The outermost layer: every response has an id, no body is larger than allowed.

Starlette's own body limit answers in plain text before any handler can put it into the envelope,
hence this one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safelight.errors import InvalidRequest, Overloaded, PayloadTooLarge

REQUEST_ID = "safelight.request_id"
"""Key of the ASGI scope."""


class RequestIdMiddleware:
    """`x-request-id` on every response; the SDKs show it in their errors."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope[REQUEST_ID] = f"req_{secrets.token_hex(16)}"

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class Intake:
    """What is being read of all bodies together, or waits to be decoded: each may take as much as
    the limit, but a hundred at once may not take a hundred times that."""

    BODIES = 8  # of full size at once

    def __init__(self, limit: int) -> None:
        """`limit`: bytes of one body."""
        self._limit = self.BODIES * limit
        self._read = 0

    def took(self, nbytes: int) -> None:
        """Raises `Overloaded`."""
        if self._read + nbytes > self._limit:
            raise Overloaded(
                "The server is reading as many large requests as it can; try again.",
                retry_after_s=1,
            )
        self._read += nbytes

    def gave_back(self, nbytes: int) -> None:
        self._read -= nbytes

    @contextmanager
    def holding(self, nbytes: int) -> Iterator[None]:
        """So much more is taken while it is entered. Raises `Overloaded`."""
        self.took(nbytes)
        try:
            yield
        finally:
            self.gave_back(nbytes)


class BodyLimit:
    """Counts what a handler reads of the body, and refuses before it is too much."""

    def __init__(self, limit: int, headers: Headers, intake: Intake) -> None:
        """Raises `PayloadTooLarge` if the declared length is over `limit` bytes."""
        self._limit = limit
        self._intake = intake
        self._read = 0
        declared = headers.get("content-length", "0")
        if not declared.isdecimal():
            raise InvalidRequest("'content-length' is no number.", param="content-length")
        self._check(int(declared))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._intake.gave_back(self._read)
        self._read = 0

    def took(self, nbytes: int) -> None:
        """Raises `PayloadTooLarge` once the sum is over the limit (chunked bodies), `Overloaded`
        once all bodies together are over theirs."""
        self._check(self._read + nbytes)
        self._intake.took(nbytes)
        self._read += nbytes

    def _check(self, nbytes: int) -> None:
        if nbytes > self._limit:
            raise PayloadTooLarge(f"The body is larger than the limit of {self._limit} bytes.")

    def around(self, receive: Receive) -> Receive:
        async def counted() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                self.took(len(message.get("body", b"")))
            return message

        return counted
