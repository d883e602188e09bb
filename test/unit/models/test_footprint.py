"""What a rank needs is what it then has."""

from __future__ import annotations

from pathlib import Path

import pytest

from safelight import config as configuration
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


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "x.safetensors").write_bytes(b"short")
    with pytest.raises(ConfigError, match="is not a safetensors file"):
        parameters(tmp_path)
