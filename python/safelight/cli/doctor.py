"""`safelight doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from safelight.config import EngineConfig


class DoctorOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `doctor` takes besides the engine's configuration."""

    json: Annotated[bool, Meta(description="Print JSON instead of a table.")] = False


def doctor(config: EngineConfig, options: DoctorOptions) -> int:
    """Print every check; 1 if something that is needed is missing."""
    from safelight.cli import checks

    found = checks.run(config)
    failed = any(check.status == "fail" for check in found)
    if options.json:
        rows = [msgspec.to_builtins(check) for check in found]
        print(json.dumps({"ok": not failed, "checks": rows}, indent=2))
    else:
        _table(found)
    return int(failed)


def _table(found: Sequence[object]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from safelight.cli.checks import Check

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=None, pad_edge=False)
    for heading in ("check", "", "found"):
        table.add_column(heading, no_wrap=heading != "found", overflow="fold")
    for check in found:
        assert isinstance(check, Check)
        said = check.found if not check.advice else f"{check.found}\n→ {check.advice}"
        table.add_row(Text(check.name), Text(check.status, colours[check.status]), Text(said))
    Console(file=sys.stdout, highlight=False).print(table)
