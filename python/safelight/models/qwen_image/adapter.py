"""Loads what `model_index.json` names: Qwen-Image, -Edit, or -Edit Plus (2509 and later)."""

from __future__ import annotations

from pathlib import Path

from diffusers import (
    DiffusionPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
)

from safelight.config import EngineConfig
from safelight.models.loading import load_pipeline
from safelight.models.qwen_image.edit import QwenImageEditFamily, QwenImageEditPlusFamily
from safelight.models.qwen_image.family import QwenImageFamily
from safelight.models.qwen_image.spec import KINDS, Kind
from safelight.models.registry import pipeline_class
from safelight.parallel.mesh import Mesh

FAMILIES: dict[Kind, tuple[type[DiffusionPipeline], type[QwenImageFamily]]] = {
    "plain": (QwenImagePipeline, QwenImageFamily),
    "edit": (QwenImageEditPipeline, QwenImageEditFamily),
    "plus": (QwenImageEditPlusPipeline, QwenImageEditPlusFamily),
}


def load(directory: Path, config: EngineConfig, mesh: Mesh) -> QwenImageFamily:
    """This rank's part of the pipeline in `directory`, on its device; safetensors only."""
    pipeline, family = FAMILIES[KINDS[pipeline_class(directory)]]
    return family(load_pipeline(pipeline, directory, config, mesh), mesh, config)
