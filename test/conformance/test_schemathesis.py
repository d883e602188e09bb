"""Our own OpenAPI document is true: schemathesis sends what it describes, and what it does not.

All phases (examples, coverage, fuzzing, stateful) against a server with a real socket, manager and
store, and an engine that makes every sample at once. Every route is covered, as the routes are
taken from the document.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fakes import stack
from fakes.engine_peer import CARD, file_of
from safelight.models.card import ALWAYS, Range
from safelight.request import TASKS, SampleSpec, Sampling

KEY = "key"
MIN_CASES = 2_000
PATIENCE_S = 1_500
CONFIG = """
[phases.fuzzing.generation]
max-examples = 5
[phases.stateful]
max-steps = 12
[phases.stateful.generation]
max-examples = 25
"""
"""The coverage phase sends what it finds to cover, most of all."""
ABLE = msgspec.structs.replace(
    CARD,
    name="shapes",  # as in the document's examples
    tasks=(*TASKS["video"], *TASKS["image"]),
    parameters=tuple(set(Sampling.__struct_fields__) - set(ALWAYS)),
    max_images=4,
    width=Range(8, 8192),
    height=Range(8, 8192),
    num_frames=Range(1, 4096),
    max_tokens=2**62,
    patch=(1, 1, 1),
)
"""A model that can do whatever the document allows, so that much of what is sent is accepted."""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "use_after_free",
    "ensure_resource_availability",
    "missing_required_header",
    "ignored_auth",
    "unsupported_method",
)
"""Not `positive_data_acceptance`: what a model can make is no schema's to say. Not
`negative_data_rejection`: forms are read leniently, and unknown fields are ignored on purpose."""


look_up: Any = socket.getaddrinfo


def nowhere(host: str, *rest: Any, **kinds: Any) -> Any:
    """In place of `getaddrinfo`: whoever is made up here is not looked for out there."""
    if host != "127.0.0.1":
        raise socket.gaierror(socket.EAI_NONAME, "no such host")
    return look_up(host, *rest, **kinds)


def small(spec: SampleSpec) -> bytes:
    """A file of the right kind, whatever size was asked for."""
    sampling = msgspec.structs.replace(spec.sampling, width=8, height=8)
    return file_of(msgspec.structs.replace(spec, sampling=sampling))


def schemathesis(url: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command, as a user would type it in `cwd`."""
    (cwd / "schemathesis.toml").write_text(CONFIG)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
        *("--header", f"Authorization: Bearer {KEY}", "--checks", ",".join(CHECKS)),
        *("--phases", "examples,coverage,fuzzing,stateful", "--continue-on-failure"),
        *("--generation-deterministic", "--no-color", "--request-timeout", "60"),
    ]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


@pytest.mark.timeout(PATIENCE_S)
def test_the_document_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Invented names of adapters may look like names on the hub.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    data = tmp_path / "data"
    with stack.running(data, card=ABLE, api_key=KEY, max_queued_samples=100_000) as running:
        running.peer.makes = small
        ended = schemathesis(running.base_url, tmp_path)
    assert ended.returncode == 0, ended.stdout[-20_000:] + ended.stderr[-2_000:]
    found = re.search(r"(\d+) generated", ended.stdout)
    assert found is not None and int(found[1]) >= MIN_CASES, ended.stdout[-2_000:]
