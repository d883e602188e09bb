"""What diffusers' pipelines take, read from their source: importing diffusers takes ten seconds
and torch, which the processes that only check requests never load.
"""

from __future__ import annotations

import ast
import enum
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from safelight.errors import ConfigError

RESULTS = ("frames", "video", "images", "image")
"""Names that pipelines give their frames or pictures."""

MAPPINGS = ("TEXT2IMAGE", "IMAGE2IMAGE", "INPAINT", "TEXT2VIDEO", "IMAGE2VIDEO")
"""Of AutoPipeline's tables of pipelines that share a checkpoint: those of tasks we have."""

OTHER_TASKS = {"TEXT2IMAGE": ("IMAGE2IMAGE", "INPAINT"), "TEXT2VIDEO": ("IMAGE2VIDEO",)}
"""Which of these tables have what can be made with a checkpoint of another."""


class Default(enum.Enum):
    """A parameter's default where it is no plain value."""

    REQUIRED = "required"
    UNKNOWN = "unknown"
    """An expression that only running the module would tell."""


@dataclass(frozen=True)
class Signature:
    """One pipeline class."""

    name: str
    parameters: Mapping[str, Any]
    """Of `__call__`, in order: name -> default, or a `Default`."""
    components: tuple[str, ...]
    """What its `__init__` must be given."""
    optional: tuple[str, ...]
    """What its `__init__` may be given."""
    results: tuple[str, ...]
    """Names of what it returns; empty if another pipeline returns it for this one."""
    loops: int
    """Progress bars in the class: none if its steps cannot be counted."""
    repeats: bool
    """Whether one of them is shown again and again."""
    nested: bool
    """Whether it calls other pipelines, which have loops of their own."""
    sizes: Mapping[str, int]
    """`width` and `height` where its `__init__` sets them as its defaults."""
    rewires: bool
    """Whether it changes its model for the time of a call: two calls would disturb each other."""


# ------------------------------------------------------------------------------ diffusers' source


@cache
def package() -> Path:
    """The folder of the installed diffusers, which is not imported."""
    spec = importlib.util.find_spec("diffusers")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("diffusers is not installed.")
    return Path(spec.submodule_search_locations[0])


def version() -> str:
    return importlib.metadata.version("diffusers")


@cache
def _sources() -> Mapping[str, Path]:
    """Class name -> the file that defines it, for all pipelines."""
    found: dict[str, Path] = {}
    for path in sorted((package() / "pipelines").rglob("*.py")):
        for name in re.findall(r"^class (\w+)[(:]", path.read_text("utf-8"), re.MULTILINE):
            found.setdefault(name, path)
    return found


@cache
def _module(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _classes(name: str) -> Iterator[tuple[ast.Module, ast.ClassDef]]:
    """The class and those of its bases that are pipelines too, nearest first."""
    path = _sources().get(name)
    if path is None:
        return
    module = _module(path)
    node = next(n for n in module.body if isinstance(n, ast.ClassDef) and n.name == name)
    yield module, node
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id != "DiffusionPipeline":
            yield from _classes(base.id)


def _method(name: str, method: str) -> tuple[ast.Module, ast.ClassDef, ast.FunctionDef] | None:
    for module, node in _classes(name):
        for member in node.body:
            if isinstance(member, ast.FunctionDef) and member.name == method:
                return module, node, member
    return None


# -------------------------------------------------------------------------------------- one class


@cache
def read(name: str) -> Signature | None:
    """The pipeline class `name` of diffusers; None if it has none, or one that cannot be called."""
    call, init = _method(name, "__call__"), _method(name, "__init__")
    if call is None or init is None or not name.endswith(("Pipeline", "PipelineSafe")):
        return None
    module, owner, function = call
    parts = _parameters(init[0], init[2])
    bars = [node for node in ast.walk(owner) if _calls(node, "progress_bar")]
    return Signature(
        name=name,
        parameters=_parameters(module, function),
        components=tuple(key for key, value in parts.items() if value is Default.REQUIRED),
        optional=tuple(key for key, value in parts.items() if value is not Default.REQUIRED),
        results=tuple(sorted(set(_results(function)))),
        loops=len(bars),
        repeats=any(_calls(inner, "progress_bar") for inner in _in_loops(function)),
        nested=any(_is_pipeline(node) for node in ast.walk(init[2])),
        sizes=dict(_sizes(init[2])),
        rewires=any(
            _calls(node, "set_attn_processor", "_set_pag_attn_processor")
            for node in ast.walk(function)
        ),
    )


def _parameters(module: ast.Module, function: ast.FunctionDef) -> dict[str, Any]:
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    without = [None] * (len(names) - len(given.defaults))
    defaults: list[ast.expr | None] = [*without, *given.defaults]
    names += [argument.arg for argument in given.kwonlyargs]
    pairs = zip(names, [*defaults, *given.kw_defaults], strict=True)
    return {name: _value(module, default) for name, default in pairs if name != "self"}


def _value(module: ast.Module, node: ast.expr | None) -> Any:
    """A default, if it is a literal or a constant of its module."""
    if node is None:
        return Default.REQUIRED
    try:
        return ast.literal_eval(node)
    except ValueError:
        if isinstance(node, ast.Name) and (constant := _constant(module, node.id)) is not None:
            return _value(module, constant)
        return Default.UNKNOWN


def _constant(module: ast.Module, name: str) -> ast.expr | None:
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value
    return None


def _calls(node: ast.AST, *methods: str) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in methods
    )


def _in_loops(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """What is run again and again: not what is looped over."""
    for node in ast.walk(function):
        if isinstance(node, ast.For | ast.While):
            for statement in node.body:
                yield from ast.walk(statement)


def _is_pipeline(node: ast.AST) -> bool:
    """Whether another pipeline is made here."""
    made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return made and node.func.id.endswith("Pipeline")  # type: ignore[attr-defined]


def _sizes(init: ast.FunctionDef) -> Iterator[tuple[str, int]]:
    """From `self.default_height = 480` and its like."""
    for node in ast.walk(init):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            name = ast.unparse(node.targets[0]).removeprefix("self.default_")
            if name in ("width", "height") and isinstance(node.value.value, int):
                yield name, node.value.value


def _results(function: ast.FunctionDef) -> Iterator[str]:
    """Names of the fields of the output object that it returns."""
    for node in ast.walk(function):
        made = node.value if isinstance(node, ast.Return) else None
        if isinstance(made, ast.Call) and ast.unparse(made.func).endswith("Output"):
            yield from (keyword.arg for keyword in made.keywords if keyword.arg)


# -------------------------------------------------------------------------------- the other tasks


@cache
def mappings() -> Mapping[str, Mapping[str, str]]:
    """AutoPipeline's tables: `TEXT2IMAGE`, … -> name of a kind of checkpoint -> pipeline class."""
    tables: dict[str, dict[str, str]] = {name: {} for name in MAPPINGS}
    for node in ast.walk(_module(package() / "pipelines" / "auto_pipeline.py")):
        if not isinstance(node, ast.Assign):
            continue
        target = node.targets[0]
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Call) and node.value.args:
            _note(tables, target, node.value.args[0])
        elif isinstance(target, ast.Subscript):
            pair = ast.Tuple([target.slice, node.value])
            _note(tables, target.value, ast.List([pair]))
    return tables


def _note(tables: dict[str, dict[str, str]], target: ast.expr, entries: ast.expr) -> None:
    """Add `entries`, a list of pairs, to the table called `target`, if it is one of ours."""
    name = ast.unparse(target).removeprefix("AUTO_").removesuffix("_PIPELINES_MAPPING")
    if name not in tables or not isinstance(entries, ast.List):
        return
    for pair in entries.elts:
        if isinstance(pair, ast.Tuple):
            key, value = pair.elts
            tables[name][str(ast.literal_eval(key))] = ast.unparse(value)


def makes_from_text(name: str) -> bool:
    """Whether AutoPipeline chooses this class for a prompt alone."""
    return any(name in mappings()[table].values() for table in ("TEXT2IMAGE", "TEXT2VIDEO"))


def siblings(name: str) -> list[str]:
    """The classes that do other tasks with the checkpoint of this text-to-image or text-to-video
    one."""
    tables = mappings()
    found: list[str] = []
    for text, others in OTHER_TASKS.items():
        keys = [key for key, value in tables[text].items() if value == name][:1]
        found += [tables[other][key] for other in others for key in keys if key in tables[other]]
    return [one for one in dict.fromkeys(found) if one != name]
