"""Our own OpenAPI document is true: schemathesis sends what it describes, and what it does not.

All phases (examples, coverage, fuzzing, stateful) against a server with a real socket, manager and
store, and an engine that makes every sample at once. Every route is covered, as the routes are taken
from the document.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from fakes import stack

KEY = "key"
MIN_CASES = 2_000
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


def schemathesis(url: str, report: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The command, as it is printed in its manual."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
        *("--header", f"Authorization: Bearer {KEY}", "--checks", ",".join(CHECKS)),
        *("--phases", "examples,coverage,fuzzing,stateful", "--continue-on-failure"),
        *("--generation-deterministic", "--no-color", "--request-timeout", "60"),
        *("--report", "ndjson", "--report-ndjson-path", str(report), *more),
    ]
    environment = os.environ | {"HYPOTHESIS_STORAGE_DIRECTORY": str(report.parent)}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=1200, cwd=report.parent
    )


def test_the_document_is_true(tmp_path: Path) -> None:
    report = tmp_path / "events.ndjson"
    with stack.running(tmp_path / "data", api_key=KEY, max_queued_samples=100_000) as running:
        ended = schemathesis(running.base_url, report, "--max-examples", "25")
    assert ended.returncode == 0, ended.stdout[-20_000:] + ended.stderr[-2_000:]
    assert cases(report) >= MIN_CASES


def cases(report: Path) -> int:
    """How many requests were sent."""
    return sum(1 for line in report.read_text().splitlines() if "Interaction" in json.loads(line))
