"""The HTTP application: routers, one error envelope, a request id on everything."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI

from safelight import __version__
from safelight.config import EngineConfig
from safelight.entrypoint import envelope, ops
from safelight.entrypoint.auth import require_key
from safelight.entrypoint.guard import RequestIdMiddleware
from safelight.entrypoint.openai import events, images, models, videos
from safelight.manager.manager import RequestManager


def create_app(manager: RequestManager, config: EngineConfig) -> FastAPI:
    """The application over a manager that its owner starts and closes."""
    app = FastAPI(
        title="Safelight",
        version=__version__,
        description="An OpenAI-compatible server for diffusion models.",
        redirect_slashes=False,
    )
    app.state.manager = manager
    app.state.config = config
    app.add_middleware(RequestIdMiddleware)
    envelope.install(app)
    app.include_router(ops.router)
    app.include_router(_v1())
    return app


def _v1() -> APIRouter:
    """Everything that needs the key, if there is one."""
    router = APIRouter(prefix="/v1", dependencies=[Depends(require_key)])
    for part in (events.router, videos.router, images.router, models.router, ops.described):
        router.include_router(part)
    return router
