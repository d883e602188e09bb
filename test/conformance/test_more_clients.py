"""What `make test-clients` makes of a client that fails: a row that says so."""

from __future__ import annotations

from fakes import clients
from fakes.clients import Client
from tools import clients as tool
from tools import documents


def test_a_client_that_fails_is_a_row_with_its_error() -> None:
    """The packages are those of another client."""
    row = tool.result(Client("None", "openai-2", "semantic_kernel_client.py", note="Not this."))
    error = "ModuleNotFoundError: No module named 'semantic_kernel'"
    assert row == ("None", "openai==2.54.0", "failed", error, "Not this.")
    assert f"| failed | {error} |" in tool.document([row])


def test_the_error_of_a_script_for_node_is_found() -> None:
    printed = "models\nError: no picture\n    at script.mjs:3:1\n\nNode.js v20.20.2\n"
    assert tool.reason(printed) == "Error: no picture"
    assert tool.reason("Killed\n") == "Killed"


def test_the_notes_are_on_the_page() -> None:
    rows = (documents.DOCS / tool.NAME).read_text("utf-8").splitlines()
    for client in (*clients.IN_CI, *clients.OTHERS):
        (row,) = [row for row in rows if row.startswith(f"| {client.name} | ")]
        assert row.endswith(f" | {client.note} |"), "run: make test-clients"
