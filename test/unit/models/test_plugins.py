"""Families of other packages: found by entry point, and what is said of those that are broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safelight import config as configuration
from safelight.errors import ConfigError
from safelight.models import plugins
from safelight.models.card import ModelCard
from safelight.models.registry import load_capabilities, load_card, load_family
from safelight.models.sources import prepare

SPEC = """
from safelight.models.card import ModelCard, Range
from safelight.parallel.layout import Capabilities

def card(directory, name):
    side = Range(64, 64)
    return ModelCard(
        name=name, family="{name}", path=str(directory), tasks=("text-to-image",), width=side,
        height=side, num_frames=Range(1, 1), max_tokens=64, patch=(1, 8, 8),
        defaults=dict(width=64, height=64, num_frames=1, num_inference_steps=2),
    )

def capabilities(directory):
    return Capabilities(transformer="{name}", heads=1)
"""
ADAPTER = "def load(directory, config, mesh):\n    return '{name}', directory\n"


class Site:
    """A directory of installed packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self, name: str, *, distribution: str | None = None, version: str = "1.2", **modules: str
    ) -> None:
        """A package that brings the family `name`, with these modules beside `__init__`."""
        package = f"{distribution or name}_package".replace("-", "_")
        (self.folder / package).mkdir()
        for module, source in {"__init__": "", **modules}.items():
            (self.folder / package / f"{module}.py").write_text(source.replace("{name}", name))
        self.register(name, package, distribution or name, version)

    def register(self, name: str, package: str, distribution: str, version: str = "1.2") -> None:
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[safelight.families]\n{name} = {package}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return Site(folder)


def own_code(folder: Path, **said: Any) -> Path:
    """A model without `model_index.json`."""
    folder.mkdir()
    (folder / "safelight.json").write_text(json.dumps(said))
    return folder


def settings(directory: Path, **values: Any) -> configuration.EngineConfig:
    return configuration.build({"model_path": str(directory), "device": "cpu", **values})


def said_of(directory: Path, **values: Any) -> str:
    """What is said where the model is refused, before anything is started: one line."""
    with pytest.raises(ConfigError) as refused:
        load_card(prepare(settings(directory, **values)))
    assert "\n" not in refused.value.message
    return refused.value.message


def test_a_model_with_its_own_code_names_its_family(site: Site, tmp_path: Path) -> None:
    site.install("one-name", spec=SPEC, adapter=ADAPTER)
    directory = own_code(tmp_path / "model", family="one-name", defaults={"num_inference_steps": 3})
    config = prepare(settings(directory))
    card = load_card(config)
    assert (card.family, card.name) == ("one-name", "model")
    assert card.defaults["num_inference_steps"] == 3
    assert load_capabilities(config).transformer == "one-name"
    assert load_family(config) == ("one-name", directory)
    assert prepare(config) == config


def test_a_plug_in_goes_before_our_own_for_a_pipeline_class(
    site: Site, tiny_wan_directory: Path
) -> None:
    config = prepare(settings(tiny_wan_directory))
    assert load_card(config).family == "wan"
    site.install("WanPipeline", spec=SPEC, adapter=ADAPTER)
    assert load_card(prepare(settings(tiny_wan_directory))).family == "WanPipeline"


def test_a_plug_in_for_a_class_that_diffusers_lacks(site: Site, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model_index.json").write_text('{"_class_name": "OursPipeline"}')
    message = said_of(directory)
    assert "has no pipeline class 'OursPipeline'" in message
    assert "'safelight.families'" in message
    site.install("OursPipeline", spec=SPEC, adapter=ADAPTER)
    assert load_card(prepare(settings(directory))).family == "OursPipeline"


def test_a_family_that_is_not_installed(site: Site, tmp_path: Path) -> None:
    directory = own_code(tmp_path / "model", family="emu")
    assert "'emu', which no installed package brings" in said_of(directory)
    others = plugins.names()
    assert said_of(directory).endswith(f"installed families: {', '.join(others) or 'none'}.")
    site.install("bagel", spec=SPEC, adapter=ADAPTER)
    names = ", ".join(sorted(["bagel", *others]))
    assert said_of(directory).endswith(f"installed families: {names}.")


def test_a_directory_that_names_neither_says_how(tmp_path: Path) -> None:
    message = said_of(own_code(tmp_path / "model", name="mine"))
    assert "no model_index.json" in message
    assert '{"family": "NAME"}' in message


def test_two_packages_with_one_family(site: Site, tmp_path: Path) -> None:
    for distribution in ("first", "second"):
        site.install("both", distribution=distribution, spec=SPEC, adapter=ADAPTER)
    message = said_of(own_code(tmp_path / "model", family="both"))
    assert message.startswith("first 1.2, second 1.2 all bring the family 'both'.")


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("lacks", "import flash_mlp", "ModuleNotFoundError: No module named 'flash_mlp'"),
        ("typo", "def card(:", "SyntaxError"),
        ("raises", "1 / 0", "ZeroDivisionError"),
        ("other", "from safelight.models import nothing", "ImportError"),
    ],
)
def test_a_plug_in_that_cannot_be_imported(
    site: Site, tmp_path: Path, name: str, spec: str, words: str
) -> None:
    site.install(name, distribution=f"safelight-{name}", spec=spec)
    message = said_of(own_code(tmp_path / "model", family=name))
    assert message.startswith(f"safelight-{name} 1.2 brings the family '{name}', but cannot be")
    assert words in message
    assert f"pip install safelight-{name}" in message
    assert f"pip uninstall safelight-{name}" in message


def test_a_plug_in_without_its_parts(site: Site, tmp_path: Path) -> None:
    cases: dict[str, dict[str, str]] = {
        "nospec": {},
        "nocard": {"spec": "def capabilities(directory): ..."},
        "noload": {"spec": SPEC, "adapter": ""},
    }
    words = {
        "nospec": "there is no module nospec_package.spec",
        "nocard": "nocard_package.spec has no card",
        "noload": "noload_package.adapter has no load",
    }
    for name, modules in cases.items():
        site.install(name, **modules)
        directory = own_code(tmp_path / name, family=name)
        with pytest.raises(ConfigError) as refused:
            load_family(settings(directory)) if name == "noload" else load_card(settings(directory))
        message = refused.value.message
        assert message.startswith(f"{name} 1.2 brings the family '{name}', but {words[name]}.")
        assert f"pip uninstall {name}." in message


def test_a_package_that_is_not_there_any_more(site: Site, tmp_path: Path) -> None:
    site.register("gone", "gone.families.x", "safelight-gone")
    message = said_of(own_code(tmp_path / "model", family="gone"))
    assert "safelight-gone 1.2 brings the family 'gone', but there is no module gone." in message


def test_a_plug_in_checks_the_files_of_its_model(site: Site, tmp_path: Path) -> None:
    verify = (
        "\ndef verify(directory):\n"
        "    from safelight.models import checkpoint\n"
        "    checkpoint.verify_weights(directory / 'net')\n"
    )
    site.install("careful", spec=SPEC + verify, adapter=ADAPTER)
    directory = own_code(tmp_path / "model", family="careful")
    (directory / "net").mkdir()
    (directory / "net" / "config.json").write_text("{}")
    (directory / "net" / "model.safetensors").write_bytes(b"version https://git-lfs")
    assert "git lfs pull" in said_of(directory)


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        ({"vae_path": "."}, "--component vae"),
        ({"quantization": "fp8-storage"}, "--quantization fp8-storage"),
    ],
)
def test_of_a_model_with_its_own_code_nothing_is_exchanged(
    site: Site, tmp_path: Path, flags: dict[str, str], flag: str
) -> None:
    site.install("whole", spec=SPEC, adapter=ADAPTER)
    message = said_of(own_code(tmp_path / "model", family="whole"), **flags)
    assert message.startswith(f"{flag}: ")
    assert "own code" in message


def test_names_are_those_of_all_packages(site: Site) -> None:
    others = plugins.names()
    for name in ("b", "a"):
        site.register(name, "x", f"d-{name}")
    assert plugins.names() == sorted(["a", "b", *others])
    assert plugins.find("c") is None


def test_doctor_knows_such_models_too(site: Site, tmp_path: Path) -> None:
    from safelight.cli import checks

    site.install("seen", spec=SPEC, adapter=ADAPTER)
    config = settings(own_code(tmp_path / "model", family="seen"))
    assert checks.model(config).found.startswith("model (seen) in ")
    assert all(check.status == "ok" for check in checks.layouts(config))
    assert isinstance(load_card(config), ModelCard)
