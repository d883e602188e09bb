"""Fidelity: HunyuanVideo 1.5 through the adapter against diffusers' own pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from fakes import cases
from fakes import zoo_hunyuan15 as zoo
from fakes.cases import Stepper
from fakes.parity import CPU
from safelight.models.hunyuan_video15.adapter import HunyuanVideo15Family
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec

TEXT, PICTURE = zoo.CASES
BATCHED = 1e-4  # of batched samples' latents, of about 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.tiny_hunyuan(tmp_path_factory.mktemp("hunyuan") / "model")


@pytest.fixture(scope="module")
def family(model: Path) -> HunyuanVideo15Family:
    found = cases.loaded(model)
    assert isinstance(found, HunyuanVideo15Family)
    return found


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with mean flow, too."""
    directory = tmp_path_factory.mktemp("pictured")
    return zoo.tiny_hunyuan_pictured(directory / "model", meanflow=True)


def made(family: HunyuanVideo15Family, spec: SampleSpec) -> np.ndarray:
    """Frames of one sample alone."""
    stepper = Stepper(family, Mesh.single(CPU))
    stepper.begin(spec)
    return stepper.finish(spec.id)


def test_the_bits_hold_in_half_precision(model: Path) -> None:
    half = (("dit_precision", "bf16"), ("vae_precision", "bf16"))
    family, spec = cases.loaded(model, half), cases.sample(TEXT, model)
    frames = made(family, spec)
    assert np.array_equal(frames, zoo.hunyuan_run(family.pipeline, spec))
    assert frames.std() > 1


def test_a_guider_that_stops_early_stops_for_each_sample(tmp_path: Path) -> None:
    """Half of two steps are guided, whatever a neighbour does."""
    model = zoo.tiny_hunyuan(tmp_path / "model", stop=0.5)
    family, spec = cases.loaded(model), cases.sample(TEXT, model)
    expected = zoo.hunyuan_reference(model, spec)
    stepper = Stepper(family, Mesh.single(CPU))
    stepper.begin(spec)
    stepper.step(spec.id)
    stepper.begin(cases.sample(TEXT, model, "b.0", num_inference_steps=3))
    stepper.step("b.0")
    assert np.array_equal(stepper.finish(spec.id), expected)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_scale_is_the_guiders(family: HunyuanVideo15Family, model: Path, scale: float) -> None:
    """One means no guidance, and nothing else does."""
    spec = cases.sample(TEXT, model, guidance_scale=scale, num_inference_steps=1)
    assert np.array_equal(made(family, spec), zoo.hunyuan_reference(model, spec))
    with torch.inference_mode():
        assert (family.encode(spec).negative is None) is (scale == 1.0)


def test_a_batch_is_one_forward(
    family: HunyuanVideo15Family, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three samples at different steps: guided, unguided, with words in quotes."""
    prompts = ["a circle", "a long red carpet, seen from far above", 'a sign says "OPEN"']
    values: list[dict[str, Any]] = [{}, {"guidance_scale": 1.0}, {"guidance_scale": 2.0}]
    specs = [
        msgspec.structs.replace(
            cases.sample(TEXT, model, f"{i}.0", num_inference_steps=2 + (i > 0), seed=i, **more),
            prompt=prompt,
        )
        for i, (prompt, more) in enumerate(zip(prompts, values, strict=True))
    ]
    assert len({spec.batch_key for spec in specs}) == 1
    stepper = Stepper(family, Mesh.single(CPU))
    stepper.begin(*specs)
    stepper.step("1.0")
    rows: list[int] = []
    forward = family.transformer.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        rows.append(len(kwargs["hidden_states"]))
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(family.transformer, "forward", counted)
        stepper.step("0.0", "1.0", "2.0", count=2)
    assert rows == [5, 5]
    stepper.step("2.0")
    for spec in specs:
        alone = Stepper(family, Mesh.single(CPU))
        alone.begin(spec)
        alone.step(spec.id, count=alone.left(spec.id))
        sessions = (one.executor._sessions[spec.id] for one in (alone, stepper))
        own, batched = (session.latents for session in sessions)
        assert (own - batched).abs().max() <= BATCHED


@torch.inference_mode()
def test_what_is_in_quotes_is_read_by_letter(family: HunyuanVideo15Family, model: Path) -> None:
    spec = cases.sample(TEXT, model)
    plain, quoted = (
        family.encode(msgspec.structs.replace(spec, prompt=prompt)).positive
        for prompt in ("a sign says OPEN", 'a sign says "OPEN"')
    )
    assert plain.glyphs_mask.sum() == 0
    assert quoted.glyphs_mask.sum() == len('Text "OPEN". ') + 1
    assert (plain.words.shape[1], plain.glyphs.shape[1]) == (1000, 256)


@torch.inference_mode()
def test_prompts_are_encoded_once(family: HunyuanVideo15Family, model: Path) -> None:
    spec = cases.sample(TEXT, model)
    family.encode(spec)
    before = family._prompts.misses
    family.encode(msgspec.structs.replace(spec, id="b.0"))
    assert family._prompts.misses == before


def test_a_transformer_of_mean_flow_and_its_picture(pictured: Path) -> None:
    family = cases.loaded(pictured)
    spec = cases.sample(PICTURE, pictured)
    frames = made(family, spec)
    assert frames.shape[1:3] == (spec.sampling.height, spec.sampling.width) == (48, 64)
    assert np.array_equal(frames, zoo.hunyuan_reference(pictured, spec))
    (picture,) = spec.inputs.images
    other = cases.picture(pictured.parent, picture.size, seed=9)
    inputs = msgspec.structs.replace(spec.inputs, images=(other,))
    changed = made(family, msgspec.structs.replace(spec, id="b.0", inputs=inputs))
    assert np.abs(frames.astype(int) - changed).max() > 5
