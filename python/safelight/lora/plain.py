"""Adapters of pipelines for which diffusers has no loader, but for their transformer."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.loaders import PeftAdapterMixin
from diffusers.loaders.lora_base import LoraBaseMixin
from safetensors.torch import load_file

PREFIXES = ("transformer", "diffusion_model")
"""What stands before the transformer's layers in files; nothing may, too."""


class PlainLoader:
    """The two methods of diffusers' loaders, for names as the transformer itself has them."""

    _lora_loadable_modules = ("transformer",)

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer

    def lora_state_dict(self, path: str, **options: Any) -> dict[str, torch.Tensor]:
        """The file's tensors, their names beginning with the component's."""
        state = load_file(path)
        prefix = _prefix(state)
        bare = {key.removeprefix(f"{prefix}."): tensor for key, tensor in state.items()}
        return {f"transformer.{key}": tensor for key, tensor in bare.items()}

    def load_lora_weights(self, path: str, *, adapter_name: str, **options: Any) -> None:
        self._transformer.load_lora_adapter(
            path, prefix=_prefix(load_file(path)), adapter_name=adapter_name, **options
        )


def _prefix(state: dict[str, torch.Tensor]) -> str | None:
    return next((p for p in PREFIXES if all(k.startswith(f"{p}.") for k in state)), None)


def loader_of(pipeline: Any) -> Any:
    """What loads adapters into a pipeline's components; None if nothing does."""
    if isinstance(pipeline, LoraBaseMixin):
        return pipeline
    transformer = pipeline.components.get("transformer")
    return PlainLoader(transformer) if isinstance(transformer, PeftAdapterMixin) else None
