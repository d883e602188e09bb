"""Declarations: one field, and everything derived from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from safelight import config, fields
from safelight.errors import ConfigError, InvalidRequest, UnknownField
from safelight.manager.models import check_memory


class Toy(msgspec.Struct, frozen=True):
    number_of_things: Annotated[int, Meta(ge=1, le=9, description="How many.")] = 3
    name: str = "x"


def test_a_declared_field_knows_its_flag_variable_and_help() -> None:
    first, _ = fields.declared(Toy)
    assert (first.flag, first.variable) == ("--number-of-things", "SAFELIGHT_NUMBER_OF_THINGS")
    assert (first.help, first.default, first.type) == ("How many.", 3, int)


def test_names_are_unique_in_the_whole_tree() -> None:
    names = [f.name for section in config.SECTIONS.values() for f in fields.declared(section)]
    assert len(names) == len(set(names))
    assert all(f.help for f in config.engine_fields().values())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"number_of_things": 12}, ["number_of_things", "<= 9", "got 12"]),
        ({"number_of_things": "many"}, ["number_of_things", "int", "'many'"]),
    ],
)
def test_a_wrong_value_is_explained(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InvalidRequest) as failure:
        fields.convert(Toy, values)
    assert all(word in str(failure.value) for word in words)
    assert failure.value.param == "number_of_things"


def test_strings_become_numbers_only_where_the_source_has_no_types() -> None:
    assert fields.convert(Toy, {"number_of_things": "4"}, strict=False).number_of_things == 4
    with pytest.raises(InvalidRequest):
        fields.convert(Toy, {"number_of_things": "4"})


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(UnknownField, match="Did you mean 'number_of_things'"):
        fields.refuse_unknown(["number_of_thing"], [f.name for f in fields.declared(Toy)])
    with pytest.raises(ConfigError, match="Did you mean 'max_batch_size'"):
        config.build({"max_batchsize": 3})


def test_the_tree_is_built_from_flat_names_and_keeps_defaults() -> None:
    built = config.build({"port": 1234, "max_batch_size": 5})
    assert (built.server.port, built.scheduling.max_batch_size) == (1234, 5)
    assert built.server.host == "127.0.0.1"
    assert config.EngineConfig() == config.build({})


def test_files_are_json_or_yaml_with_dashes_or_underscores(tmp_path: Path) -> None:
    yaml, json = tmp_path / "c.yaml", tmp_path / "c.json"
    yaml.write_text("model-path: x\nport: 1\n")
    json.write_text('{"model_path": "x", "port": 1}')
    assert config.read_file(yaml) == config.read_file(json) == {"model_path": "x", "port": 1}
    for text in ("[1, 2]", "a: [", "just words"):
        yaml.write_text(text)
        with pytest.raises(ConfigError):
            config.read_file(yaml)
    with pytest.raises(ConfigError, match="Cannot read"):
        config.read_file(tmp_path / "missing.yaml")


def test_the_environment_is_read_by_name() -> None:
    names = config.engine_fields()
    read = config.from_environment(names, {"SAFELIGHT_PORT": "77", "SAFELIGHT_X": "1", "PORT": "2"})
    assert read == {"port": "77"}
    assert config.build(read, strict=False).server.port == 77


def test_the_model_name_is_the_last_part_of_its_path() -> None:
    assert config.build({}).model_name == "shapes"
    assert config.build({"model_path": "/models/Wan2.1"}).model_name == "Wan2.1"
    assert config.build({"served_model_name": "wan"}).model_name == "wan"


def test_an_alias_is_the_same_setting() -> None:
    assert config.build({"sp_size": 2}) == config.build({"sp_degree": 2})
    assert config.build({"sp_size": 2, "sp_degree": 2}).parallel.sp_degree == 2
    with pytest.raises(ConfigError, match="'sp_size' and 'sp_degree' are the same"):
        config.build({"sp_size": 2, "sp_degree": 4})


def test_an_alias_is_read_from_the_environment_too() -> None:
    found = config.from_environment(config.engine_fields(), {"SAFELIGHT_SP_SIZE": "2"})
    assert found == {"sp_degree": "2"}


class TestSeveralModels:
    def test_each_has_what_holds_for_all_and_its_own(self) -> None:
        entries = config.build(
            {
                "device": "cpu",
                "dit_precision": "fp32",
                "model": ["a=./one"],
                "models": [{"name": "b", "path": "./two", "dit-precision": "bf16", "load": False}],
            }
        ).entries
        assert [entry.name for entry in entries] == ["a", "b"]
        assert [entry.model.model_path for entry in entries] == ["./one", "./two"]
        assert [entry.model.dit_precision for entry in entries] == ["fp32", "bf16"]
        assert {entry.model.device for entry in entries} == {"cpu"}

    def test_those_loaded_at_the_start(self) -> None:
        models = [{"name": name, "path": "./x", "load": name != "b"} for name in "abcd"]
        assert config.build({"models": models}).at_start == ("a", "c", "d")
        assert config.build({"models": models, "max_loaded_models": 2}).at_start == ("a", "c")

    def test_one_model_is_a_list_of_one(self) -> None:
        built = config.build({"model_path": "./Wan"})
        assert [entry.name for entry in built.entries] == ["Wan"]
        assert built.of("Wan").model == built.model

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"model": ["x"]}, "NAME=PATH"),
            ({"model": ["a=./x", "a=./y"]}, "Two models are called 'a'"),
            ({"models": [{"name": "a", "paht": "./x"}]}, "'paht'"),
            ({"models": [{"name": "a", "port": 3}]}, "'port'"),
            ({"models": [{"name": "a", "load": "yes"}]}, "true or false"),
            ({"models": "a"}, "models"),
            (
                {"models": [{"name": "a", "tp_size": 2, "text_encoder_cpu_offload": True}]},
                "two ways",
            ),
        ],
    )
    def test_mistakes_are_named(self, values: dict[str, object], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            config.build(values)


def test_more_at_the_start_than_may_be_loaded_is_refused() -> None:
    built = config.build(
        {"model": ["a=builtin:shapes", "b=builtin:shapes"], "model_memory_gib": 0.005}
    )
    with pytest.raises(ConfigError, match="load: false"):
        check_memory(built)
    check_memory(config.build({"model": ["a=builtin:shapes"], "model_memory_gib": 1.0}))
