"""Which family runs which pipeline class. Adding a family is one folder and one line here.

Families are imported lazily; `load_card` imports no torch, `load_family` does.
"""

from __future__ import annotations

import importlib
import json
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from safelight.builtin import builtin_model
from safelight.config import EngineConfig, ModelConfig
from safelight.errors import ConfigError
from safelight.models import hub, plans, plugins, served
from safelight.models.card import CardOverrides, ModelCard
from safelight.parallel import providers, vaes
from safelight.parallel.layout import Capabilities, Layout, check, complete

if TYPE_CHECKING:
    from safelight.models.family import Family
    from safelight.parallel.mesh import Mesh

FAMILIES = {
    "Flux2KleinPipeline": "safelight.models.flux2",
    "Flux2Pipeline": "safelight.models.flux2",
    "FluxFillPipeline": "safelight.models.flux",
    "FluxKontextPipeline": "safelight.models.flux",
    "FluxPipeline": "safelight.models.flux",
    "HunyuanVideo15ImageToVideoPipeline": "safelight.models.hunyuan_video15",
    "HunyuanVideo15Pipeline": "safelight.models.hunyuan_video15",
    "LTX2ImageToVideoPipeline": "safelight.models.ltx2",
    "LTX2Pipeline": "safelight.models.ltx2",
    "WanImageToVideoPipeline": "safelight.models.wan",
    "WanPipeline": "safelight.models.wan",
    "QwenImageEditInpaintPipeline": "safelight.models.qwen_image",
    "QwenImageEditPipeline": "safelight.models.qwen_image",
    "QwenImageEditPlusPipeline": "safelight.models.qwen_image",
    "QwenImageImg2ImgPipeline": "safelight.models.qwen_image",
    "QwenImageInpaintPipeline": "safelight.models.qwen_image",
    "QwenImagePipeline": "safelight.models.qwen_image",
    "StableDiffusion3Pipeline": "safelight.models.sd3",
    "StableDiffusionXLImg2ImgPipeline": "safelight.models.sdxl",
    "StableDiffusionXLInpaintPipeline": "safelight.models.sdxl",
    "StableDiffusionXLPipeline": "safelight.models.sdxl",
    "ZImagePipeline": "safelight.models.z_image",
}
"""Pipeline class in `model_index.json` -> family package."""


GENERIC = "safelight.models.generic"
"""Runs every other pipeline of diffusers."""

PLUGINS = plugins.GROUP
"""Entry-point group: name of a family or pipeline class -> package with `spec` and `adapter`."""


SCHEMES = {"remote": "safelight.models.remote"}
"""Model paths that begin so (``remote:…``) are no directories -> family package."""


def scheme(model_path: str | Path) -> str | None:
    """The package for a path of one of the `SCHEMES`; None for a directory or a hub id."""
    name, colon, _ = str(model_path).partition(":")
    return SCHEMES.get(name) if colon else None


def model_directory(model_path: str) -> Path:
    """The directory a model path means. Raises `ConfigError` if it holds no pipeline."""
    if scheme(model_path):
        return Path(model_path)
    if model_path.startswith("builtin:"):
        try:
            return builtin_model(model_path.removeprefix("builtin:"))
        except ValueError as failure:
            raise ConfigError(str(failure), param="model_path") from failure
    directory = Path(model_path).expanduser().resolve()
    if not directory.is_dir() and hub.is_id(model_path):
        raise ConfigError(
            f"'{model_path}' is no directory. If it is a model on the hub, fetch it with "
            f"'safelight pull {model_path}'.",
            param="model_path",
        )
    if not (directory / "model_index.json").is_file() and named_family(directory) is None:
        raise ConfigError(
            f"'{model_path}' is not a diffusers pipeline: there is no model_index.json in it. Give "
            "the directory that save_pretrained wrote, a hub id (org/name), or builtin:shapes. A "
            'model with its own code names its family in safelight.json: {"family": "NAME"}.',
            param="model_path",
        )
    return directory


def named_family(directory: Path) -> str | None:
    """The plug-in that a model with its own code names in `safelight.json`, instead of a class."""
    return CardOverrides.read(directory).family


def pipeline_class(directory: Path) -> str:
    """The pipeline class named in `model_index.json`. Raises `ConfigError` if there is none."""
    index = read_json(directory / "model_index.json")
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise ConfigError(f"{directory}/model_index.json names no pipeline class.")
    return name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model directory. Raises `ConfigError` if it is missing or broken."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as failure:
        raise ConfigError(f"Cannot read {path}: {failure}") from failure
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is not a JSON object.")
    return value


def _plugin(directory: Path) -> EntryPoint | None:
    """The installed plug-in that runs the model in `directory`; None: we do."""
    if (name := named_family(directory)) is None:
        return plugins.find(pipeline_class(directory))
    if (plugin := plugins.find(name)) is None:
        others = ", ".join(plugins.names()) or "none"
        raise ConfigError(
            f"{directory}/safelight.json names the family '{name}', which no installed package "
            f"brings. Install the one that does; installed families: {others}.",
            param="model_path",
        )
    return plugin


def _part(directory: Path, module: str) -> ModuleType:
    """A module of the family that runs the model in `directory`; imported now."""
    if (package := scheme(directory)) is None:
        if plugin := _plugin(directory):
            return plugins.part(plugin, module)
        package = FAMILIES.get(pipeline_class(directory), GENERIC)
    return importlib.import_module(f"{package}.{module}")


def verify(directory: Path) -> None:
    """Let a plug-in check the files of its model, if its `spec` has a `verify(directory)`."""
    if (plugin := _plugin(directory)) and hasattr(spec := plugins.part(plugin, "spec"), "verify"):
        spec.verify(directory)


def load_capabilities(config: EngineConfig) -> Capabilities:
    """What of the configured model can be shared out over ranks; reads JSON files only."""
    directory = model_directory(config.model.model_path)
    capabilities: Capabilities = _part(directory, "spec").capabilities(directory)
    return capabilities


def load_card(config: EngineConfig) -> ModelCard:
    """The card of the configured model in the configured layout; reads JSON files only.

    Raises `ConfigError` if there is no such model, or it cannot run in that layout.
    """
    directory = model_directory(config.model.model_path)
    spec = _part(directory, "spec")
    layout = complete(config.parallel)
    capabilities = spec.capabilities(directory)
    check(layout, capabilities)
    vaes.check(config.parallel.vae_parallel, vaes.read(directory))
    _check_backend(config, capabilities)
    _check_compiled(config, layout)
    _check_cached(config.model, capabilities)
    overrides = CardOverrides.read(directory)
    name = config.model_name if config.model.served_model_name else overrides.name
    card: ModelCard = spec.card(directory, name or config.model_name)
    card = overrides.apply(card)
    even = layout.even or config.parallel.sequence_parallel_backend == "xfuser"
    card = served.offered(card, config.model)
    alone = config.model.step_cache != "none"
    return msgspec.structs.replace(card, alone=alone, shards=layout.sp, even_shards=even)


def load_cards(config: EngineConfig) -> tuple[EngineConfig, dict[str, ModelCard]]:
    """The cards of all models by name, and the configuration with the models called so.

    Raises `ConfigError` if one of them cannot run as configured.
    """
    cards = [load_card(config.of(entry.name)) for entry in config.entries]
    names = [card.name for card in cards]
    if len(set(names)) < len(names):
        raise ConfigError(f"Two models have one name ({', '.join(names)}): give each its own.")
    entries = tuple(
        msgspec.structs.replace(entry, name=name, model=_called(entry.model, name))
        for entry, name in zip(config.entries, names, strict=True)
    )
    if config.served:
        config = msgspec.structs.replace(config, served=entries)
    else:
        config = msgspec.structs.replace(config, model=entries[0].model)
    return config, dict(zip(names, cards, strict=True))


def _called(model: ModelConfig, name: str) -> ModelConfig:
    return msgspec.structs.replace(model, served_model_name=name)


def _check_backend(config: EngineConfig, model: Capabilities) -> None:
    """Raise `ConfigError` if what shall compute the attention cannot."""
    backend = config.parallel.sequence_parallel_backend
    reason = providers.refusal(backend, config.model.device)
    if not reason and backend == "xfuser" and model.masked:
        reason = (
            f"--sequence-parallel-backend xfuser: {model.transformer} takes an attention mask, "
            "which it ignores; use --sequence-parallel-backend diffusers"
        )
    if reason:
        raise ConfigError(reason, param="sequence_parallel_backend")


def _check_compiled(config: EngineConfig, layout: Layout) -> None:
    """Raise `ConfigError` if blocks shall be compiled that talk to other ranks."""
    if config.model.enable_torch_compile and layout.sp > 1:
        raise ConfigError(
            "--enable-torch-compile does not work where ranks share a sequence "
            f"({layout.flags()}). Leave it out, or use --dp-size for replicas.",
            param="enable_torch_compile",
        )


def _check_cached(model: ModelConfig, capabilities: Capabilities) -> None:
    """Raise `ConfigError` if a step cache is asked for, and the model runs without any."""
    if model.step_cache != "none" and not capabilities.cached:
        known = ", ".join(name for name in plans.TRANSFORMERS if plans.cached(name))
        raise ConfigError(
            f"--step-cache {model.step_cache} is not for {capabilities.transformer} here; families "
            f"with {known} have it. Leave it out.",
            param="step_cache",
        )


def load_family(config: EngineConfig, mesh: Mesh | None = None) -> Family:
    """This rank's part of the configured model, on its device; without a mesh, the whole of it."""
    if mesh is None:
        from safelight.models.loading import device_of
        from safelight.parallel.mesh import Mesh

        mesh = Mesh.single(device_of(config.model))
    directory = model_directory(config.model.model_path)
    family: Family = _part(directory, "adapter").load(directory, config, mesh)
    return family
