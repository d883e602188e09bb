"""Families that come with other packages, by entry point. Needs no torch.

What is wrong with such a package is said in one line that names it: it is not ours to mend.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from importlib.metadata import EntryPoint
from types import ModuleType

from safelight.errors import ConfigError

GROUP = "safelight.families"
"""Entry-point group: name of a family or of a pipeline class -> package with `spec` and
`adapter`."""

_PARTS = {"spec": ("card", "capabilities"), "adapter": ("load",)}
"""Module -> what it must have."""

_BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What a module raises that cannot be imported here."""


def names() -> list[str]:
    """Of all families that installed packages bring."""
    return sorted(set(importlib.metadata.entry_points(group=GROUP).names))


def find(name: str) -> EntryPoint | None:
    """The plug-in for a family or pipeline class of this name, if one is installed.

    Raises `ConfigError` if several are.
    """
    found = list(importlib.metadata.entry_points(group=GROUP, name=name))
    if len(found) > 1:
        packages = ", ".join(sorted(map(_distribution, found)))
        raise ConfigError(f"{packages} all bring the family '{name}'. Uninstall all but one.")
    return found[0] if found else None


def part(plugin: EntryPoint, module: str) -> ModuleType:
    """The `spec` or the `adapter` of a plug-in, imported now. Raises `ConfigError`."""
    name = f"{plugin.module}.{module}"
    try:
        found = importlib.import_module(name)
    except ModuleNotFoundError as failure:
        if failure.name is not None and f"{name}.".startswith(f"{failure.name}."):
            raise _incomplete(plugin, f"there is no module {failure.name}") from failure
        raise _not_imported(plugin, failure) from failure
    except _BROKEN as failure:
        raise _not_imported(plugin, failure) from failure
    for function in _PARTS[module]:
        if not hasattr(found, function):
            raise _incomplete(plugin, f"{name} has no {function}")
    return found


def _incomplete(plugin: EntryPoint, what: str) -> ConfigError:
    package = _distribution(plugin)
    return ConfigError(
        f"{package} brings the family '{plugin.name}', but {what}. Install a version that is whole "
        f"and made for this Safelight, or do without: pip uninstall {package.partition(' ')[0]}."
    )


def _not_imported(plugin: EntryPoint, failure: Exception) -> ConfigError:
    package = _distribution(plugin)
    name = package.partition(" ")[0]
    return ConfigError(
        f"{package} brings the family '{plugin.name}', but cannot be imported: "
        f"{type(failure).__name__}: {failure}. Install what it needs (pip install {name}), or do "
        f"without: pip uninstall {name}."
    )


def _distribution(plugin: EntryPoint) -> str:
    """`name version` of the package that registers it."""
    assert plugin.dist is not None  # entry points that were found have one
    return f"{plugin.dist.name} {plugin.dist.version}"
