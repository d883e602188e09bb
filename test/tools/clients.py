"""Runs every client and writes `docs/clients.md`: `make test-clients`.

Run in `test/`: `python -m tools.clients [--write]`. Installs what is not there yet; takes minutes.
Exits with 1 if a client failed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from fakes import clients
from fakes.clients import Client
from tools import documents

NAME = "clients.md"

_INTRODUCTION = """\
# Clients

Written by `make test-clients`; do not edit.

Each client runs unchanged, in an environment of its own, against a live server: its script in
`test/conformance/clients/` does what programs do with it. openai-python 3.x is what the tests in
`test/conformance/test_openai_*.py` use; the first three here run in CI too
(`test/conformance/test_clients.py`)."""


def result(client: Client) -> tuple[str, ...]:
    """A row: what was done, or how it failed."""
    with tempfile.TemporaryDirectory(prefix="safelight-") as directory:
        try:
            steps = clients.run(client, Path(directory))
        except (AssertionError, subprocess.TimeoutExpired) as failure:
            sys.stderr.write(f"{client.name}: {failure}\n")
            return client.name, client.version, "failed", reason(str(failure)), client.note
    return client.name, client.version, "passed", "; ".join(steps), client.note


def reason(printed: str) -> str:
    """The last line that names an error: node ends with its version."""
    lines = printed.strip().splitlines()
    return next((line.strip() for line in reversed(lines) if "Error" in line), lines[-1])


def document(rows: list[tuple[str, ...]]) -> str:
    table = documents.table(("client", "versions", "result", "what it does", "note"), *rows)
    return f"{_INTRODUCTION}\n\n{table}\n"


def main() -> int:
    rows = [result(client) for client in (*clients.IN_CI, *clients.OTHERS)]
    documents.main(NAME, lambda: document(rows))
    return int(any(row[2] != "passed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
