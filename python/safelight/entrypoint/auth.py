"""The API key, if the server has one."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from safelight.errors import Unauthorized

_bearer = HTTPBearer(auto_error=False, description="The server's `--api-key`, if it has one.")


async def require_key(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Raises `Unauthorized` unless the bearer token is the configured key."""
    key: str | None = request.app.state.config.server.api_key
    if key is None:
        return
    if given is None:
        raise Unauthorized("No API key was given: send 'Authorization: Bearer <key>'.")
    # Headers are decoded as Latin-1; clients write a key as UTF-8.
    if not hmac.compare_digest(given.credentials.encode("latin-1"), key.encode()):
        raise Unauthorized("Incorrect API key provided.")
