"""What of a model adapters can change, as far as its files tell."""

from __future__ import annotations

import msgspec

from safelight.config import EngineConfig
from safelight.errors import InvalidRequest
from safelight.models import checkpoint, sources
from safelight.models.registry import model_directory, scheme
from safelight.request import Adapter

_WITH_LAYERS = ("transformer", "unet", "text_encoder")
_EVERYTHING = "all"


class Adaptable(msgspec.Struct, frozen=True, kw_only=True):
    """One model; the sentences are for people."""

    model: str
    components: tuple[str, ...] = ()
    """Those that adapters can change; empty where only the model's own code knows."""
    refusal: str | None = None
    """Why it takes no adapters."""
    unmergeable: str | None = None
    """Why they cannot be merged into its weights."""

    def check(self, adapter: Adapter, *, param: str) -> None:
        """Raise `InvalidRequest` unless it takes adapters, and has the component that is meant."""
        self.check_able()
        self.check_target(adapter.target, param=param)

    def check_able(self) -> None:
        """Raise `InvalidRequest` if it takes no adapters."""
        if self.refusal is not None:
            raise InvalidRequest(self.refusal, param="model", code="unsupported_parameter")

    def check_target(self, target: str, *, param: str) -> None:
        """Raise `InvalidRequest` unless it has that component."""
        if target == _EVERYTHING or not self.components or target in self.components:
            return
        raise InvalidRequest(
            f"'{param}': {self.model} has no {target!r:.80} to apply an adapter to; it has "
            f"{', '.join(self.components)}, or {_EVERYTHING}.",
            param=param,
        )


def adaptable(config: EngineConfig) -> Adaptable:
    """Of the one model of `config`; reads JSON files only."""
    name, model = config.model_name, config.model
    if scheme(model.model_path):
        return Adaptable(
            model=name, refusal=f"{name} runs elsewhere: adapters cannot be applied to it."
        )
    index = model_directory(model.model_path) / "model_index.json"
    if not index.is_file():
        return Adaptable(model=name)
    found = [component for component, _, _ in checkpoint.components(checkpoint.read_json(index))]
    ordered = [one for kind in _WITH_LAYERS for one in found if one.startswith(kind)]
    return Adaptable(
        model=name,
        components=tuple(ordered),
        unmergeable=_unmergeable(config),
    )


def _unmergeable(config: EngineConfig) -> str | None:
    name, model = config.model_name, config.model
    packed = [path for path in sources.files(model).values() if checkpoint.is_gguf(path)]
    if model.quantization == "none" and not packed:
        return None
    how = f"--quantization {model.quantization}" if not packed else packed[0].name
    return (
        f"The weights of {name} are quantized ({how}), and nothing can be merged into them; its "
        "adapters are in force unmerged, with set_lora."
    )
