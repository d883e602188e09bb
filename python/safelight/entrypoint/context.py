"""What the routes get injected. Async, as FastAPI runs sync dependencies in threads."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from safelight.config import EngineConfig
from safelight.entrypoint.body import Body, read_body
from safelight.manager.manager import RequestManager


async def _manager(request: Request) -> RequestManager:
    manager: RequestManager = request.app.state.manager
    return manager


async def _config(request: Request) -> EngineConfig:
    config: EngineConfig = request.app.state.config
    return config


Manager = Annotated[RequestManager, Depends(_manager)]
Config = Annotated[EngineConfig, Depends(_config)]
ParsedBody = Annotated[Body, Depends(read_body)]
