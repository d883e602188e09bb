"""Where values come from: the environment, a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safelight import fields
from safelight.errors import ConfigError


def from_environment(
    names: Mapping[str, fields.Field], environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The values of `SAFELIGHT_<NAME>` variables for the fields in `names`."""
    environ = os.environ if environ is None else environ
    found = {
        name: environ[fields.variable(name)]
        for field in names.values()
        if not field.file_only
        for name in (field.name, *field.aliases)
        if fields.variable(name) in environ
    }
    return fields.canonical(found, names.values())


def read_file(path: Path) -> dict[str, Any]:
    """A JSON or YAML mapping. Raises `ConfigError` if it cannot be read or is no mapping."""
    import yaml

    try:
        text = path.read_text("utf-8")
    except OSError as failure:
        raise ConfigError(f"Cannot read the config file {path}: {failure.strerror}.") from failure
    except UnicodeDecodeError as failure:
        raise ConfigError(f"The config file {path} is not UTF-8.") from failure
    try:
        values = yaml.safe_load(text)  # JSON is a subset of YAML
    except yaml.YAMLError as failure:
        raise ConfigError(f"{path} is neither JSON nor YAML: {failure}") from failure
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; a mapping of names is needed.")
    return {str(key).replace("-", "_"): value for key, value in values.items()}
