"""What the tests of adapters share."""

from __future__ import annotations

import pytest

from fakes.cases import Checkpoints
from fakes.lora import Files


@pytest.fixture(scope="session")
def loras(tmp_path_factory: pytest.TempPathFactory, checkpoints: Checkpoints) -> Files:
    return Files(tmp_path_factory.mktemp("loras"), checkpoints)
