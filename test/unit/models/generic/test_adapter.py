"""Any pipeline, stepped from outside: what the matrix of `test_pipelines.py` does not cover."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from diffusers import LDMTextToImagePipeline, StableDiffusionPAGPipeline

from fakes import cases, zoo_generic, zoo_generic_unet
from fakes.cases import Case, Stepper
from fakes.zoo_generic_parts import GUIDED, case, reference
from safelight import config as configuration
from safelight.errors import ConfigError, GenerationFailed
from safelight.models.generic.adapter import GenericFamily, load
from safelight.models.generic.results import made_of
from safelight.parallel.layout import Layout
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec
from safelight.wire.messages import Decode, Encode, Step

CPU = torch.device("cpu")
PLAIN = next(one for one in zoo_generic_unet.CASES if one.task == "text-to-image")
PERTURBED = case(
    "PAG",
    zoo_generic_unet.tiny_perturbed,
    reference(StableDiffusionPAGPipeline, "guidance_scale"),
)
LOOPED = case("LDM", zoo_generic_unet.tiny_ldm, reference(LDMTextToImagePipeline, "guidance_scale"))
OLD = next(one for one in zoo_generic.CASES if one.name == "PixArt-Sigma")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """Where a case's checkpoint lies; written once."""
    written: dict[Any, Path] = {}

    def find(one: Case) -> Path:
        if one.make not in written:
            written[one.make] = one.make(tmp_path_factory.mktemp("generic") / "model")
        return written[one.make]

    return find


@pytest.fixture(scope="module")
def family(directory: Callable[[Case], Path]) -> GenericFamily:
    loaded = cases.loaded(directory(PLAIN))
    assert isinstance(loaded, GenericFamily)
    return loaded


@pytest.fixture
def spec(directory: Callable[[Case], Path]) -> SampleSpec:
    return cases.sample(PLAIN, directory(PLAIN))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert threads() == 0


def threads() -> int:
    return sum(thread.name == "safelight-sample" for thread in threading.enumerate())


def another(spec: SampleSpec, name: str, **sampling: Any) -> SampleSpec:
    changed = msgspec.structs.replace(spec.sampling, **sampling)
    return msgspec.structs.replace(spec, id=name, sampling=changed)


def test_every_step_is_one_of_the_pipeline(family: GenericFamily, spec: SampleSpec) -> None:
    session = family.begin(spec, None)
    assert (session.index, session.steps) == (0, 4)
    seen = [session.latents.clone()]
    for index in range(4):
        family.step([session])
        assert session.index == index + 1
        assert session.latents.shape == (1, 4, 8, 8)
        assert not any(torch.equal(session.latents, before) for before in seen)
        seen.append(session.latents.clone())
    frames = family.decode([session])[0]
    assert frames.shape == (1, 64, 64, 3)  # type: ignore[union-attr]
    assert family.decode([session])[0] is frames  # again, if its file was lost


def test_a_strength_takes_fewer_steps(directory: Callable[[Case], Path]) -> None:
    pictured = next(one for one in zoo_generic_unet.CASES if one.task == "image-to-image")
    path = directory(pictured)
    family = cases.loaded(path)
    sample = cases.sample(pictured, path, num_inference_steps=10, strength=0.5)
    assert family.begin(sample, None).steps == 5


@pytest.mark.parametrize("one", [LOOPED, OLD], ids=["no callback", "old callback"])
def test_older_pipelines_are_stepped_too(one: Case, directory: Callable[[Case], Path]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        one.environment(patch)
        path = directory(one)
        family = cases.loaded(path)
        session = family.begin(cases.sample(one, path, num_inference_steps=3), None)
        assert session.steps == 3
        shown = set()
        for _ in range(3):
            family.step([session])
            shown.add(float(session.latents.sum()))
        assert len(shown) == (3 if one is OLD else 1)


def test_what_changes_its_model_runs_in_one_step(directory: Callable[[Case], Path]) -> None:
    path = directory(PERTURBED)
    card, family = cases.card_of(path), cases.loaded(path)
    assert "StableDiffusionPAGPipeline changes its model" in card.limits["preemption"]
    spec = cases.sample(PERTURBED, path)
    stepper = Stepper(family, Mesh.single(CPU))
    stepper.begin(spec, another(spec, "b.0"))
    assert stepper.left(spec.id) == 1
    assert threads() == 0
    made = stepper.finish(spec.id)
    assert np.array_equal(made, PERTURBED.reference(path, spec))
    assert np.array_equal(stepper.finish("b.0"), made)


def test_a_dropped_sample_ends_and_the_next_is_fine(
    family: GenericFamily, spec: SampleSpec
) -> None:
    stepper = Stepper(family, Mesh.single(CPU))
    stepper.begin(spec)
    undisturbed = stepper.finish(spec.id)
    stepper.begin(spec)
    stepper.step(spec.id, count=2)
    assert threads() == 1
    stepper.executor.release([spec.id])
    assert threads() == 0
    stepper.begin(spec)
    assert np.array_equal(stepper.finish(spec.id), undisturbed)
    assert threads() == 0


def test_a_hundred_begun_and_released(family: GenericFamily, spec: SampleSpec) -> None:
    for index in range(100):
        session = family.begin(another(spec, f"{index}.0", num_inference_steps=2), None)
        assert threads() == 1
        del session
        assert threads() == 0


def test_two_that_take_turns_do_not_touch_each_other(
    family: GenericFamily, spec: SampleSpec
) -> None:
    """Other guidance, other steps: what pipelines keep on themselves."""
    other = another(spec, "b.0", guidance_scale=1.0, num_inference_steps=6, seed=3)
    alone = {}
    for one in (spec, other):
        alone[one.id] = family.decode([family.begin(one, None)])[0]
    sessions = [family.begin(spec, None), family.begin(other, None)]
    for _ in range(4):
        family.step(sessions)
    family.step(sessions[1:])
    for session in sessions:
        assert np.array_equal(family.decode([session])[0], alone[session.spec.id])


def executed(family: GenericFamily, *plans: Any) -> list[Any]:
    stepper = Stepper(family, Mesh.single(CPU))
    return [stepper.executor.execute(plan) for plan in plans]


def test_what_the_pipeline_refuses_fails_that_sample_with_its_words(
    family: GenericFamily, spec: SampleSpec
) -> None:
    wrong = another(spec, "w.0", width=68)
    begun, stepped = executed(
        family,
        Encode(seq=1, release=(), samples=(wrong, spec)),
        Step(seq=2, release=(), samples=(spec.id,)),
    )
    assert [failure.sample for failure in begun] == ["w.0"]
    assert "ValueError: `height` and `width` have to be divisible by 8" in begun[0].message
    assert stepped == ()


def test_an_error_inside_a_step_fails_that_sample_alone(
    family: GenericFamily, spec: SampleSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = family.whole.unet.forward

    def broken(sample: torch.Tensor, *given: Any, **named: Any) -> Any:
        if len(sample) == 1:  # the unguided one
            raise ZeroDivisionError("the forward broke")
        return forward(sample, *given, **named)

    monkeypatch.setattr(family.whole.unet, "forward", broken)
    unguided = another(spec, "u.0", guidance_scale=1.0)
    _, stepped, again, decoded = executed(
        family,
        Encode(seq=1, release=(), samples=(unguided, spec)),
        Step(seq=2, release=(), samples=("u.0", spec.id)),
        Step(seq=3, release=(), samples=(spec.id,)),
        Decode(seq=4, release=(), samples=(spec.id,)),
    )
    assert [(f.sample, f.message) for f in stepped] == [
        ("u.0", "ZeroDivisionError: the forward broke")
    ]
    assert again == decoded == ()


def test_frames_that_are_not_numbers_fail(family: GenericFamily) -> None:
    with pytest.raises(GenerationFailed, match="not finite"):
        made_of({"images": np.full((1, 8, 8, 3), np.nan)}, family.whole)
    with pytest.raises(GenerationFailed, match=r"\[1, 8, 8, 4\]"):
        made_of({"images": np.zeros((1, 8, 8, 4))}, family.whole)
    with pytest.raises(GenerationFailed, match="returned audios"):
        made_of({"audios": np.zeros(4)}, family.whole)


def test_sound_comes_with_its_rate(family: GenericFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    video, sound = np.ones((1, 2, 8, 8, 3)), torch.full((1, 2, 50), 0.5)
    assert isinstance(made_of({"frames": video, "audio": sound}, family.whole), np.ndarray)
    family.whole.vae.register_to_config(sampling_rate=16_000)
    clip = made_of({"frames": video, "audio": sound}, family.whole)
    assert (clip.sound.shape, clip.sample_rate) == ((50, 2), 16_000)  # type: ignore[union-attr]
    assert clip.frames.shape == (2, 8, 8, 3)  # type: ignore[union-attr]


def test_several_ranks_are_refused(directory: Callable[[Case], Path]) -> None:
    path = directory(PLAIN)
    mesh = replace(Mesh.single(CPU), layout=Layout(ulysses=2), axes=object())  # type: ignore[arg-type]
    config = configuration.build({"model_path": str(path), "device": "cpu"})
    with pytest.raises(ConfigError, match="--dp-size"):
        load(path, config, mesh)
    for setting in ({"ulysses_degree": 2}, {"cfg_parallel_size": 2}, {"tp_size": 2}):
        with pytest.raises(ConfigError, match="Layouts that fit: --num-gpus 2 --dp-size 2"):
            cases.card_of(path, **setting)
    assert cases.card_of(path, dp_size=2).tasks == ("text-to-image", "image-to-image", "inpainting")


def test_values_reach_the_pipeline(family: GenericFamily, spec: SampleSpec) -> None:
    """What the request leaves out is left out of the call, too."""
    call = family._calls["text-to-image"]
    assert dict(call.arguments(spec.prompt, spec.sampling)) == {
        "prompt": spec.prompt,
        **{name: GUIDED[name] for name in GUIDED},
        "negative_prompt": "ugly",
        "output_type": "np",
    }
    bare = msgspec.structs.replace(spec.sampling, negative_prompt="")
    assert "negative_prompt" not in dict(call.arguments(spec.prompt, bare))
