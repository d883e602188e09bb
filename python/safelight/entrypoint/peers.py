"""What clients of other systems ask about a server, and tell it, outside of `/v1`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from safelight import __version__, fields, host
from safelight.config import EngineConfig, Precision
from safelight.entrypoint import schema
from safelight.entrypoint.context import Config, Manager, ParsedBody
from safelight.entrypoint.native_schema import (
    GB,
    CacheFlushed,
    LoadBody,
    LoadStatus,
    ModelLoaded,
    ModelStatus,
    RankStatus,
    ServedInfo,
    ServerInfo,
)
from safelight.errors import ConfigError
from safelight.manager.manager import RequestManager
from safelight.manager.residency import Standing
from safelight.models.card import ModelCard
from safelight.models.registry import pipeline_class
from safelight.parallel.layout import complete
from safelight.wire.messages import RankInfo

router = APIRouter(tags=["native"], responses=schema.ERRORS)


@router.get("/models")
@router.get("/model_info", include_in_schema=False)
@router.get("/get_model_info")
@router.get("/v1/model_info")
async def model_info(manager: Manager, config: Config) -> ServedInfo:
    """The first model as SGLang Diffusion and cache-dit serving describe theirs, and under `models`
    all of them. `model_path` is the name that requests give as `model`."""
    found = [await _info(card, manager, config) for card in _cards(manager)]
    return ServedInfo.model_validate(found[0] | {"models": found})


@router.get("/model-status")
async def model_status(manager: Manager) -> ModelStatus:
    """Whether the first model is loaded, and where, as FLUX API says it; under `models` all."""
    found = [_load(card, manager) for card in _cards(manager)]
    available = round(host.available_memory() / GB, 3)
    return ModelStatus(**found[0].model_dump(), system_memory_available_gb=available, models=found)


@router.post("/load-model", openapi_extra={"requestBody": schema.body_of(LoadBody)})
async def load_model(body: ParsedBody, manager: Manager) -> ModelLoaded:
    """Load a model, the first if none is named; answers when it serves."""
    asked = fields.convert(LoadBody, body.values, strict=body.strict)
    card = _cards(manager)[0] if asked.model is None else manager.card(asked.model)
    before = manager.models.standing(card.name)
    await manager.models.load(card.name)
    done = "was loaded already" if before is Standing.LOADED else "is loaded"
    return ModelLoaded(
        message=f"The model {card.name} {done}.",
        model=card.name,
        status=str(manager.models.standing(card.name)),
    )


@router.post("/flush_cache")
async def flush_cache(manager: Manager) -> CacheFlushed:
    """Forget what the ranks keep of prompts and pictures they have encoded, and on CUDA the memory
    they hold in reserve. It is done before anything that is asked for after this answer."""
    await manager.flush_caches()
    return CacheFlushed(message="The caches are flushed before the next request.")


@router.get("/server_info")
@router.get("/get_server_info")
async def server_info(manager: Manager, config: Config) -> ServerInfo:
    """Version, load and limits of the server."""
    return ServerInfo(
        version=__version__,
        models=list(manager.cards),
        ready=manager.ready,
        detail=manager.readiness,
        unfinished=manager.load.unfinished,
        backlog_seconds=round(manager.load.backlog, 3),
        max_body_bytes=config.server.max_body_bytes,
        max_outputs=config.server.max_outputs,
        max_input_pixels=config.server.max_input_pixels,
        max_queued_samples=config.scheduling.max_queued_samples,
    )


def _cards(manager: RequestManager) -> list[ModelCard]:
    return list(manager.cards.values())


def _ranks(name: str, manager: RequestManager) -> list[tuple[int, RankInfo]]:
    """Of the groups that serve a model, each with its group's number."""
    groups = [g for g in manager.groups if g.ready and g.model == name]
    return [(group.group, rank) for group in groups for rank in group.ranks]


async def _info(card: ModelCard, manager: RequestManager, config: EngineConfig) -> dict[str, Any]:
    pipeline = await asyncio.to_thread(_pipeline_class, card)
    own = config.of(card.name)
    devices = {rank.device for _, rank in _ranks(card.name, manager)} or {own.model.device}
    device = sorted(devices)[0].partition(":")[0]
    standing = manager.models.standing(card.name)
    return {
        "model_path": card.name,
        "family": card.family,
        "tasks": list(card.tasks),
        "task_type": _task_type(card),
        "pipeline_name": f"{card.family}_pipeline",
        "pipeline_class": pipeline,
        "num_gpus": complete(own.parallel).num_gpus,
        "dit_precision": _precision(
            own.model.dit_precision, {"cuda": "bf16", "cpu": "fp32"}, device
        ),
        "vae_precision": _precision(own.model.vae_precision, {device: "fp32"}, device),
        "device": device,
        "status": str(standing),
        "is_loaded": standing is Standing.LOADED,
    }


def _precision(configured: Precision, automatic: dict[str, str], device: str) -> str:
    """`--dit-precision` and the like, with what `auto` is on the device, if that is known."""
    return automatic.get(device, "auto") if configured == "auto" else configured


def _task_type(card: ModelCard) -> str:
    """As SGLang Diffusion abbreviates it: of what it begins with, and what it ends with."""
    output = "video" if card.makes("video") else "image"
    from_text = f"text-to-{output}" in card.tasks
    from_image = f"image-to-{output}" in card.tasks or "inpainting" in card.tasks
    return f"{'T' * from_text}{'I' * from_image}2{output[0].upper()}"


def _pipeline_class(card: ModelCard) -> str | None:
    try:
        return pipeline_class(Path(card.path))
    except ConfigError:
        return None


def _load(card: ModelCard, manager: RequestManager) -> LoadStatus:
    standing = manager.models.standing(card.name)
    found = _ranks(card.name, manager)
    return LoadStatus(
        model=card.name,
        model_type=card.family,
        status=str(standing),
        model_loaded=standing is Standing.LOADED,
        ranks=[_rank(group, rank) for group, rank in found],
        vram_usage_gb=_gb(r.peak_memory for _, r in found if r.device.startswith("cuda")),
    )


def _rank(group: int, rank: RankInfo) -> RankStatus:
    return RankStatus(
        group=group,
        rank=rank.rank,
        device=rank.device,
        weights_gb=_gb(rank.weights.values()),
        peak_memory_gb=_gb([rank.peak_memory]),
    )


def _gb(sizes: Iterable[int]) -> float:
    return round(sum(sizes) / GB, 3)
