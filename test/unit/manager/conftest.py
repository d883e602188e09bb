from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.engine_peer import CARD, EnginePeer
from safelight import config as configuration
from safelight.manager.manager import RequestManager


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def run_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sl-"))
    yield path
    shutil.rmtree(path)


class Lab:
    """A peer, and managers that come and go over one data directory."""

    def __init__(self, run_dir: Path, data: Path) -> None:
        self.run_dir = run_dir
        self.data = data
        self.peer = EnginePeer(run_dir)
        self.managers: list[RequestManager] = []

    async def manager(self, *, card: Any = CARD, **settings: Any) -> RequestManager:
        named = {"served_model_name": card.name, "data_dir": str(self.data)}
        config = configuration.build({**named, **settings})
        manager = RequestManager(config, {card.name: card}, self.run_dir)
        await manager.start()
        self.managers.append(manager)
        return manager

    async def stop(self, manager: RequestManager) -> None:
        self.managers.remove(manager)
        await manager.close()


@pytest.fixture
async def lab(run_dir: Path, tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(run_dir, tmp_path / "data")
    await lab.peer.start()
    yield lab
    for manager in list(lab.managers):
        await lab.stop(manager)
    await lab.peer.close()
