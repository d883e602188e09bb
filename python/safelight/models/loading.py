"""Reading a model's components: from files that fit, in their precision, onto their device."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.hooks import apply_group_offloading
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from safetensors import SafetensorError
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from safelight.config import EngineConfig, ModelConfig
from safelight.errors import ConfigError
from safelight.models import checkpoint, quantized, sources, tuning
from safelight.parallel import encoders
from safelight.parallel.mesh import Mesh
from safelight.parallel.tensor import load_encoder

P = TypeVar("P", bound=DiffusionPipeline)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

OnComponent = Callable[[str, int, int, int], None]
"""Called before a component is read: its name, its place, how many there are, bytes of files."""

_on_component: ContextVar[OnComponent | None] = ContextVar("on_component", default=None)
_SHAPES = re.compile(
    r"(?:because )?(?P<name>[\w.]+) (?:expected shape|has an expected shape of:?) "
    r"(?:torch\.Size\()?[\[(](?P<expected>[\d, ]*)[\])]+.*?torch\.Size\(\[(?P<found>[\d, ]*)\]\)"
)


@contextmanager
def reporting(on_component: OnComponent) -> Iterator[None]:
    """Within it, `load_pipeline` says which component it reads."""
    token = _on_component.set(on_component)
    try:
        yield
    finally:
        _on_component.reset(token)


def load_pipeline(
    kind: type[P], directory: Path, config: EngineConfig, mesh: Mesh, **components: Any
) -> P:
    """This rank's part of the pipeline in `directory`, on its device; safetensors only.

    Text encoders are shared out over the ranks as the mesh says. `components` replace those of the
    directory. Raises `ConfigError` if the weights do not fit the configurations beside them.
    """
    loader = _Loader(directory, config.model, mesh)
    loaded = {**loader.load(without=components), **components}
    with _explained(directory, "the pipeline"):
        pipeline: P = kind.from_pretrained(
            directory,
            dtype=loader.dtypes,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=config.model.trust_remote_code,
            **loaded,
        )
    place(pipeline.components, config.model, mesh.device)
    tuning.tune(pipeline.components, config.model, mesh.device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class _Loader:
    """Reads the components that have weights, one by one: a pipeline's own `from_pretrained` says
    neither where it is nor which weights the files lacked."""

    def __init__(self, directory: Path, model: ModelConfig, mesh: Mesh) -> None:
        self._directory = directory
        self._model = model
        self._mesh = mesh
        self._files = sources.files(model)
        self._shared, _ = encoders.survey(directory) if mesh.tp_mesh is not None else ({}, {})
        self.dtypes = dtypes_of(model, mesh.device)

    def load(self, *, without: Container[str]) -> dict[str, Any]:
        """The components that have weights, by name; the others are the pipeline's business."""
        found = [entry for entry in self._weighty() if entry[0] not in without]
        report = _on_component.get()
        loaded = {}
        for place, (name, library, kind) in enumerate(found, start=1):
            if report is not None:
                report(name, place, len(found), self._bytes(name))
            loaded[name] = self._component(name, _class(library, kind))
        return loaded

    def _weighty(self) -> Iterator[tuple[str, str, str]]:
        index = checkpoint.read_json(self._directory / "model_index.json")
        for name, library, kind in checkpoint.components(index):
            custom = (self._directory / name / f"{library}.py").is_file()
            if not custom and (name in self._files or self._weights(name)):
                yield name, library, kind

    def _weights(self, name: str) -> list[Path]:
        if (path := self._files.get(name)) is not None:
            return [path]
        return checkpoint.weight_files(self._directory / name)

    def _bytes(self, name: str) -> int:
        return sum(path.stat().st_size for path in self._weights(name))

    def _component(self, name: str, kind: Any) -> Any:
        dtype = self.dtypes.get(name, self.dtypes["default"])
        path = self._files.get(name)
        folder = self._directory / name
        with _explained(path or folder, name):
            if path is not None:
                model = quantized.single_file(kind, path, self._directory, name, dtype)
            elif name in self._shared:
                return load_encoder(self._directory, name, self._mesh, dtype, self._mesh.device)
            else:
                model = self._from_folder(name, kind, folder, dtype)
        if name.startswith("transformer"):
            quantized.store(model, self._model.quantization, dtype)
        return model

    def _from_folder(self, name: str, kind: Any, folder: Path, dtype: torch.dtype) -> Any:
        options: dict[str, Any] = {}
        if issubclass(kind, transformers.PreTrainedModel):
            # Told of them with the report below, instead of an error that does not name them.
            options["ignore_mismatched_sizes"] = True
        elif name.startswith("transformer") and (
            quantization := quantized.torchao(self._model.quantization)
        ):
            options["quantization_config"] = quantization
        model, report = kind.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
        _check(report, name, folder)
        return model


def _class(library: str, kind: str) -> Any:
    """The class of a component, as a pipeline finds it: nothing is imported because a model names
    it, which would run its code, but the libraries that components are read from."""
    module: Any = getattr(diffusers.pipelines, library, None)
    if library in LOADABLE_CLASSES:
        module = import_module(library)
    if module is None:
        raise ConfigError(
            f"model_index.json names {library}.{kind}, and components are read from diffusers and "
            "transformers only.",
            param="model_path",
        )
    found = getattr(module, kind, None)
    if found is None:
        raise ConfigError(f"{library} has no class {kind}, which model_index.json names.")
    return found


# ------------------------------------------------------------------------- weights that do not fit


def _check(report: Mapping[str, Any], name: str, folder: Path) -> None:
    """Refuse a model of which some weights were not in the files: they would be random."""
    for key, found, expected in sorted(report["mismatched_keys"]):
        raise _misshapen(name, folder, key, list(expected), list(found))
    if missing := sorted(report["missing_keys"]):
        raise _lacking(name, folder, missing)


def _misshapen(
    name: str, folder: Path, key: str, expected: Sequence[int], found: Sequence[int]
) -> ConfigError:
    return ConfigError(
        f"{_file(folder, key)}: {key} of {name} has the shape {_times(found)}, and its config.json "
        f"means {_times(expected)}. Fetch both again: they are of different models.",
        param="model_path",
    )


def _lacking(name: str, folder: Path, missing: Sequence[str]) -> ConfigError:
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return ConfigError(
        f"The weights of {name} in {folder} lack {missing[0]}{more}, which its config.json "
        "means to be there. Fetch both again: they are of different models.",
        param="model_path",
    )


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "scalar"


def _file(folder: Path, key: str) -> Path:
    """The file that has the tensor, if it is there by this name."""
    if folder.is_file():
        return folder
    files = checkpoint.weight_files(folder)
    return next((path for path in files if key in checkpoint.safetensors_header(path)), folder)


@contextmanager
def _explained(path: Path, name: str) -> Iterator[None]:
    """What diffusers, transformers and safetensors raise for files they cannot use, in one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError, SafetensorError) as e:
        if isinstance(e, torch.OutOfMemoryError):
            raise
        if found := _SHAPES.search(str(e)):
            expected, shape = (
                [int(size) for size in found[part].split(",") if size.strip()]
                for part in ("expected", "found")
            )
            raise _misshapen(name, path, found["name"], expected, shape) from e
        reason = " ".join(str(e).split())
        raise ConfigError(
            f"{path} cannot be loaded as {name}: {reason:.300} Fetch it again, or check that it is "
            "of this model.",
            param="model_path",
        ) from e


# ----------------------------------------------------------------------------- device and precision


def device_of(config: ModelConfig, local_rank: int = 0) -> torch.device:
    """The rank's device. Raises `ConfigError` if CUDA was asked for and is not there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda was asked for, but torch sees no CUDA device "
            f"(torch {torch.__version__}). Use --device cpu, or install a CUDA build of torch.",
            param="device",
        )
    kind = config.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        return torch.device("cpu")
    if local_rank >= (count := torch.cuda.device_count()):
        raise ConfigError(
            f"Rank {local_rank} has no GPU: torch sees {count}. Lower --num-gpus, or check "
            "--gpu-ids and CUDA_VISIBLE_DEVICES.",
            param="num_gpus",
        )
    # The first stays without its index: tensors of the one are then tensors of the other.
    return torch.device("cuda", local_rank) if local_rank else torch.device("cuda")


def place(components: Mapping[str, Any], config: ModelConfig, device: torch.device) -> None:
    """Move a pipeline's modules to `device`.

    With `text_encoder_cpu_offload` the text encoders stay in host memory, and each of their layers
    is on the device while it runs (diffusers' group offloading). On the CPU there is nothing to do.
    """
    for name, module in components.items():
        if not isinstance(module, torch.nn.Module):
            continue
        if config.text_encoder_cpu_offload and name.startswith("text_encoder"):
            offload(module, device, pin=config.pin_cpu_memory)
        else:
            module.to(device)


def offload(module: torch.nn.Module, device: torch.device, *, pin: bool = True) -> None:
    """Keep the weights in host memory, on `device` only what runs; `pin`: pinned from the start."""
    if device.type == "cpu":
        return
    apply_group_offloading(
        module,
        onload_device=device,
        offload_type="leaf_level",
        use_stream=True,
        low_cpu_mem_usage=not pin,
    )


def weight_bytes(components: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of parameters and buffers on this rank, by component."""
    return {
        name: sum(map(_held, (*module.parameters(), *module.buffers())))
        for name, module in components.items()
        if isinstance(module, torch.nn.Module)
    }


def _held(tensor: torch.Tensor) -> int:
    """Bytes; of a quantized tensor those of its parts, as it claims to be what it stands for."""
    if not is_traceable_wrapper_subclass(tensor):
        return tensor.nbytes
    parts, _ = tensor.__tensor_flatten__()
    return sum(_held(getattr(tensor, part)) for part in parts)


def dtypes_of(config: ModelConfig, device: torch.device) -> dict[str, torch.dtype]:
    """Precision by pipeline component, as `from_pretrained(dtype=...)` takes it."""
    found = sources.precisions(config, cuda=device.type == "cuda")
    return {name: _DTYPES[precision] for name, precision in found.items()}
