"""The tree of all sections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from safelight import fields
from safelight.config.model import ModelConfig
from safelight.config.section import Section
from safelight.config.serving import (
    LoraConfig,
    ModelsConfig,
    ParallelConfig,
    RuntimeConfig,
    SchedulingConfig,
    ServerConfig,
    StorageConfig,
    WebhookConfig,
)


class ServedModel(Section, frozen=True):
    """One of several models."""

    name: str
    model: ModelConfig
    parallel: ParallelConfig
    load: bool = True
    """Whether it is loaded at the start; else when it is first asked for."""


class EngineConfig(Section, frozen=True):
    """Everything that is fixed when the engine starts."""

    model: ModelConfig = ModelConfig()
    parallel: ParallelConfig = ParallelConfig()
    models: ModelsConfig = ModelsConfig()
    served: tuple[ServedModel, ...] = ()
    """The models, if there are several; `model` and `parallel` are what they have in common."""
    lora: LoraConfig = LoraConfig()
    scheduling: SchedulingConfig = SchedulingConfig()
    server: ServerConfig = ServerConfig()
    storage: StorageConfig = StorageConfig()
    webhooks: WebhookConfig = WebhookConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @property
    def data_path(self) -> Path:
        return Path(self.storage.data_dir).expanduser()

    @property
    def entries(self) -> tuple[ServedModel, ...]:
        """Every model, at least one."""
        one = ServedModel(name=self.model_name, model=self.model, parallel=self.parallel)
        return self.served or (one,)

    @property
    def at_start(self) -> tuple[str, ...]:
        """Names of the models that are loaded when the engine starts."""
        names = [entry.name for entry in self.entries if entry.load]
        return tuple(names[: self.models.max_loaded_models])

    def of(self, name: str) -> EngineConfig:
        """The configuration of one model alone. Raises `KeyError` if there is none of that name."""
        entry = {entry.name: entry for entry in self.entries}[name]
        return msgspec.structs.replace(self, model=entry.model, parallel=entry.parallel, served=())

    @property
    def model_name(self) -> str:
        """The name clients route by."""
        if self.model.served_model_name:
            return self.model.served_model_name
        path = self.model.model_path
        if path.startswith("builtin:"):
            return path.removeprefix("builtin:")
        return Path(path).name


SECTIONS: Mapping[str, type[Section]] = {
    "model": ModelConfig,
    "parallel": ParallelConfig,
    "models": ModelsConfig,
    "lora": LoraConfig,
    "scheduling": SchedulingConfig,
    "server": ServerConfig,
    "storage": StorageConfig,
    "webhooks": WebhookConfig,
    "runtime": RuntimeConfig,
}


def engine_fields() -> dict[str, fields.Field]:
    """Every configuration field by its flat name."""
    return {f.name: f for section in SECTIONS.values() for f in fields.declared(section)}
