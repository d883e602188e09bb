"""Other clients that speak OpenAI's protocol; `make test-clients` has the rest of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes import clients
from fakes.clients import Client

STEPS = {
    "openai-python 2.x": 9,
    "LiteLLM": 8,
    "openai-node 7.x": 8,
}
"""How many lines the script of a client prints."""


@pytest.mark.timeout(900)  # the first run installs them
@pytest.mark.parametrize("client", clients.IN_CI, ids=lambda client: client.name)
def test_a_client(client: Client, tmp_path: Path) -> None:
    assert len(clients.run(client, tmp_path)) == STEPS[client.name]
