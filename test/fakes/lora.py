"""Tiny LoRA files for the tiny checkpoints, and diffusers' own pipelines with them."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LoraBaseMixin
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from fakes import parity
from fakes.cases import Case, Checkpoints, Stepper
from fakes.parity import Settings, one_thread
from fakes.pipelines import CASES
from safelight.request import Adapter, SampleSpec

LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "q_proj", "out_proj", "proj_out", "ff.net.0.proj"]
"""Attention of most transformers, of CLIP, and what gathers a sequence that ranks share."""

ALPHA = 6  # is not the rank, so it must be read from the file


def write(
    checkpoint: Path,
    directory: Path,
    seed: int,
    parts: Sequence[str],
    *,
    rank: int = 4,
    layers: Sequence[str] = LAYERS,
    **options: Any,
) -> Path:
    """A LoRA of some components of a checkpoint, as diffusers saves it; the file.

    `options` are of peft's `LoraConfig`.
    """
    pipeline = DiffusionPipeline.from_pretrained(checkpoint)
    torch.manual_seed(seed)
    saved: dict[str, Any] = {}
    for name in parts:
        part = pipeline.components[name]
        config = LoraConfig(
            r=rank,
            lora_alpha=ALPHA,
            target_modules=list(layers),
            init_lora_weights=False,
            **options,
        )
        part.add_adapter(config)
        state = get_peft_model_state_dict(part)
        if name.startswith("text_encoder"):
            state = convert_state_dict_to_diffusers(state)
        saved |= {f"{name}_lora_layers": state, f"{name}_lora_adapter_metadata": _plain(config)}
    if isinstance(pipeline, LoraBaseMixin):
        type(pipeline).save_lora_weights(directory, **saved)
    else:
        _save(directory, *saved.values())
    return directory / "pytorch_lora_weights.safetensors"


def _save(directory: Path, layers: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """As `save_lora_weights` of a pipeline that had it."""
    directory.mkdir(parents=True)
    told = json.dumps({f"transformer.{key}": value for key, value in config.items()})
    save_file(
        {f"transformer.{key}": tensor for key, tensor in layers.items()},
        directory / "pytorch_lora_weights.safetensors",
        {"format": "pt", LORA_ADAPTER_METADATA_KEY: told},
    )


def _plain(config: LoraConfig) -> dict[str, Any]:
    values = {**config.to_dict(), "target_modules": sorted(config.target_modules)}
    return json.loads(json.dumps(values, default=str))


def adapter(path: Path, scale: float = 1.0, target: str = "all", name: str = "") -> Adapter:
    """As the manager resolves it."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Adapter(
        name=name or path.parent.name, scale=scale, target=target, path=str(path), digest=digest
    )


def changed(path: Path, to: Path, change: Mapping[str, torch.Tensor | None]) -> Path:
    """A file with some tensors replaced, added or left out."""
    tensors = {**load_file(path), **change}
    to.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value for key, value in tensors.items() if value is not None}, to)
    return to


@contextmanager
def upstream(adapters: Sequence[Adapter], *, twice: bool = False) -> Iterator[None]:
    """Within it every pipeline that diffusers loads has these adapters in force; `twice`: both
    experts have them."""
    original = DiffusionPipeline.from_pretrained.__func__  # type: ignore[attr-defined]

    def loading(kind: Any, *args: Any, **options: Any) -> Any:
        pipeline = original(kind, *args, **options)
        whole = isinstance(pipeline, LoraBaseMixin)
        model = pipeline if whole else pipeline.transformer
        load = model.load_lora_weights if whole else model.load_lora_adapter
        second = ({}, {"load_into_transformer_2": True}) if twice else ({},)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            for one in adapters:
                for where in second:
                    load(one.path, adapter_name=one.digest, use_safetensors=True, **where)
        if adapters:
            model.set_adapters([one.digest for one in adapters], [one.scale for one in adapters])
        return pipeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusers.DiffusionPipeline, "from_pretrained", classmethod(loading))
        yield


# -------------------------------------------------------------------------------- of the tiny zoo

PARTS = {
    "Wan 2.1": ("transformer",),
    "Wan 2.2 A14B": ("transformer",),
    "FLUX.1 dev": ("transformer", "text_encoder"),
    "FLUX.2": ("transformer",),
    "SDXL": ("unet", "text_encoder", "text_encoder_2"),
    "SD3": ("transformer", "text_encoder", "text_encoder_2"),
    "Qwen-Image": ("transformer",),
    "Z-Image": ("transformer",),
    "HunyuanVideo 1.5": ("transformer",),
    "LTX-2": ("transformer",),
    "CogView4": ("transformer",),
    "Stable Diffusion 1.5": ("unet", "text_encoder"),
}
"""The pipelines that adapters are tried with, and which components those change."""


def cases() -> list[Case]:
    """One text-to-something case of each of `PARTS`."""
    found: dict[str, Case] = {}
    for case in CASES:
        if case.name in PARTS and case.task.startswith("text"):
            found.setdefault(case.name, case)
    assert found.keys() == PARTS.keys()
    return list(found.values())


class Files:
    """LoRA files of the cases, each written when it is first needed."""

    def __init__(self, directory: Path, checkpoints: Checkpoints) -> None:
        self._directory = directory
        self._checkpoints = checkpoints

    def of(self, case: Case, letter: str) -> Path:
        """The LoRA `letter` of a case's pipeline."""
        where = self._directory / case.name.replace(" ", "-") / letter
        if not where.exists():
            write(self._checkpoints.of(case), where, ord(letter), PARTS[case.name])
        return where / "pytorch_lora_weights.safetensors"

    def adapter(self, case: Case, letter: str, scale: float = 1.0) -> Adapter:
        return adapter(self.of(case, letter), scale)


def difference(made: np.ndarray, expected: np.ndarray) -> float:
    """The largest; of the largest value, where that is above 1."""
    return float(np.abs(made - expected).max() / max(1.0, np.abs(expected).max()))


@one_thread()
@torch.inference_mode()
def in_turns(rank: int, settings: Settings, specs: Sequence[SampleSpec]) -> list[np.ndarray]:
    """Last latents of samples that take turns step by step; work for a rank of a pool."""
    stepper = Stepper(*parity._loaded(settings))
    stepper.begin(*specs)
    while waiting := [spec.id for spec in specs if stepper.left(spec.id)]:
        for name in waiting:
            stepper.step(name)
    sessions = [stepper.executor._sessions[spec.id] for spec in specs]
    return [session.latents.float().numpy().copy() for session in sessions]
