"""What a rank needs is what it then has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from safelight import config as configuration
from safelight.builtin import builtin_model
from safelight.errors import ConfigError
from safelight.models.footprint import footprint, parameters
from safelight.models.registry import load_family
from safelight.parallel.layout import Layout

CONFIG = configuration.build({"device": "cpu"})


def test_the_weights_are_those_that_are_loaded() -> None:
    expected = footprint(CONFIG, Layout(), cuda=False).weights
    loaded = load_family(CONFIG).weights()
    for component, count in expected.items():
        assert abs(loaded[component] / count - 1) < 0.01, component


def test_layouts_share_out_what_they_can() -> None:
    whole = footprint(CONFIG, Layout(), cuda=False)
    shared = footprint(CONFIG, Layout(ulysses=4, tp=4), cuda=False)
    assert shared.weights["text_encoder"] == whole.weights["text_encoder"] // 4
    assert shared.weights["transformer"] == whole.weights["transformer"]
    assert 3 * shared.activations < whole.activations < 5 * shared.activations
    assert shared.total < whole.total


def test_precision_counts() -> None:
    half = configuration.build({"device": "cpu", "dit_precision": "bf16"})
    whole, halved = (footprint(c, Layout(), cuda=False).weights for c in (CONFIG, half))
    assert halved["transformer"] * 2 == whole["transformer"]
    assert halved["vae"] == whole["vae"]
    assert footprint(CONFIG, Layout(), cuda=True).weights == halved


def test_other_copies_of_the_weights_do_not_count(tmp_path: Path) -> None:
    expected = parameters(builtin_model("shapes"))
    copy = shutil.copytree(builtin_model("shapes"), tmp_path / "model")
    for component in expected:
        (file,) = (copy / component).glob("*.safetensors")
        shutil.copy(file, file.with_name(f"{file.stem}.fp16.safetensors"))
        shutil.copy(file, file.with_name(f"{file.stem}-00001-of-00001.safetensors"))
    assert parameters(copy) == expected


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
def test_the_files_of_an_index_count_together(tmp_path: Path, stem: str) -> None:
    folder = tmp_path / "component"
    folder.mkdir()
    names = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    write(folder / names[0], a=(2, 3))
    write(folder / names[1], b=(4,), c=())
    write(folder / "left-over.safetensors", d=(1000,))
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1], "c": names[1]}}))
    assert parameters(tmp_path) == {"component": 11}

    (folder / names[1]).unlink()
    with pytest.raises(ConfigError, match=f"{names[1]} cannot be read"):
        parameters(tmp_path)
    index.write_text("{}")
    with pytest.raises(ConfigError, match=r"index\.json has no weight_map"):
        parameters(tmp_path)


def write(path: Path, **shapes: tuple[int, ...]) -> None:
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"short")
    with pytest.raises(ConfigError, match=f"{path} is not a safetensors file"):
        parameters(tmp_path)


def test_each_text_encoder_has_its_own_precision() -> None:
    config = configuration.build({"device": "cpu", "text_encoder_precisions": ["fp16"]})
    whole, halved = (footprint(c, Layout(), cuda=False).weights for c in (CONFIG, config))
    assert halved["text_encoder"] * 2 == whole["text_encoder"]


def test_a_transformer_in_eight_bits_needs_a_quarter() -> None:
    config = configuration.build({"device": "cpu", "quantization": "fp8-storage"})
    whole, packed = (footprint(c, Layout(), cuda=False) for c in (CONFIG, config))
    assert packed.weights["transformer"] * 4 == whole.weights["transformer"]
    assert packed.activations == whole.activations


def test_one_file_counts_instead_of_the_directory(tmp_path: Path) -> None:
    write(file := tmp_path / "one.safetensors", a=(10, 10))
    found = parameters(builtin_model("shapes"), {"transformer": file})
    assert found == {**parameters(builtin_model("shapes")), "transformer": 100}
