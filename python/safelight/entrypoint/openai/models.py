"""`/v1/models`: what is served, and loading and unloading at run time."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
from fastapi import APIRouter
from msgspec import Meta

from safelight import fields
from safelight.entrypoint import schema
from safelight.entrypoint.body import Body
from safelight.entrypoint.context import Manager, ParsedBody
from safelight.errors import InvalidRequest
from safelight.manager.manager import RequestManager
from safelight.models.card import ALWAYS, ModelCard

router = APIRouter(prefix="/models", tags=["models"], responses=schema.ERRORS)

_SINCE = int(time.time())


@router.get("")
async def page(manager: Manager) -> schema.ModelList:
    """Every model of this server, loaded or not."""
    return schema.ModelList(data=[_as_model(card, manager) for card in manager.cards.values()])


class ModelBody(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/models/load` and `/unload`."""

    model: Annotated[str, Meta(description="Name of a model of this server.")] = ""


@router.post("/load", openapi_extra={"requestBody": schema.body_of(ModelBody)})
async def load(body: ParsedBody, manager: Manager) -> schema.ModelObject:
    """Load a model; answers when it serves. The least recently used makes room for it if need be:
    what was accepted for that one is finished first."""
    card = _named(body, manager)
    await manager.models.load(card.name)
    return _as_model(card, manager)


@router.post("/unload", openapi_extra={"requestBody": schema.body_of(ModelBody)})
async def unload(body: ParsedBody, manager: Manager) -> schema.ModelObject:
    """Unload a model once what was accepted for it is done; the next request for it loads it."""
    card = _named(body, manager)
    await manager.models.unload(card.name)
    return _as_model(card, manager)


def _named(body: Body, manager: RequestManager) -> ModelCard:
    name = fields.convert(ModelBody, body.values, strict=body.strict).model
    if not name:
        raise InvalidRequest("'model' is missing: name the model.", param="model")
    return manager.card(name)


@router.get("/{model_id:path}")
async def retrieve(model_id: str, manager: Manager) -> schema.ModelObject:
    """One model. Its id may contain slashes, raw or escaped."""
    return _as_model(manager.card(model_id), manager)


def _as_model(card: ModelCard, manager: RequestManager) -> schema.ModelObject:
    return schema.ModelObject(
        id=card.name,
        created=_SINCE,
        tasks=list(card.tasks),
        defaults=card.defaults,
        parameters=sorted({*ALWAYS, *card.parameters}),
        limits=card.limits,
        status=str(manager.models.standing(card.name)),
    )
