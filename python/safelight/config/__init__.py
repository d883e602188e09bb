"""The engine's configuration: one frozen tree, checked when it is built.

A field is declared once. The command line's flags, the keys of a `--config` file and the
`SAFELIGHT_*` variables are all derived from it (`safelight.fields`); they are flat, so a name is
unique in the whole tree. Precedence: command line, environment, file, default.
"""

from __future__ import annotations

from safelight.config.building import build
from safelight.config.model import Mode, ModelConfig, Precision, VaeConfig
from safelight.config.serving import (
    Degree,
    LoraConfig,
    ModelsConfig,
    ParallelConfig,
    RuntimeConfig,
    SchedulingConfig,
    ServerConfig,
    StorageConfig,
    WebhookConfig,
    WebhookEvent,
)
from safelight.config.sources import from_environment, read_file
from safelight.config.tree import SECTIONS, EngineConfig, ServedModel, engine_fields

__all__ = [
    "SECTIONS",
    "Degree",
    "EngineConfig",
    "LoraConfig",
    "Mode",
    "ModelConfig",
    "ModelsConfig",
    "ParallelConfig",
    "Precision",
    "RuntimeConfig",
    "SchedulingConfig",
    "ServedModel",
    "ServerConfig",
    "StorageConfig",
    "VaeConfig",
    "WebhookConfig",
    "WebhookEvent",
    "build",
    "engine_fields",
    "from_environment",
    "read_file",
]
