"""Which file is meant where an administrator names an adapter: a file, a directory, a hub id.

Needs no torch: of the file its header is read, no more. Pickles are never read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from safelight.config import LoraConfig
from safelight.errors import ConfigError, InvalidRequest, RequestError
from safelight.models import checkpoint, hub, hub_files

STANDARD = "pytorch_lora_weights.safetensors"
"""What diffusers calls the file, and loads of a directory with several."""
SUFFIX = ".safetensors"
MAX_HEADER = 16 * 2**20
"""Bytes; those of real adapters have a hundredth of it."""

_CONVERT = (
    "reading such files can run code that is hidden in them. Convert it where you trust it, with "
    "diffusers' save_lora_weights(..., safe_serialization=True)"
)


def locate(path: str, file: str | None = None, *, param: str = "lora_path") -> Path:
    """The safetensors file that `path` means: itself, or `file` (or the only one) of a directory or
    of a repository on the hub, downloaded if it is not in the cache.

    Raises `InvalidRequest` or `Unavailable`, saying what would fit.
    """
    try:
        local = Path(path).expanduser()
        if local.is_file():
            return local.absolute()
        if local.is_dir():
            return (local / chosen(path, _names(local), file, param=param)).absolute()
    except (OSError, ValueError, RuntimeError) as failure:  # too long, or of a user unknown
        raise InvalidRequest(f"{path!r:.200} is no path: {failure}.", param=param) from failure
    if not hub.is_id(path):
        raise InvalidRequest(
            f"There is no {path!r:.200}: give a .safetensors file, a directory with one, or a hub "
            "id (org/name).",
            param=param,
        )
    return hub_files.fetch(path, lambda names: chosen(path, names, file, param=param), param=param)


def _names(directory: Path) -> list[str]:
    return sorted(one.name for one in directory.iterdir() if one.is_file())


def chosen(where: str, names: Iterable[str], file: str | None, *, param: str) -> str:
    """Which of the files of a directory or repository is meant. Raises `InvalidRequest`."""
    names = list(names)
    usable = [name for name in names if name.endswith(SUFFIX)]
    if file is not None and file in names:
        return file
    if file is None and STANDARD in usable:
        return STANDARD
    if file is None and len(usable) == 1:
        return usable[0]
    if file is None and not usable and any(n.endswith(checkpoint.PICKLES) for n in names):
        pickle = next(name for name in names if name.endswith(checkpoint.PICKLES))
        raise InvalidRequest(f"{where}/{pickle} is not safetensors: {_CONVERT}.", param=param)
    has = f"it has {', '.join(usable[:20])}" if usable else "it has no .safetensors file"
    what = f"There is no {file!r:.100} in {where}" if file else f"{where} is not one adapter"
    raise InvalidRequest(f"{what}: {has}. Name one of its files.", param=param)


def check(path: Path, *, param: str = "lora_path") -> None:
    """Raise `InvalidRequest` unless it is a whole safetensors file with LoRA weights."""
    if path.suffix in checkpoint.PICKLES:
        raise InvalidRequest(f"{path} is not safetensors: {_CONVERT}.", param=param)
    if path.suffix != SUFFIX:
        raise InvalidRequest(f"{path} is not a .safetensors file, as adapters are.", param=param)
    try:
        _check_length(path)
        tensors = checkpoint.safetensors_header(path)
    except ConfigError as failure:
        raise InvalidRequest(failure.message, param=param) from failure
    if not any("lora" in name.lower() or "dora_scale" in name for name in tensors):
        some = ", ".join(sorted(tensors)[:3]) or "none"
        raise InvalidRequest(
            f"{path} has no LoRA weights: none of its tensors ({some}, …) has 'lora' in its name.",
            param=param,
        )


def _check_length(path: Path) -> None:
    """That the header is no longer than one would read; the rest is `safetensors_header`'s."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as failure:
        raise ConfigError(f"{path} cannot be read: {failure.strerror}.") from failure
    if len(start) == 8 and not start.startswith(b"version ") and _header_bytes(start) > MAX_HEADER:
        raise ConfigError(
            f"{path} is not the safetensors file of an adapter: its header would have "
            f"{_header_bytes(start)} bytes, at most {MAX_HEADER} are read."
        )


def _header_bytes(start: bytes) -> int:
    length: int = struct.unpack("<Q", start)[0]
    return length


# --------------------------------------------------------------------------- the catalog directory


def catalog(directory: Path) -> dict[str, Path]:
    """The adapters of a directory by name: each .safetensors file in it by its stem, and each
    directory in it that has one by its own name. Raises `OSError`."""
    found = {}
    for entry in sorted(directory.expanduser().iterdir()):
        if entry.suffix == SUFFIX and entry.is_file():
            found[entry.stem] = entry
        elif entry.is_dir() and (inner := _inside(entry)) is not None:
            found.setdefault(entry.name, inner)
    return found


def _inside(directory: Path) -> Path | None:
    """The adapter of a directory in the catalog; None if it is not exactly one."""
    try:
        return directory / chosen(str(directory), _names(directory), None, param="lora_dir")
    except RequestError:
        return None


def names_at_start(settings: LoraConfig) -> set[str]:
    """Every adapter that the settings bring. Raises `ConfigError` for an unreadable directory."""
    names = set()
    if settings.lora_path is not None:
        names.add(settings.lora_nickname or name_of(settings.lora_path, settings.lora_name))
    if settings.lora_dir is not None:
        try:
            names |= catalog(Path(settings.lora_dir)).keys()
        except OSError as failure:
            raise ConfigError(
                f"--lora-dir {settings.lora_dir} cannot be read: {failure.strerror}.",
                param="lora_dir",
            ) from failure
    return names


def name_of(path: str, file: str | None) -> str:
    """How an adapter is called to which nobody gave a name."""
    if file is not None:
        return file.removesuffix(SUFFIX)
    if hub.is_id(path) and not Path(path).expanduser().exists():
        return path
    own = Path(path).expanduser().absolute()
    return own.parent.name if own.name == STANDARD else own.name.removesuffix(SUFFIX)
