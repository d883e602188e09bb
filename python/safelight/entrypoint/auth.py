"""The API key, if the server has one."""

from __future__ import annotations

import hmac
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from safelight.errors import Forbidden, Unauthorized

_bearer = HTTPBearer(auto_error=False, description="The server's `--api-key`, if it has one.")


async def require_key(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Raises `Unauthorized` unless the bearer token is the configured key; without one, `Forbidden`
    if a page of another site would change something."""
    key: str | None = request.app.state.config.server.api_key
    if key is None:
        _refuse_other_sites(request)
        return
    # Azure's clients have a header of their own.
    token = request.headers.get("api-key") if given is None else given.credentials
    if token is None:
        raise Unauthorized("No API key was given: send 'Authorization: Bearer <key>'.")
    # Headers are decoded as Latin-1; clients write a key as UTF-8.
    if not hmac.compare_digest(token.encode("latin-1"), key.encode()):
        raise Unauthorized("Incorrect API key provided.")


def _refuse_other_sites(request: Request) -> None:
    """A browser sends forms to any address, this one too, for whatever page it shows; it says so.
    Other clients send none of these headers (Fetch, section 3.2; Fetch Metadata, section 2)."""
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    own = origin is None or _authority(origin) == request.headers.get("host")
    if site in ("cross-site", "same-site") or not own:
        raise Forbidden("This server has no API key, and so takes nothing from other web pages.")


def _authority(origin: str) -> str | None:
    """Host and port; None of what is no origin."""
    try:
        return urlsplit(origin).netloc
    except ValueError:  # half an IPv6 address
        return None
