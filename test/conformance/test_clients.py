"""Other clients that speak OpenAI's protocol; `make test-clients` has the rest of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes import clients
from fakes.clients import Client
from tools import documents

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


def test_the_page_tells_of_every_client_and_all_passed() -> None:
    page = (documents.DOCS / "clients.md").read_text("utf-8")
    for client in (*clients.IN_CI, *clients.OTHERS):
        row = f"| {client.name} | {client.version} | passed |"
        assert row in page, f"run: make test-clients ({client.name})"
