"""FLUX.1 through the adapter protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import FluxFillPipeline, FluxKontextPipeline, FluxPipeline

from safelight.config import EngineConfig
from safelight.models.flux.base import FluxBase
from safelight.models.flux.pictures import FillFamily, FluxFamily, KontextFamily
from safelight.models.loading import load_pipeline
from safelight.models.registry import pipeline_class
from safelight.parallel.mesh import Mesh

FAMILIES: dict[str, tuple[Any, type[FluxFamily]]] = {
    "FluxPipeline": (FluxPipeline, FluxFamily),
    "FluxFillPipeline": (FluxFillPipeline, FillFamily),
    "FluxKontextPipeline": (FluxKontextPipeline, KontextFamily),
}


def load(directory: Path, config: EngineConfig, mesh: Mesh) -> FluxBase:
    """This rank's part of the pipeline in `directory`, on its device; safetensors only."""
    kind, family = FAMILIES[pipeline_class(directory)]
    return family(load_pipeline(kind, directory, config, mesh), mesh, config)
