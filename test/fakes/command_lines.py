"""The real command line up to the start: what it makes of arguments, variables and files."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from fakes import zoo, zoo_flux, zoo_qwen, zoo_wan
from fakes.cases import Checkpoints
from safelight.cli import app, generate, serve
from safelight.config import EngineConfig
from safelight.models.registry import load_cards

MAKERS = {
    "flux": zoo_flux.tiny_flux,
    "qwen": zoo_qwen.tiny_qwen,
    "qwen_edit": zoo_qwen.tiny_edit,
    "wan": zoo.tiny_wan,
    "wan22": zoo_wan.tiny_a14b,
}


def models(checkpoints: Checkpoints) -> dict[str, str]:
    """The tiny checkpoints by the names that stand for them in the data."""
    return {name: str(checkpoints.made(make)) for name, make in MAKERS.items()}


def missing(package: str | None) -> str | None:
    """Its name if it is not installed: what a refusal then says."""
    return package if package and importlib.util.find_spec(package) is None else None


def with_heads(source: str, directory: Path, heads: int) -> str:
    """A copy whose configuration has so many attention heads: what layouts are judged by."""
    copy = Path(shutil.copytree(source, directory))
    path = copy / "transformer" / "config.json"
    values = json.loads(path.read_text("utf-8")) | {"num_attention_heads": heads}
    path.write_text(json.dumps(values), "utf-8")
    return str(copy)


@dataclass
class Started:
    """What would have been started."""

    config: EngineConfig
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def setting(self, path: str) -> Any:
        """`server.port`, or `sampling.seed`."""
        section, _, name = path.partition(".")
        if section == "sampling":
            return self.sampling[name]
        return getattr(getattr(self.config, section), name)


@contextmanager
def recorded() -> Iterator[list[Started]]:
    """`serve` and `generate` check everything as ever, and then start nothing."""
    seen: list[Started] = []

    def take(config: EngineConfig, sampling: Any = None, options: Any = None) -> int:
        load_cards(config)
        seen.append(Started(config, sampling or {}))
        return 0

    with mock.patch.object(serve, "serve", take), mock.patch.object(generate, "generate", take):
        yield seen


def run(arguments: list[str]) -> tuple[int, list[Started]]:
    """The exit status, and what would have been started; errors are on standard error."""
    with recorded() as seen:
        return app.run(arguments), seen


def written(directory: Path, values: Mapping[str, Any]) -> Path:
    """A config file."""
    path = directory / "config.json"
    path.write_text(json.dumps(values))
    return path
