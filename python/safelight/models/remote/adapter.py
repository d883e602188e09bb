"""A remote model through the adapter protocol: one step, which is a request to the upstream."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from safelight.config import EngineConfig
from safelight.errors import GenerationFailed
from safelight.models.remote.client import Client
from safelight.models.remote.spec import upstream
from safelight.parallel.mesh import Mesh
from safelight.request import Adapter, SampleSpec

if TYPE_CHECKING:
    from safelight.models.family import Frames

PATIENCE = 0.9
"""Of the step timeout: beyond that the rank is taken to hang."""


@dataclass(kw_only=True)
class RemoteSession:
    """A picture that is asked for."""

    spec: SampleSpec
    latents: torch.Tensor
    """Nothing."""
    index: int = 0
    steps: int = 1
    estimate: None = None
    picture: np.ndarray | None = None
    failure: GenerationFailed | None = None


class NoAdapters:
    """What an upstream runs cannot be changed from here."""

    def __init__(self, name: str) -> None:
        self._name = name

    def wear(self, adapters: Sequence[Adapter], *, merged: bool = False) -> None:
        for adapter in adapters:
            self.load(adapter)

    def load(self, adapter: Adapter) -> dict[str, int]:
        raise GenerationFailed(
            f"{self._name} takes no adapters, so '{adapter.name}' cannot be used with it.",
            code="adapter_unfit",
        )

    def forget_merged(self) -> None:
        """There are none."""

    def drop(self, digest: str) -> None:
        """There are none."""


class RemoteFamily:
    """The client of one upstream."""

    def __init__(self, client: Client, name: str, at_once: int) -> None:
        self._client = client
        self._name = name
        self.lora = NoAdapters(name)
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="upstream")

    def describe(self) -> str:
        return self._name

    def encode(self, sample: SampleSpec) -> None:
        return None

    def begin(self, sample: SampleSpec, conditioning: None) -> RemoteSession:
        return RemoteSession(spec=sample, latents=torch.zeros(1))

    def step(self, batch: Sequence[RemoteSession]) -> None:
        """All requests at once. One that fails is told at its decode: another attempt of the whole
        batch would ask, and pay, again for those that succeeded."""
        list(self._pool.map(self._ask, batch))

    def _ask(self, session: RemoteSession) -> None:
        try:
            session.picture = self._client.picture(session.spec)
        except GenerationFailed as failure:
            session.failure = failure
        session.index += 1

    def decodes_together(self, sessions: Sequence[RemoteSession]) -> bool:
        return False

    def decode(self, sessions: Sequence[RemoteSession]) -> Sequence[Frames]:
        for session in sessions:
            if session.failure is not None:
                raise session.failure
        return [session.picture[None] for session in sessions if session.picture is not None]

    def preview(self, session: RemoteSession) -> Frames:
        raise NotImplementedError  # no session has an estimate

    def weights(self) -> dict[str, int]:
        return {}


def load(directory: Path, config: EngineConfig, mesh: Mesh) -> RemoteFamily:
    """The client of the upstream that the path `directory` names. Raises `ConfigError` if there is
    no key for it."""
    where = upstream(directory)
    client = Client(where, timeout=PATIENCE * config.runtime.step_timeout)
    name = f"{where.model} at {where.base_url}"
    return RemoteFamily(client, name, config.scheduling.max_batch_size)
