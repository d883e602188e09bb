"""`/v1/models`: the one model that is served."""

from __future__ import annotations

import time

from fastapi import APIRouter

from safelight.entrypoint import schema
from safelight.entrypoint.context import Card
from safelight.entrypoint.openai.parsing import check_model
from safelight.models.card import ModelCard

router = APIRouter(prefix="/models", tags=["models"], responses=schema.ERRORS)

_SINCE = int(time.time())


@router.get("")
async def page(card: Card) -> schema.ModelList:
    """Every model of this server."""
    return schema.ModelList(data=[_as_model(card)])


@router.get("/{model_id:path}")
async def retrieve(model_id: str, card: Card) -> schema.ModelObject:
    """One model. Its id may contain slashes, raw or escaped."""
    check_model(model_id, card)
    return _as_model(card)


def _as_model(card: ModelCard) -> schema.ModelObject:
    return schema.ModelObject(
        id=card.name, created=_SINCE, tasks=list(card.tasks), defaults=card.defaults
    )
