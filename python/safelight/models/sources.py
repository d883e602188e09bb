"""What a model is put together from: a directory, a hub id, and other components in place of some.

`resolve` runs once, in the process that starts the others, so that these see one local directory.
Needs no torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec

from safelight.config import EngineConfig, ModelConfig, Precision
from safelight.errors import ConfigError
from safelight.models import checkpoint, hub
from safelight.models.card import CardOverrides

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")


Downloading = Callable[[str], AbstractContextManager[hub.Progress | None]]
"""Shows the download of the model of that name while it is entered."""


def _silently(model: str) -> AbstractContextManager[hub.Progress | None]:
    return nullcontext()


def prepare(config: EngineConfig, downloading: Downloading | None = _silently) -> EngineConfig:
    """`config` with every model resolved. Without `downloading` nothing is fetched."""
    if not config.served:
        return msgspec.structs.replace(config, model=resolve(config.model, downloading))
    served = [
        msgspec.structs.replace(entry, model=resolve(entry.model, downloading))
        for entry in config.served
    ]
    return msgspec.structs.replace(config, served=tuple(served))


def resolve(model: ModelConfig, downloading: Downloading | None = _silently) -> ModelConfig:
    """`model` with everything in local files, checked to be whole.

    Its `model_path` is then a directory; components in single files are in `component`. Downloads
    what is on the hub and not in the cache. Resolving it again changes nothing. Raises
    `ConfigError`, or `Unavailable` if the hub cannot be reached.
    """
    from safelight.models import registry

    refuse_contradictions(model)
    if registry.scheme(model.model_path):
        return model  # nothing of it is here
    directory = registry.model_directory(_local(model, downloading))
    given = components(model)
    if registry.named_family(directory) is None:
        _check_pipeline(directory, model, given)
    else:
        _refuse_changes(model, given)
    registry.verify(directory)
    folders = {name: path for name, path in given.items() if path.is_dir()}
    if folders:
        directory = linked(directory, folders)
    elif model.model_path.startswith("builtin:"):
        directory = Path(model.model_path)
    return msgspec.structs.replace(
        model,
        model_path=str(directory),
        served_model_name=model.served_model_name or _name(model.model_path, directory),
        revision=None,
        transformer_path=None,
        vae_path=None,
        text_encoder_path=None,
        component=[f"{name}={path}" for name, path in given.items() if name not in folders],
    )


def _check_pipeline(directory: Path, model: ModelConfig, given: Mapping[str, Path]) -> None:
    """Raise `ConfigError` unless it is whole and has what shall be exchanged or quantized."""
    if model.quantization != "none":
        _check_transformer(directory, model.quantization)
    for name, path in given.items():
        _check_component(directory, name, path)
    checkpoint.verify(directory, given, trust_remote_code=model.trust_remote_code)


def _refuse_changes(model: ModelConfig, given: Mapping[str, Path]) -> None:
    """Of a model with its own code nobody here knows the components. Raises `ConfigError`."""
    quantized = model.quantization != "none"
    if given or quantized:
        flag = f"--quantization {model.quantization}" if quantized else f"--component {min(given)}"
        raise ConfigError(
            f"{flag}: '{model.model_path}' is a model with its own code, whose components cannot "
            "be exchanged or quantized. Leave it out.",
            param="quantization" if quantized else "component",
        )


def _local(model: ModelConfig, downloading: Downloading | None) -> str:
    """The path of the model's own directory, downloaded if need be."""
    path = model.model_path
    if path.startswith("builtin:") or Path(path).expanduser().is_dir() or not hub.is_id(path):
        if model.revision is not None:
            raise ConfigError(
                f"--revision {model.revision}: '{path}' is local, and has no revisions.",
                param="revision",
            )
        return path
    if (found := hub.cached(path, model.revision)) is None and downloading is not None:
        with downloading(path) as on_progress:
            found = hub.fetch(path, model.revision, on_progress)
    if found is None:
        raise ConfigError(
            f"{path} is not, or not wholly, in the local cache. Fetch it with 'safelight pull "
            f"{path}{f' --revision {model.revision}' if model.revision else ''}'.",
            param="model_path",
        )
    return str(found)


def _name(model_path: str, directory: Path) -> str:
    """What the model is called: as it says itself, else by the path that was given."""
    path = model_path.removeprefix("builtin:")
    return CardOverrides.read(directory).name or Path(path).name or directory.name


def refuse_contradictions(model: ModelConfig) -> None:
    """Raise `ConfigError` for a quantization that cannot be."""
    if model.quantization in ("int8", "fp8") and importlib.util.find_spec("torchao") is None:
        raise ConfigError(
            f"--quantization {model.quantization} needs torchao: pip install "
            "'safelight[quantization]', or take --quantization fp8-storage.",
            param="quantization",
        )
    if model.quantization == "none":
        return
    for path in components(model).values():
        if checkpoint.is_gguf(path):
            raise ConfigError(
                f"--quantization {model.quantization} and {path} are two quantizations of the "
                "transformer. Give one of them.",
                param="quantization",
            )


def _check_transformer(directory: Path, quantization: str) -> None:
    index = checkpoint.read_json(directory / "model_index.json")
    if not any(name.startswith("transformer") for name, _, _ in checkpoint.components(index)):
        raise ConfigError(
            f"--quantization {quantization} is of transformers, and {directory} has none. Leave it "
            "out.",
            param="quantization",
        )


# -------------------------------------------------------------------------------- other components


def components(model: ModelConfig) -> dict[str, Path]:
    """The components to be taken from elsewhere, by name. Raises `ConfigError`."""
    named = {
        "transformer": model.transformer_path,
        "vae": model.vae_path,
        "text_encoder": model.text_encoder_path,
    }
    found = {name: path for name, path in named.items() if path is not None}
    for entry in model.component:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise ConfigError(
                f"--component: NAME=PATH is needed, got {entry!r}.", param="component"
            )
        if found.setdefault(name, path) != path:
            raise ConfigError(f"The component {name} is given twice.", param="component")
    return {name: Path(path).expanduser().resolve() for name, path in found.items()}


def files(model: ModelConfig) -> dict[str, Path]:
    """The components whose weights are in one file."""
    return {name: path for name, path in components(model).items() if not path.is_dir()}


def _check_component(directory: Path, name: str, path: Path) -> None:
    index = checkpoint.read_json(directory / "model_index.json")
    names = [found for found, _, _ in checkpoint.components(index)]
    if name not in names:
        raise ConfigError(
            f"--component {name}: the model has none of that name, but {', '.join(names)}.",
            param="component",
        )
    if not path.exists():
        raise ConfigError(
            f"There is no {path}, which was given for {name}. Give a directory, or for a "
            "transformer one .safetensors or .gguf file.",
            param="component",
        )
    if not path.is_dir() and not name.startswith(("transformer", "unet")):
        raise ConfigError(
            f"{path} is one file; only transformers are read from those. Give {name} a directory "
            "as save_pretrained writes it.",
            param="component",
        )


def linked(directory: Path, folders: Mapping[str, Path]) -> Path:
    """A directory of links to the pipeline in `directory`, with `folders` in place of its own.

    It is in the cache and named by what is in it, so it is made once and takes no space.
    """
    index = checkpoint.read_json(directory / "model_index.json")
    for name, folder in folders.items():
        index[name] = _library_and_class(folder, index[name])
    links = {path.name: str(path) for path in sorted(directory.iterdir())}
    links |= {name: str(folder) for name, folder in folders.items()}
    del links["model_index.json"]
    contents = json.dumps([index, sorted(links.items())], indent=2)
    name = hashlib.sha256(contents.encode()).hexdigest()[:32]
    target = cache_directory() / "linked" / name
    if not target.is_dir():
        _make(target, index, links)
    return target


def _library_and_class(folder: Path, usual: list[str]) -> list[str]:
    """What a component is: a model of diffusers says so itself, and one of transformers may be read
    as another than it was saved as (an encoder of a whole T5)."""
    path = folder / "config.json"
    kind = checkpoint.read_json(path).get("_class_name") if path.is_file() else None
    return usual if kind is None else ["diffusers", str(kind)]


def _make(target: Path, index: Mapping[str, Any], links: Mapping[str, str]) -> None:
    """All at once, so that nobody sees a part of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        (new / "model_index.json").write_text(json.dumps(index, indent=2), "utf-8")
        for name, path in links.items():
            (new / name).symlink_to(path)
        new.rename(target)
    except FileExistsError:
        pass  # somebody else was faster
    finally:
        shutil.rmtree(new, ignore_errors=True)


def cache_directory() -> Path:
    """Where Safelight keeps what it can make again."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "safelight"


# --------------------------------------------------------------------------------------- precision


def precisions(model: ModelConfig, *, cuda: bool) -> dict[str, Precision]:
    """Precision by component, none of them "auto"; `default` is that of all others."""
    transformer = _or(model.dit_precision, "bf16" if cuda else "fp32")
    encoder = _or(model.text_encoder_precision, transformer)
    each = dict.fromkeys(ENCODERS, encoder)
    for name, precision in zip(ENCODERS, model.text_encoder_precisions, strict=False):
        each[name] = _or(precision, encoder)
    return {
        "transformer": transformer,
        "transformer_2": transformer,
        **each,
        "vae": _or(model.vae_precision, "fp32"),
        "image_encoder": "fp32",  # small, and what it sees is in everything
        "default": transformer,
    }


def _or(precision: Precision, default: Precision) -> Precision:
    return default if precision == "auto" else precision
