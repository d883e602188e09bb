"""Options are derived from declarations, and the sources are merged in one order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
import typer
from msgspec import Meta
from typer.testing import CliRunner

from safelight import config
from safelight.cli import app as application
from safelight.cli import options
from safelight.cli.doctor import DoctorOptions
from safelight.cli.generate import GenerateOptions
from safelight.cli.options import Panel
from safelight.errors import ConfigError
from safelight.fields import declared
from safelight.request import Sampling

ENGINE = options.by_name(options.engine_panels())
GENERATE = options.by_name(application.GENERATE)


def help_of(command: str) -> str:
    result = CliRunner().invoke(
        application.app, [command, "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}
    )
    assert result.exit_code == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", result.output)


def test_every_engine_field_is_an_option_of_serve_under_its_section() -> None:
    text = help_of("serve")
    for section, struct in config.SECTIONS.items():
        assert f"─ {section.capitalize()} ─" in text
        for field in declared(struct):
            # A structure has no room on a command line.
            found = re.search(rf"{field.flag}(?![-\w])", text)
            assert (found is None) == field.file_only, field.flag
    assert "--guidance-scale" not in text


def test_generate_adds_sampling_and_its_own() -> None:
    text = help_of("generate")
    for field in (*declared(Sampling), *declared(GenerateOptions), *ENGINE.values()):
        if not field.file_only:
            assert re.search(rf"{field.flag}\b", text), field.flag
    assert "--steps" in text
    assert "(default: the model's)" in text


def test_no_name_means_two_things() -> None:
    """Flags, keys and variables are flat."""
    names = [f.name for panel in application.GENERATE for f in panel.fields]
    assert len(names) == len(set(names))
    assert not set(ENGINE) & {f.name for f in declared(DoctorOptions)}
    assert "config" not in names


class Toy(msgspec.Struct, frozen=True, kw_only=True):
    """A section somebody adds."""

    wheels: Annotated[int, Meta(ge=1, le=8, description="How many wheels.")] = 4
    colour: Annotated[Literal["red", "blue"], Meta(description="Which colour.")] = "red"
    open_top: Annotated[bool, Meta(description="Without a roof.")] = False
    name: Annotated[str | None, Meta(description="What it is called.")] = None
    loads: Annotated[list[str], Meta(description="What it carries.")] = []


def toy_run(
    arguments: list[str], environ: dict[str, str], file: Path | None = None
) -> dict[str, Any]:
    """What a command with the toy section gets from all its sources."""
    panels = [Panel("Toy", declared(Toy))]
    seen: dict[str, Any] = {}

    def drive(config_file: Path | None, given: dict[str, Any]) -> int:
        """Drive it."""
        resolved = options.resolve_config(
            given, config_file, options.by_name(panels), environ=environ
        )
        seen.update(resolved.rest)
        return 0

    app = typer.Typer()
    app.command()(options.command(drive, panels))
    config_arguments = ["--config", str(file)] if file else []
    result = CliRunner().invoke(app, [*arguments, *config_arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return seen


def test_a_new_field_is_a_flag_a_variable_and_a_key(tmp_path: Path) -> None:
    assert toy_run(["--wheels", "3"], {}) == {"wheels": 3}
    assert toy_run([], {"SAFELIGHT_WHEELS": "5"}) == {"wheels": 5}
    for key in ("open-top: true", "open_top: true", '{"open-top": true}'):
        file = tmp_path / "toy.yaml"
        file.write_text(key)
        assert toy_run([], {}, file) == {"open_top": True}


def test_every_type_reads_from_every_source(tmp_path: Path) -> None:
    wanted = {"colour": "blue", "open_top": True, "name": "Bo", "loads": ["hay"], "wheels": 2}
    flags = ["--colour", "blue", "--open-top", "--name", "Bo", "--loads", "hay", "--wheels", "2"]
    assert toy_run(flags, {}) == wanted
    variables = {
        "SAFELIGHT_COLOUR": "blue",
        "SAFELIGHT_OPEN_TOP": "true",
        "SAFELIGHT_NAME": "Bo",
        "SAFELIGHT_LOADS": "hay",
        "SAFELIGHT_WHEELS": "2",
    }
    assert toy_run([], variables) == wanted
    file = tmp_path / "toy.json"
    file.write_bytes(msgspec.json.encode(wanted))
    assert toy_run([], {}, file) == wanted


def test_nothing_given_is_nothing_resolved() -> None:
    assert toy_run([], {}) == {}


def test_precedence_is_command_line_environment_file(tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text("wheels: 1\ncolour: blue\nname: file\nopen_top: true")
    environ = {"SAFELIGHT_WHEELS": "2", "SAFELIGHT_COLOUR": "red"}
    given = ["--wheels", "3", "--no-open-top"]
    assert toy_run(given, environ, file) == {
        "wheels": 3,
        "colour": "red",
        "name": "file",
        "open_top": False,
    }


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (["--wheels", "9"], {}, "--wheels: expected `int` <= 8: '9'"),
        (["--wheels", "many"], {}, "--wheels: expected `int`"),
        (["--colour", "green"], {}, "--colour: invalid enum value 'green'"),
        ([], {"SAFELIGHT_WHEELS": "x"}, "SAFELIGHT_WHEELS: expected `int`"),
        ([], {"SAFELIGHT_OPEN_TOP": "perhaps"}, "SAFELIGHT_OPEN_TOP: expected `bool`"),
    ],
)
def test_a_wrong_value_is_named_as_its_source_spells_it(
    arguments: list[str], environ: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        toy_run(arguments, environ)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weels: 3", "Unknown setting 'weels'. Did you mean 'wheels'?"),
        ("wheels: [1]", "toy.yaml: wheels: expected `int`, got `array`"),
        ("- wheels", "a mapping of names is needed"),
        ("a: b: c", "neither JSON nor YAML"),
    ],
)
def test_a_wrong_file_is_a_clear_error(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        toy_run([], {}, file)


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Cannot read the config file"):
        toy_run([], {}, tmp_path / "none.yaml")


def test_values_go_to_whom_they_are_for() -> None:
    given = {"port": "0", "seed": "7", "prompt": ["x"], "guidance_scale": "2"}
    resolved = options.resolve_config(given, None, GENERATE, environ={})
    assert resolved.engine == {"port": 0}
    assert resolved.sampling == {"seed": 7, "guidance_scale": 2.0}
    assert resolved.rest == {"prompt": ["x"]}


def test_size_is_width_and_height_of_its_own_source(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("size: 64x48\nwidth: 64")
    resolved = options.resolve_config({"width": "96"}, file, GENERATE, environ={})
    assert resolved.sampling == {"width": 96, "height": 48}
    assert resolved.rest == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": "64"}, "--size: WIDTHxHEIGHT"),
        ({"size": "64xhigh"}, "--size: WIDTHxHEIGHT"),
        ({"size": "64x48", "height": "64"}, "--size 64x48 and --height disagree"),
    ],
)
def test_a_wrong_size_is_a_clear_error(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        options.resolve_config(given, None, GENERATE, environ={})


def test_a_misspelt_variable_is_warned_about() -> None:
    environ = {"SAFELIGHT_DEVISE": "cpu", "SAFELIGHT_PORT": "2", "HOME": "/", "SAFELIGHT_SEED": ""}
    assert options.unknown_variables(GENERATE, environ) == [
        "Unknown environment variable 'SAFELIGHT_DEVISE'. Did you mean 'SAFELIGHT_DEVICE'?"
    ]
