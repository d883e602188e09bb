"""Writes `docs/configuration.md` from the declared fields.

Run in `test/`: `python -m tools.config_reference [--write]`.
"""

from __future__ import annotations

import inspect

from safelight import config
from safelight.cli import options
from safelight.cli.batch.command import BatchOptions
from safelight.cli.generate import GenerateOptions
from safelight.fields import Field, declared
from safelight.request import Sampling
from tools import documents

NAME = "configuration.md"

_INTRODUCTION = """\
# Configuration

Generated from the declarations in `config.py`, `request.py` and `cli/` by `make docs`; do not edit.

Every setting has one name and three spellings: a flag (`--max-batch-size`), an environment variable
(`SAFELIGHT_MAX_BATCH_SIZE`) and a key of the `--config` file, JSON or YAML, with dashes or
underscores (`max-batch-size`). The command line wins over the environment, the environment over the
file, the file over the default. Switches are `--flag` and `--no-flag` on the command line, `true`
and `false` elsewhere. An unknown flag or key is an error that names the nearest known one; an
unknown `SAFELIGHT_*` variable is a warning.

```yaml
# safelight generate --config clip.yaml
prompt: a red circle moving left on a black background
size: 64x64
num-frames: 9
seed: 7
output-path: outputs
```
"""


def document() -> str:
    parts = [_INTRODUCTION.strip(), "# The engine", "Flags of `serve`, `generate` and `doctor`."]
    for name, section in config.SECTIONS.items():
        parts.append(f"## {name.capitalize()}\n\n{inspect.getdoc(section)}")
        parts.append(reference(declared(section)))
    parts.append(
        "# Sampling\n\nFlags of `generate`, and fields of requests over HTTP. What is left out "
        "comes from the model's card."
    )
    parts.append(reference(declared(Sampling)))
    parts.append("# `generate`\n\nFlags of `generate` only.")
    parts.append(reference(declared(GenerateOptions)))
    parts.append("# `batch`\n\nFlags of `batch` only.")
    parts.append(reference(declared(BatchOptions)))
    return "\n\n".join(parts) + "\n"


def reference(fields: tuple[Field, ...]) -> str:
    """A table with a row a field."""
    return documents.table(("setting", "type", "default", "meaning"), *map(_row, fields))


def _row(field: Field) -> tuple[str, ...]:
    kind = options.metavar_of(field.type) or "switch"
    default = "the model's" if field.required else options.default_text(field) or "none"
    name = f"`{field.name}:` in a file" if field.file_only else f"`{field.flag}`"
    return name, " ".join([kind, *_bounds(field)]), default, field.help


def _bounds(field: Field) -> list[str]:
    """How far a number may go."""
    meta = field.meta
    limits = (("≥", meta.ge), (">", meta.gt), ("≤", meta.le), ("<", meta.lt))
    return [f"{sign} {bound:,.10g}" for sign, bound in limits if bound is not None]


if __name__ == "__main__":
    documents.main(NAME, document)
