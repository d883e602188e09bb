"""The HTTP application: routers, one error envelope, a request id on everything."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI

from safelight import __version__
from safelight.config import EngineConfig
from safelight.entrypoint import envelope, loras, native, ops, page, peers
from safelight.entrypoint.auth import require_key
from safelight.entrypoint.document import Application
from safelight.entrypoint.guard import Intake, RequestIdMiddleware
from safelight.entrypoint.openai import (
    derived,
    events,
    image_jobs,
    images,
    models,
    videos,
    webhooks,
)
from safelight.manager.manager import RequestManager


def create_app(manager: RequestManager, config: EngineConfig) -> FastAPI:
    """The application over a manager that its owner starts and closes."""
    app = Application(
        title="Safelight",
        version=__version__,
        description="An OpenAI-compatible server for diffusion models.",
        redirect_slashes=False,
        docs_url=None,  # FastAPI's page fetches its scripts from elsewhere
        redoc_url=None,
    )
    app.state.manager = manager
    app.state.config = config
    app.state.intake = Intake(config.server.max_body_bytes)
    app.add_middleware(RequestIdMiddleware)
    envelope.install(app)
    app.include_router(ops.router)
    app.include_router(page.router)
    for part in (native.router, peers.router, loras.plain, images.azure):
        app.include_router(part, dependencies=[Depends(require_key)])
    app.include_router(_v1())
    return app


def _v1() -> APIRouter:
    """Everything that needs the key, if there is one."""
    router = APIRouter(prefix="/v1", dependencies=[Depends(require_key)])
    for part in (
        *(derived.router, events.router, videos.router),
        *(image_jobs.router, images.router, models.router, webhooks.router, loras.router),
    ):
        router.include_router(part)
    return router
