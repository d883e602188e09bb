"""The `safelight` command: what each subcommand takes, and how errors end it.

Exit status: 0 done; 1 it failed; 2 the command line, the configuration or the request is wrong;
130 after Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import Abort, TyperException

from safelight import config, fields
from safelight.cli import options
from safelight.cli.batch import lines
from safelight.cli.batch.command import BatchOptions
from safelight.cli.bench import BenchOptions
from safelight.cli.doctor import DoctorOptions
from safelight.cli.generate import INTERRUPTED, GenerateOptions
from safelight.cli.options import Panel
from safelight.config import EngineConfig
from safelight.errors import ConfigError, RequestError, SafelightError
from safelight.models.hub import NO_SPACE

USAGE_ERROR = 2
_SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda name: name.replace("_", "-"),
}

_ENGINE = [*options.engine_panels(), options.foreign_panel()]
SERVE = [*_ENGINE, options.defaults_panel()]
GENERATE = [
    Panel("Output", fields.declared(GenerateOptions)),
    options.sampling_panel(),
    *_ENGINE,
]
BENCH = [Panel("Bench", fields.declared(BenchOptions)), options.sampling_panel(), *_ENGINE]
BATCH = [
    Panel("Batch", fields.declared(BatchOptions)),
    Panel("Lines", lines.SHARED),
    options.sampling_panel(),
    *_ENGINE,
]
DOCTOR = [Panel("Output", fields.declared(DoctorOptions)), *_ENGINE]

app = typer.Typer(
    help="Serves diffusion models: text in, images and videos out.",
    add_completion=False,
    invoke_without_command=True,
    context_settings=_SETTINGS,
)


@app.callback()
def _without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def serve(config_file: Path | None, given: dict[str, Any]) -> int:
    """Serve a model over HTTP, with OpenAI's API, until Ctrl-C."""
    from safelight.cli.serve import serve

    resolved = _resolve(given, config_file, SERVE)
    return serve(_prepared(options.with_defaults(resolved)))


def generate(config_file: Path | None, given: dict[str, Any]) -> int:
    """Make videos or pictures from prompts and save them."""
    from safelight.cli.generate import generate

    if positional := given.pop("prompts", None):
        given["prompt"] = [*given.get("prompt", ()), *positional]
    resolved = _resolve(given, config_file, GENERATE)
    wanted = fields.convert(GenerateOptions, resolved.rest, error=ConfigError)
    engine = {"log_level": "warning", **resolved.engine}
    return generate(_prepared(engine), resolved.sampling, wanted)


def bench(config_file: Path | None, given: dict[str, Any]) -> int:
    """Make some samples and say how fast, and with --ranks what every rank did."""
    from safelight.cli.bench import bench

    resolved = _resolve(given, config_file, BENCH)
    wanted = fields.convert(BenchOptions, resolved.rest, error=ConfigError)
    engine = {"log_level": "warning", **resolved.engine}
    return bench(_prepared(engine), resolved.sampling, wanted)


def batch(config_file: Path | None, given: dict[str, Any]) -> int:
    """Make many pictures or videos from a file of requests."""
    from safelight.cli.batch.command import batch

    resolved = _resolve(given, config_file, BATCH)
    own = {field.name for field in fields.declared(BatchOptions)}
    rest = {name: value for name, value in resolved.rest.items() if name in own}
    wanted = fields.convert(BatchOptions, rest, error=ConfigError)
    common = {name: value for name, value in resolved.rest.items() if name not in own}
    engine = {"log_level": "warning", **resolved.engine}
    config = _engine_config(engine) if wanted.server else _prepared(engine)
    return batch(config, {**common, **resolved.sampling}, wanted)


def doctor(config_file: Path | None, given: dict[str, Any]) -> int:
    """Check what this machine has, and say what to do about what it has not."""
    from safelight.cli.doctor import doctor

    resolved = _resolve(given, config_file, DOCTOR)
    wanted = fields.convert(DoctorOptions, resolved.rest, error=ConfigError)
    return doctor(_engine_config(resolved.engine), wanted)


def pull(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id: organisation/name.")],
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit.", metavar="TEXT")
    ] = None,
) -> int:
    """Download a model from the hub into the local cache, and print its directory."""
    from safelight.cli.pull import pull

    return pull(model, revision)


def version() -> None:
    """Print the version."""
    from safelight import __version__

    typer.echo(__version__)


_PROMPTS = Annotated[
    list[str] | None, typer.Argument(metavar="PROMPT", help="The same as --prompt.")
]

app.command("serve", context_settings=_SETTINGS)(options.command(serve, SERVE))
app.command("generate", context_settings=_SETTINGS)(
    options.command(generate, GENERATE, arguments={"prompts": _PROMPTS})
)
app.command("batch", context_settings=_SETTINGS)(options.command(batch, BATCH))
app.command("bench", context_settings=_SETTINGS)(options.command(bench, BENCH))
app.command("doctor", context_settings=_SETTINGS)(options.command(doctor, DOCTOR))
app.command("pull", context_settings=_SETTINGS)(pull)
app.command("version")(version)


def _resolve(
    given: dict[str, Any], config_file: Path | None, panels: Sequence[Panel]
) -> options.Resolved:
    everything = options.by_name([*SERVE, *GENERATE, *BATCH, *BENCH, *DOCTOR])
    for warning in options.unknown_variables(everything):
        print(f"safelight: warning: {warning}", file=sys.stderr)
    return options.resolve_config(given, config_file, options.by_name(panels))


def _engine_config(values: dict[str, Any]) -> EngineConfig:
    return config.build(values)


def _prepared(values: dict[str, Any]) -> EngineConfig:
    """The configuration with its models in local files, downloaded if need be, and whole."""
    from safelight.cli.pull import downloading
    from safelight.models import sources

    return sources.prepare(_engine_config(values), downloading)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; its exit status. Every error on purpose becomes one line."""
    try:
        status = app(arguments, prog_name="safelight", standalone_mode=False)
    except TyperException as failure:
        return _complain(failure.format_message(), failure.exit_code)
    except (ConfigError, RequestError) as failure:
        return _complain(failure.message, USAGE_ERROR)
    except SafelightError as failure:
        return _complain(failure.message, 1)
    except OSError as failure:
        if failure.errno not in NO_SPACE:
            raise
        return _complain(no_space(failure), 1)
    except (KeyboardInterrupt, Abort):
        return INTERRUPTED
    return status or 0


def no_space(failure: OSError) -> str:
    """What to do about a full disk."""
    where = failure.filename or "the temporary directory or --data-dir"
    return f"No space: {failure.strerror}, writing {where}. Free some, or choose another directory."


def _complain(message: str, status: int) -> int:
    print(f"safelight: {message}", file=sys.stderr)
    return status


def main() -> None:
    """The entry point of the `safelight` command."""
    sys.exit(run())
