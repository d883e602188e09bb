"""What a model is put together from, and what of it cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from safelight import config as configuration
from safelight.config import ModelConfig
from safelight.errors import ConfigError
from safelight.models import specs
from safelight.models.registry import load_card, load_family
from safelight.models.sources import components, prepare, resolve


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def settings(**values: Any) -> ModelConfig:
    return configuration.build({"device": "cpu", **values}).model


@pytest.fixture
def other_vae(tiny_wan_directory: Path, tmp_path: Path) -> Path:
    """A VAE that says of itself to be another class."""
    folder = Path(shutil.copytree(tiny_wan_directory / "vae", tmp_path / "other-vae"))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "latents_mean": [0.5] * 16}))
    return folder


def test_resolving_again_changes_nothing(tiny_wan_directory: Path, other_vae: Path) -> None:
    model = settings(model_path=str(tiny_wan_directory), vae_path=str(other_vae))
    resolved = resolve(model)
    assert resolve(resolved) == resolved
    assert resolve(settings()).model_path == "builtin:shapes"
    assert resolve(resolve(settings())) == resolve(settings())


def test_the_name_stays_that_of_the_path(tiny_wan_directory: Path, other_vae: Path) -> None:
    assert resolve(settings()).served_model_name == "shapes"
    model = settings(model_path=str(tiny_wan_directory), vae_path=str(other_vae))
    assert resolve(model).served_model_name == "tiny-wan"
    named = settings(model_path=str(tiny_wan_directory), served_model_name="mine")
    assert resolve(named).served_model_name == "mine"


def test_the_name_in_the_model_itself_counts_before_the_path(
    tiny_wan_directory: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_wan_directory, tmp_path / "copy"))
    (copy / "safelight.json").write_text('{"name": "own"}')
    config = configuration.build({"model_path": str(copy), "device": "cpu"})
    assert load_card(prepare(config)).name == "own"


def test_another_component_is_read_from_its_directory(
    tiny_wan_directory: Path, other_vae: Path, cache: Path
) -> None:
    config = configuration.build(
        {"model_path": str(tiny_wan_directory), "vae_path": str(other_vae), "device": "cpu"}
    )
    resolved = prepare(config)
    directory = Path(resolved.model.model_path)
    assert directory.is_relative_to(cache)
    assert specs.config(directory, "vae")["latents_mean"] == [0.5] * 16
    vae = load_family(resolved).pipeline.vae  # type: ignore[attr-defined]
    assert vae.config.latents_mean == [0.5] * 16
    assert len(list(directory.parent.iterdir())) == 1
    assert prepare(config) == resolved
    assert len(list(directory.parent.iterdir())) == 1


def test_a_component_may_be_of_another_class(tiny_wan_directory: Path, other_vae: Path) -> None:
    path = other_vae / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "AutoencoderTiny"}))
    model = settings(model_path=str(tiny_wan_directory), component=[f"vae={other_vae}"])
    index = Path(resolve(model).model_path, "model_index.json")
    assert json.loads(index.read_text())["vae"] == ["diffusers", "AutoencoderTiny"]


def test_the_model_need_not_have_what_is_replaced(tiny_wan_directory: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_wan_directory, tmp_path / "base"))
    other = Path(shutil.move(base / "transformer", tmp_path / "transformer"))
    family = load_family(
        prepare(configuration.build({"model_path": str(base), "transformer_path": str(other)}))
    )
    assert family.weights()["transformer"] > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"component": ["vae"]}, "NAME=PATH is needed, got 'vae'"),
        ({"component": ["vae=/a", "vae=/b"]}, "vae is given twice"),
        ({"component": ["vae=/a"], "vae_path": "/b"}, "vae is given twice"),
        ({"component": ["unet=/a"]}, "none of that name, but scheduler, text_encoder"),
        ({"vae_path": "/nowhere"}, "There is no /nowhere, which was given for vae"),
        ({"revision": "main"}, "is local, and has no revisions"),
    ],
)
def test_what_cannot_be_is_refused(
    tiny_wan_directory: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as failure:
        resolve(settings(model_path=str(tiny_wan_directory), **values))
    assert message in failure.value.message
    assert "\n" not in failure.value.message


def test_only_transformers_are_read_from_one_file(tiny_wan_directory: Path) -> None:
    file = tiny_wan_directory / "vae" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(ConfigError, match="Give vae a directory"):
        resolve(settings(model_path=str(tiny_wan_directory), vae_path=str(file)))
    resolved = resolve(settings(model_path=str(tiny_wan_directory), transformer_path=str(file)))
    assert components(resolved) == {"transformer": file.resolve()}


def test_a_failure_leaves_nothing(tiny_wan_directory: Path, other_vae: Path, cache: Path) -> None:
    (other_vae / "config.json").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve(settings(model_path=str(tiny_wan_directory), vae_path=str(other_vae)))
    assert not cache.exists()


def test_quantizations_that_contradict_each_other(tmp_path: Path) -> None:
    model = settings(transformer_path=str(tmp_path / "a.gguf"), quantization="fp8-storage")
    with pytest.raises(ConfigError, match="two quantizations"):
        resolve(model)


def test_a_model_without_a_transformer_is_not_quantized(
    tiny_wan_directory: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_wan_directory, tmp_path / "copy"))
    index = json.loads((copy / "model_index.json").read_text())
    del index["transformer"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"is of transformers, and .* has none"):
        resolve(settings(model_path=str(copy), quantization="fp8-storage"))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'safelight\[quantization\]'"):
        resolve(settings(quantization="int8"))
