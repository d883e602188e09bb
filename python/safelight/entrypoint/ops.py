"""For operators and load balancers: is it alive, does it serve?"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter

from safelight.entrypoint import schema
from safelight.entrypoint.context import Manager
from safelight.errors import Unavailable
from safelight.wire.messages import GroupStatus

router = APIRouter(tags=["ops"], responses=schema.ERRORS)
described = APIRouter(tags=["ops"], responses=schema.ERRORS)


@router.get("/health/live")
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/health/ready")
@router.get("/health", include_in_schema=False)
async def ready(manager: Manager) -> dict[str, object]:
    """A worker group serves; 503 with the reason until then. Also how busy it is, and of every rank
    of every group the device, the weights and the peak memory in bytes."""
    if not manager.ready:
        raise Unavailable(f"Not ready: {manager.readiness}.", code="not_ready")
    return {
        "status": "ok",
        "detail": manager.readiness,
        "unfinished": manager.load.unfinished,
        "backlog_seconds": round(manager.load.backlog, 3),
        "groups": [_figures(group) for group in manager.groups],
    }


def _figures(group: GroupStatus) -> dict[str, Any]:
    """What may be told without a key: neither process ids nor which jobs there are."""
    figures = msgspec.to_builtins(group)
    del figures["detail"]
    for rank in figures["ranks"]:
        del rank["pid"]
    return dict(figures)


@described.get("/model_info")
async def model_info(manager: Manager) -> dict[str, object]:
    """What benchmark programs ask of the first model. `model_path` is what they then send as
    `model`."""
    card = manager.card(None)
    return {"model_path": card.name, "tasks": list(card.tasks), "family": card.family}
