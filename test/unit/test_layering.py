"""Imports run one way, and what needs no torch imports none."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import safelight
from safelight.models.registry import FAMILIES

ROOT = Path(safelight.__file__).parent

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("log", "fields", "host"),
    ("egress",),
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
    assert imported_heavy(module) == ""


def imported_heavy(*modules: str) -> str:
    """What of `HEAVY` comes with these modules."""
    script = f"import sys, {', '.join(modules)}\nprint(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ------------------------------------------------------------------------------- core and families

BY_CLASS = (
    "safelight.models.registry",
    "safelight.models.plans",
    "safelight.parallel.encoders",
    "safelight.parallel.vae",
    "safelight.parallel.vaes",
)
"""Core modules with tables by class of pipeline or component."""


def families() -> list[str]:
    """Folders of families; not of those that stand for any model."""
    folders = {path.parent.name for path in (ROOT / "models").glob("*/spec.py")}
    return sorted(folders - {"generic", "remote"})


def is_core(module: str) -> bool:
    """Whether it is neither a family's, nor a table of classes, nor of the training."""
    names = module.split(".")
    family = names[1:2] == ["models"] and (ROOT / "models" / "/".join(names[2:3])).is_dir()
    return not (family or module in BY_CLASS or part_of(module) == "builtin.training")


def code_words(source: str) -> Iterator[str]:
    """Identifiers, and strings that are one word: longer ones and comments are for people."""
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "name", "asname", "arg", "module", "value"):
            word = getattr(node, field, None)
            if isinstance(word, str) and " " not in word:
                yield word


def names_family(word: str, family: str) -> bool:
    """`flux`, `FluxPipeline` and `is_flux2` are of `flux`; `wanted` is not of `wan`."""
    parts = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z0-9]+(?![a-z])", word)
    return re.search(rf"(^|_){family}[0-9]*(_|$)", "_".join(parts).lower()) is not None


def test_core_code_names_no_family() -> None:
    assert len(families()) >= 8
    found = [
        f"{module}: {word}"
        for module, _, path in modules()
        if is_core(module)
        for word in code_words(path.read_text("utf-8"))
        if word in FAMILIES or any(names_family(word, family) for family in families())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from safelight.models.wan import spec", True),
        ("import safelight.models.qwen_image.spec as spec", True),
        ("kind == 'FluxKontextPipeline'", True),
        ("is_flux2 = True", True),
        ("class LTX2Thing: pass", True),
        ("f(ZImage=1)", True),
        ("card.family == 'hunyuan_video15'", True),
        ("wanted = swan", False),
        ("'Guidance of the second expert (Wan 2.2).'", False),
        ("x = 1  # as flux does", False),
    ],
)
def test_families_are_found_in_code(source: str, found: bool) -> None:
    words = list(code_words(source))
    assert any(names_family(word, family) for word in words for family in families()) is found


def test_what_is_core() -> None:
    core = {module for module, _, _ in modules() if is_core(module)}
    assert {"safelight.config", "safelight.models.card", "safelight.scheduler.core"} <= core
    assert not {"safelight.models.wan.adapter", "safelight.models.registry"} & core


def test_no_spec_needs_torch() -> None:
    specs = [f"safelight.models.{family}.spec" for family in [*families(), "generic", "remote"]]
    assert imported_heavy(*specs) == ""
