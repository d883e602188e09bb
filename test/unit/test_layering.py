"""Imports run one way, and what needs no torch imports none."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import safelight

ROOT = Path(safelight.__file__).parent

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("log", "fields"),
    ("config", "request", "metrics"),
    ("wire", "store", "parallel"),
    ("cache", "lora"),
    ("builtin",),
    ("models",),
    ("worker", "scheduler", "output"),
    ("manager", "launch"),
    ("engine", "entrypoint"),
    ("cli",),
    ("__init__", "__main__", "builtin.training"),
)
"""A part may import itself and parts of earlier layers; those of one layer know nothing of each
other. DESIGN section 9."""

LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}

HEAVY = ("torch", "diffusers", "transformers")
LIGHT = (
    "safelight",
    "safelight.entrypoint.app",
    "safelight.manager.manager",
    "safelight.scheduler.process",
    "safelight.output.process",
    "safelight.launch.supervisor",
    "safelight.parallel.layout",
    "safelight.parallel.encoders",
    "safelight.parallel.vaes",
    "safelight.parallel.providers",
    "safelight.parallel.volume",
    "safelight.models.plans",
    "safelight.models.footprint",
    "safelight.models.hub",
    "safelight.models.sources",
    "safelight.models.remote.spec",
    "safelight.engine",
    "safelight.cli.app",
    "safelight.cli.serve",
    "safelight.cli.generate",
)


def part_of(module: str) -> str:
    """`safelight.wire.codec` -> `wire`."""
    names = module.split(".")[1:]
    if names[:2] == ["builtin", "training"]:
        return "builtin.training"
    return names[0] if names else "__init__"


def imports(package: str, source: str) -> Iterator[str]:
    """The Safelight modules a source imports, at the top, in functions and for types alike."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "safelight")
        elif isinstance(node, ast.ImportFrom):
            source_module = absolute(package, node)
            # `from safelight.builtin import training` names the module in the second half.
            if source_module.split(".")[0] == "safelight":
                names = (alias.name for alias in node.names)
                yield from (f"{source_module}.{n}" for n in names if not n.startswith("__"))


def absolute(package: str, node: ast.ImportFrom) -> str:
    """The module of a `from … import`, relative ones resolved."""
    base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join([*base, *([node.module] if node.module else [])])


def violations(module: str, source: str, *, package: str | None = None) -> list[str]:
    """The imports of `module` that run the wrong way."""
    own = part_of(module)
    return [
        f"{module} imports {imported}"
        for imported in imports(package or module.rpartition(".")[0], source)
        if (part := part_of(imported)) != own and LEVEL[part] >= LEVEL[own]
    ]


def modules() -> Iterator[tuple[str, str, Path]]:
    """Module, its package and its file."""
    for path in sorted(ROOT.rglob("*.py")):
        names = path.relative_to(ROOT.parent).with_suffix("").parts
        package = ".".join(names[:-1])
        yield (package if names[-1] == "__init__" else ".".join(names)), package, path


def test_imports_run_one_way() -> None:
    wrong = [
        violation
        for module, package, path in modules()
        for violation in violations(module, path.read_text("utf-8"), package=package)
    ]
    assert wrong == []


def test_every_part_has_a_layer() -> None:
    assert {part_of(module) for module, _, _ in modules()} <= set(LEVEL)


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("safelight.wire.codec", "from safelight import models", True),
        ("safelight.wire.codec", "import safelight.store.jobs", True),
        ("safelight.output.video", "def f():\n from safelight.scheduler import core", True),
        ("safelight.models.wan.adapter", "from safelight.builtin import training", True),
        ("safelight.cli.app", "from safelight.builtin.training.vae import x", True),
        ("safelight.wire.codec", "from ..models import card", True),
        ("safelight.builtin.x", "from .training import vae", True),
        ("safelight.builtin.training.vae", "from . import world", False),
        ("safelight.scheduler.core", "from safelight.models.card import ModelCard", False),
        ("safelight.scheduler.core", "from safelight.scheduler import batch", False),
        ("safelight.cli.app", "from safelight import __version__, engine", False),
        ("safelight.builtin.training.vae", "from safelight.models import card", False),
    ],
)
def test_the_check_itself(module: str, source: str, wrong: bool) -> None:
    assert bool(violations(module, source)) is wrong


@pytest.mark.parametrize("module", LIGHT)
def test_no_torch_where_none_is_needed(module: str) -> None:
    """In a fresh interpreter: what another test imported must not count."""
    script = f"import sys, {module}\nprint(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
