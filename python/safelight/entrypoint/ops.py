"""For operators and load balancers: is it alive, does it serve?"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request
from pydantic import BaseModel

from safelight import __version__
from safelight.entrypoint import schema
from safelight.entrypoint.context import Manager
from safelight.errors import Unavailable
from safelight.wire.messages import GroupStatus

router = APIRouter(tags=["ops"], responses=schema.ERRORS)


class Live(BaseModel):
    status: Literal["ok"] = "ok"


class Health(Live):
    detail: str
    unfinished: int
    """Accepted samples that are not finished."""
    backlog_seconds: float
    """Predicted."""
    groups: list[dict[str, Any]]
    """Of every rank the device, the bytes of weights and the peak memory."""


class Welcome(BaseModel):
    service: Literal["safelight"] = "safelight"
    version: str
    status: str
    model_loaded: bool
    models: list[str]
    docs: Literal["/docs"] = "/docs"
    openapi: Literal["/openapi.json"] = "/openapi.json"
    endpoints: list[str]
    """`METHOD /path`."""


@router.get("/")
async def welcome(manager: Manager, http: Request) -> Welcome:
    """What answers here, and where to go on."""
    paths = http.app.openapi()["paths"]
    return Welcome(
        version=__version__,
        status=manager.readiness,
        model_loaded=any(group.ready for group in manager.groups),
        models=list(manager.cards),
        endpoints=[f"{method.upper()} {path}" for path in paths for method in paths[path]],
    )


@router.get("/health/live")
async def live() -> Live:
    """The process answers."""
    return Live()


@router.get("/health/ready")
@router.get("/health")
async def ready(manager: Manager) -> Health:
    """A worker group serves; 503 with the reason until then. Also how busy it is."""
    if not manager.ready:
        raise Unavailable(f"Not ready: {manager.readiness}.", code="not_ready")
    return Health(
        detail=manager.readiness,
        unfinished=manager.load.unfinished,
        backlog_seconds=round(manager.load.backlog, 3),
        groups=[_figures(group) for group in manager.groups],
    )


def _figures(group: GroupStatus) -> dict[str, Any]:
    """What may be told without a key: neither process ids nor which jobs there are."""
    figures = msgspec.to_builtins(group)
    del figures["detail"]
    for rank in figures["ranks"]:
        del rank["pid"]
    return dict(figures)
