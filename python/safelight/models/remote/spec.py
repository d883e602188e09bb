"""The card of a remote model: what can be known without asking. Needs no torch.

A model path is ``remote:<protocol>/<model>[@<base url>]``, for example
``remote:openai/gpt-image-1`` or ``remote:gemini/gemini-2.5-flash-image``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safelight.errors import ConfigError, InvalidRequest
from safelight.models.card import NOTHING, ModelCard, Range
from safelight.parallel.layout import Capabilities
from safelight.request import Inputs, Sampling, Task

Protocol = Literal["openai", "gemini"]

_PATH = re.compile(r"remote:(?P<protocol>openai|gemini)/(?P<model>[^@\s]+)(@(?P<url>https?:/.+))?")
_HOSTS: dict[Protocol, str] = {
    "openai": "https://api.openai.com/v1",
    "gemini": "https://generativelanguage.googleapis.com/v1beta",
}
_KEYS: dict[Protocol, tuple[str, ...]] = {
    "openai": ("OPENAI_API_KEY",),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
}
_TASKS: dict[Protocol, tuple[Task, ...]] = {
    "openai": ("text-to-image", "image-to-image", "inpainting"),
    "gemini": ("text-to-image", "image-to-image"),
}


@dataclass(frozen=True)
class Upstream:
    """Where a remote model is."""

    protocol: Protocol
    model: str
    base_url: str

    @property
    def key_variables(self) -> tuple[str, ...]:
        """Environment variables that may hold the key; the first that is set does."""
        return _KEYS[self.protocol]


def upstream(path: Path) -> Upstream:
    """What a model path says. Raises `ConfigError` if it cannot be read."""
    found = _PATH.fullmatch(str(path))
    if found is None:
        raise ConfigError(
            f"'{path}' names no remote model: write remote:openai/MODEL or remote:gemini/MODEL, "
            "with @https://host/v1 behind it for another host.",
            param="model_path",
        )
    protocol: Protocol = "openai" if found["protocol"] == "openai" else "gemini"
    # A `Path` has made one slash of two.
    url = found["url"] and re.sub(r"^(https?:)/+", r"\1//", found["url"])
    return Upstream(protocol, found["model"], (url or _HOSTS[protocol]).rstrip("/"))


class RemoteCard(ModelCard, frozen=True, kw_only=True):
    """A model of which the upstream decides what it takes."""

    def check(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> None:
        super().check(sampling, task, inputs)
        if sampling.num_inference_steps != 1:
            raise InvalidRequest(
                f"'num_inference_steps' has no effect on {self.name}, which another server runs. "
                "Leave it out.",
                param="num_inference_steps",
                code="unsupported_parameter",
            )


def card(directory: Path, name: str) -> RemoteCard:
    """The card of a remote model; `directory` is its path."""
    protocol = upstream(directory).protocol
    sides = Range(8, 8192)
    return RemoteCard(
        name=name,
        family="remote",
        path=str(directory),
        tasks=_TASKS[protocol],
        max_images=16,
        defaults={"width": 1024, "height": 1024, "num_frames": 1, "num_inference_steps": 1},
        limits={
            "progress": "it is one request to another server",
            "preemption": "it is one request to another server",
            "seed": "the other server draws its own",
        },
        width=sides,
        height=sides,
        num_frames=Range(1, 1),
        rehearsed=False,
        max_tokens=sides.max**2,
        patch=(1, 1, 1),
    )


def capabilities(directory: Path) -> Capabilities:
    """Nothing of it can be shared out here."""
    return Capabilities(
        transformer=f"The remote model {upstream(directory).model}",
        heads=1,
        sequence=False,
        guided=False,
    )
