"""Whether the files of a model are all there and whole, found before anything is started.

Reads JSON files and the headers of weights only, so a broken checkpoint of any size is refused at
once, with one sentence that names the file and what to do. Needs no torch.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from safelight.errors import ConfigError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
"""Weights in formats that can carry code, or that nothing here reads."""

_STEMS = ("diffusion_pytorch_model", "model")
_LFS = b"version https://git-lfs"
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}
_AGAIN = "Fetch it again"
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
"""Of a component, a module or a class."""


class Tensor(msgspec.Struct, frozen=True):
    """An entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def broken(path: Path, what: str, remedy: str) -> ConfigError:
    """The one sentence about a file and the one about what to do."""
    return ConfigError(f"{path} {what}. {remedy}.", param="model_path")


# ------------------------------------------------------------------------------------ the pipeline


def verify(
    directory: Path,
    elsewhere: Mapping[str, Path] | None = None,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Check the pipeline in `directory`. Raises `ConfigError` naming the file and the remedy.

    `elsewhere`: components that are taken from another directory, or whose weights are in one file;
    of the latter `directory` needs the configuration only.
    """
    elsewhere = elsewhere or {}
    index = read_json(directory / "model_index.json")
    _check_pipeline(directory, index)
    for name, library, kind in components(index):
        path = elsewhere.get(name)
        folder = path if path is not None and path.is_dir() else directory / name
        if not folder.is_dir():
            raise broken(folder, f"is missing: model_index.json keeps {kind} there", _AGAIN)
        _check_class(directory, folder, library, kind, trust_remote_code)
        _check_settings(folder, name, kind)
        if path is not None and path != folder:
            verify_file(path)
        elif has_weights(name, kind):
            verify_weights(folder)


def components(index: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(name, library, class) of the components a `model_index.json` names."""
    for name, entry in index.items():
        pair = isinstance(entry, list) and len(entry) == 2
        if not name.startswith("_") and pair and entry[0] and isinstance(entry[0], str):
            yield name, entry[0], str(entry[1])


def has_weights(name: str, kind: str) -> bool:
    """Whether a component of this name and class is a model with weights."""
    return name.startswith(
        ("transformer", "text_encoder", "vae", "unet", "image_encoder", "prior", "decoder")
    ) or kind.endswith(("Model", "ModelWithProjection", "ForConditionalGeneration"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `ConfigError` if it is missing or broken."""
    try:
        data = path.read_bytes()
    except OSError as failure:
        raise broken(path, f"cannot be read: {failure.strerror}", _AGAIN) from failure
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as failure:
        what, remedy = _content(data, f"is not a JSON object: {failure}")
        raise broken(path, what, remedy) from failure


def _content(data: bytes, otherwise: str) -> tuple[str, str]:
    """What is wrong with a file that begins like this, and what to do."""
    if data.startswith(_LFS):
        return "is a git-lfs pointer, not the file itself", "Run git lfs pull in that directory"
    if not data:
        return "is empty", _AGAIN
    return otherwise, _AGAIN


def _check_pipeline(directory: Path, index: Mapping[str, Any]) -> None:
    path, name = directory / "model_index.json", index.get("_class_name")
    if isinstance(name, list):
        what = f"names a pipeline of its own, {name[-1]}, which would run code from the model"
        raise broken(path, what, "Take a checkpoint of one of diffusers' pipelines")
    if not isinstance(name, str):
        raise broken(path, "names no pipeline class (_class_name)", _AGAIN)
    for key, entry in index.items():
        if not key.startswith("_") and not _harmless(key, entry):
            what = f"has an entry that no pipeline writes: {key!r:.40}: {entry!r:.60}"
            raise broken(path, what, "Take the model from where it comes from")


def _harmless(name: str, entry: Any) -> bool:
    """Whether an entry of `model_index.json` is what `save_pretrained` writes: library and class of
    a component under a plain name, or a setting that nobody takes for a component."""
    if isinstance(entry, list) and len(entry) == 2 and not all(isinstance(x, int) for x in entry):
        named = entry == [None, None] or all(isinstance(part, str) for part in entry)
        return (
            named
            and _NAME.fullmatch(name) is not None
            and (entry[0] is None or all(_NAME.fullmatch(part) for part in entry))
        )
    # What unpacks into two parts is taken for a component.
    return not (isinstance(entry, str | dict) and len(entry) == 2)


def _check_settings(folder: Path, name: str, kind: str) -> None:
    """The component's JSON files: those that are needed are there, and all can be read."""
    if has_weights(name, kind):
        read_json(folder / "config.json")
    elif kind.endswith("Scheduler"):
        read_json(folder / "scheduler_config.json")
    elif not any(folder.iterdir()):
        raise broken(folder, f"is empty: the files of {kind} belong there", _AGAIN)
    for path in folder.glob("*config.json"):
        read_json(path)


# --------------------------------------------------------------------------------------- the class


def _check_class(
    directory: Path, folder: Path, library: str, kind: str, trust_remote_code: bool
) -> None:
    code = folder / f"{library}.py"
    if code.is_file():
        if not trust_remote_code:
            what = f"is Python code that came with the model, needed for {kind}"
            raise broken(code, what, "If you have read and trust it, add --trust-remote-code")
        return
    index = directory / "model_index.json"
    if library in ("diffusers", "transformers"):
        if not _has_word(library, kind):
            found = f"{library} {importlib.metadata.version(library)}"
            what = f"names the class {kind} for {folder.name}, which {found} does not have"
            raise broken(index, what, "Check the name, or use a Safelight that supports it")
    elif not (_package("diffusers") / "pipelines" / library).is_dir() and not _installed(library):
        what = f"names {library}.{kind} for {folder.name}, and there is no module {library}"
        raise broken(index, what, "Check the name, or install what the model's page asks for")


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def _package(name: str) -> Path:
    """Where a library's sources are; it is not imported."""
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def _has_word(library: str, name: str) -> bool:
    """Whether a class of this name can be in the library, by its sources.

    The lists that name nearly all of them first; then, rarely, every file; then the old names for
    which diffusers knows new ones. What transformers derives ("...Fast") counts by its origin.
    """
    root = _package(library)
    word = re.compile(rf"\b{re.escape(name.removesuffix('Fast'))}(Fast)?\b".encode())
    first = [root / "__init__.py", *sorted((root / "models" / "auto").glob("*_auto.py"))]
    renamed = (_package("diffusers") / "utils").glob("*.py")
    places = itertools.chain(first, root.rglob("*.py"), renamed)
    return any(word.search(path.read_bytes()) for path in places)


# ------------------------------------------------------------------------------------- the weights


def verify_weights(folder: Path) -> None:
    """Check the weights of a component. Raises `ConfigError`."""
    files = weight_files(folder)
    if not files:
        raise _no_weights(folder)
    found = {path: safetensors_header(path) for path in files}
    for name, file in _weight_map(folder).items():
        if name not in found[folder / file]:
            raise broken(folder / file, f"lacks {name}, which the index says is in it", _AGAIN)


def weight_files(folder: Path) -> list[Path]:
    """What is loaded of a component: its one file or those of its index, not those of variants,
    which may lie beside them. Empty if it has no weights."""
    for stem in _STEMS:
        if (single := folder / f"{stem}.safetensors").is_file():
            return [single]
    return [folder / name for name in sorted(set(_weight_map(folder).values()))]


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> file, of a component in several files; empty for one in a single file."""
    for stem in _STEMS:
        if (folder / f"{stem}.safetensors").is_file():
            return {}
        if (index := folder / f"{stem}.safetensors.index.json").is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise broken(index, "has no weight_map", _AGAIN)
            for file in shards.values():
                if Path(str(file)).name != file or not str(file).endswith(".safetensors"):
                    what = f"names {file!r:.60}, which is not a safetensors file beside it"
                    raise broken(index, what, "Take the model from where it comes from")
            return {str(name): str(file) for name, file in shards.items()}
    return {}


def _no_weights(folder: Path) -> ConfigError:
    """Why a component has none, as far as its other files tell."""
    names = sorted(path for path in folder.iterdir() if path.is_file())
    if pickles := [path for path in names if path.suffix in PICKLES]:
        return pickled(pickles[0])
    if variants := [path for path in names if path.suffix == ".safetensors"]:
        what = "is not a name that is loaded, and there are no other weights beside it"
        return broken(variants[0], what, f"Rename it to {_stem(folder)}.safetensors if it is whole")
    return broken(folder / f"{_stem(folder)}.safetensors", "is missing", _AGAIN)


def _stem(folder: Path) -> str:
    """What the file should be called: diffusers' models name their class in their config."""
    return _STEMS[0] if "_class_name" in read_json(folder / "config.json") else _STEMS[1]


def pickled(path: Path) -> ConfigError:
    """The refusal of weights that can carry code."""
    return broken(
        path,
        "is not safetensors: reading such files can run code that is hidden in them",
        "Fetch the safetensors version, or convert it where you trust it: "
        "save_pretrained(safe_serialization=True)",
    )


def safetensors_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, which is checked to be as long as they are. Raises `ConfigError`.

    The header is JSON behind a length of eight bytes.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            data = file.read(min(length, size))
    except OSError as failure:
        raise broken(path, f"cannot be read: {failure.strerror}", _AGAIN) from failure
    if len(start) < 8 or start == _LFS[:8]:
        found = start if len(start) < 8 else _LFS
        raise broken(path, *_content(found, "is not a safetensors file: it is too short"))
    if len(data) < length and data[:1] == b"{":
        raise _cut(path, size, 8 + length)
    try:
        raw = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(entry, type=Tensor) for name, entry in raw.items()}
    except (ValueError, msgspec.DecodeError) as failure:
        raise broken(path, f"is not a safetensors file: {failure}", _AGAIN) from failure
    _check_ranges(path, tensors, 8 + length, size)
    return tensors


def _check_ranges(path: Path, tensors: Mapping[str, Tensor], start: int, size: int) -> None:
    """The tensors lie one behind the other, from `start` to the end of the file."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        first, last = tensor.data_offsets
        bits = _BITS.get(tensor.dtype)
        if first != end or (bits and (last - first) * 8 != tensor.elements * bits):
            raise broken(path, f"is not a safetensors file: {name} has a wrong place", _AGAIN)
        end = last
    if start + end > size:
        raise _cut(path, size, start + end)
    if start + end < size:
        raise broken(path, f"has {size - start - end} bytes too many", _AGAIN)


def _cut(path: Path, found: int, expected: int) -> ConfigError:
    return broken(path, f"is cut short: it has {found} bytes of {expected}", _AGAIN)


# ----------------------------------------------------------------------------------- single files


def verify_file(path: Path) -> None:
    """Check a component's one file: safetensors or GGUF. Raises `ConfigError`."""
    if path.suffix in PICKLES:
        raise pickled(path)
    if is_gguf(path):
        gguf_tensors(path)
    else:
        safetensors_header(path)


def is_gguf(path: Path) -> bool:
    return path.suffix == ".gguf"


def gguf_tensors(path: Path) -> Sequence[tuple[str, int, int]]:
    """(name, elements, bytes) of each tensor of a GGUF file. Raises `ConfigError`."""
    import gguf

    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as failure:
        raise broken(path, f"cannot be read: {failure.strerror}", _AGAIN) from failure
    if not start.startswith(b"GGUF"):
        raise broken(path, *_content(start, "is not a GGUF file: it does not begin with GGUF"))
    try:
        tensors = gguf.GGUFReader(path).tensors
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as failure:
        what = f"is not a whole GGUF file: {failure}"
        raise broken(path, what, _AGAIN) from failure
    return [(tensor.name, int(tensor.n_elements), int(tensor.n_bytes)) for tensor in tensors]
