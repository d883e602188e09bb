"""Stable Diffusion 3 through the adapter: what the table of pipelines does not show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)

from fakes import cases, parity, zoo_sd3
from fakes.cases import Case, Checkpoints
from fakes.ranks import RankPool
from safelight.models.inputs import image
from safelight.models.sd3.adapter import SD3Family, SD3Session
from safelight.request import SampleSpec

TOLERANCE = 1e-4  # of latents, of samples that share a forward or ranks that share a sample
FROM_TEXT, FROM_PICTURE, REPAINT = zoo_sd3.CASES


@pytest.fixture(scope="module")
def directory(checkpoints: Checkpoints) -> Path:
    return checkpoints.made(zoo_sd3.tiny_sd3)


@pytest.fixture(scope="module")
def family(directory: Path) -> SD3Family:
    family = cases.loaded(directory)
    assert isinstance(family, SD3Family)
    return family


@torch.inference_mode()
def begin(family: SD3Family, spec: SampleSpec) -> SD3Session:
    return family.begin(spec, family.encode(spec))


@torch.inference_mode()
def run(family: SD3Family, spec: SampleSpec) -> SD3Session:
    """All steps of a sample alone."""
    session = begin(family, spec)
    for _ in range(session.steps):
        family.step([session])
    return session


@torch.inference_mode()
def frame(family: SD3Family, spec: SampleSpec) -> np.ndarray:
    """uint8 [H, W, 3]"""
    return family.decode([run(family, spec)])[0][0]


def called(pipeline: Any, spec: SampleSpec) -> np.ndarray:
    """What a pipeline's own `__call__` makes of a sample, uint8 [H, W, 3]."""
    s, inputs = spec.sampling, spec.inputs
    extra: dict[str, Any] = {}
    if inputs.images:
        extra |= {"image": image(inputs.images[0]), "strength": s.strength}
    if inputs.mask is not None:
        extra["mask_image"] = image(inputs.mask)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        prompt=spec.prompt,
        negative_prompt=s.negative_prompt,
        width=s.width,
        height=s.height,
        num_inference_steps=s.num_inference_steps,
        guidance_scale=s.guidance_scale,
        max_sequence_length=s.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(s.seed),
        **extra,
    )
    return np.asarray(made.images[0])


@contextmanager
def rows_of_forwards(family: SD3Family) -> Iterator[list[int]]:
    """The number of rows of every forward while it is open."""
    rows: list[int] = []

    def note(module: Any, args: Any, named: dict[str, Any]) -> None:
        rows.append(len(named["hidden_states"]))

    hook = family.transformer.register_forward_pre_hook(note, with_kwargs=True)
    yield rows
    hook.remove()


def of_all_tasks(directory: Path) -> list[SampleSpec]:
    """Guided and not, with other numbers of steps."""
    return [
        cases.sample(FROM_TEXT, directory, "s.0", num_inference_steps=3),
        cases.sample(FROM_PICTURE, directory, "s.1", guidance_scale=1.0, strength=1.0),
        cases.sample(REPAINT, directory, "s.2", guidance_scale=2.5, num_inference_steps=6),
    ]


@torch.inference_mode()
def test_tasks_and_guidance_share_one_forward(directory: Path, family: SD3Family) -> None:
    specs = of_all_tasks(directory)
    assert len({spec.batch_key for spec in specs}) == 1
    alone = [run(family, spec) for spec in specs]
    sessions = [begin(family, spec) for spec in specs]
    assert [session.steps for session in sessions] == [3, 4, 4]
    with rows_of_forwards(family) as rows:
        for _ in range(3):
            family.step(sessions)
        family.step(sessions[1:])
    assert rows == [5, 5, 5, 3], "one forward a step, two rows for the guided"
    frames = family.decode(sessions)
    for mine, made, reference in zip(sessions, frames, alone, strict=True):
        assert (mine.latents - reference.latents).abs().max() <= TOLERANCE
        assert np.abs(made.astype(int) - family.decode([reference])[0]).max() <= 1


@pytest.mark.parametrize(
    ("case", "values"),
    [
        (FROM_TEXT, {"guidance_scale": 1.0}),
        (FROM_TEXT, {"width": 192, "height": 16, "num_inference_steps": 1}),
        (FROM_TEXT, {"max_sequence_length": 512}),
        (FROM_PICTURE, {"guidance_scale": 0.0, "strength": 1.0}),
        (REPAINT, {"strength": 1.0}),
        (REPAINT, {"strength": 0.1, "guidance_scale": 1.0}),
    ],
    ids=["unguided", "one step", "long text", "picture forgotten", "noise in the mask", "one step"],
)
def test_the_bits_of_the_pipelines(
    directory: Path, family: SD3Family, case: Case, values: dict[str, Any]
) -> None:
    spec = cases.sample(case, directory, **values)
    assert np.array_equal(frame(family, spec), zoo_sd3.sd3_reference(directory, spec)[0])


@pytest.mark.parametrize(("case", "variant"), [(FROM_TEXT, "t5"), (FROM_PICTURE, "dynamic")])
def test_variants(tmp_path: Path, case: Case, variant: str) -> None:
    """Without T5; with noise levels that shift with the size."""
    own = zoo_sd3.tiny_sd3(tmp_path / "own", t5=variant != "t5", dynamic=variant == "dynamic")
    family, spec = cases.loaded(own), cases.sample(case, own)
    assert ("text_encoder_3" in family.weights()) is (variant != "t5")
    assert np.array_equal(frame(family, spec), zoo_sd3.sd3_reference(own, spec)[0])


def test_another_shift_is_that_of_the_sampler(directory: Path, family: SD3Family) -> None:
    spec = cases.sample(FROM_TEXT, directory, flow_shift=1.5)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.5)
    pipeline = StableDiffusion3Pipeline.from_pretrained(directory, scheduler=scheduler)
    assert np.array_equal(frame(family, spec), called(pipeline, spec))


def test_the_bits_hold_in_half_precision(directory: Path) -> None:
    family = cases.loaded(directory, (("dit_precision", "bf16"), ("vae_precision", "bf16")))
    pipeline = StableDiffusion3Pipeline.from_pretrained(directory, dtype=torch.bfloat16)
    kinds = (
        (FROM_TEXT, StableDiffusion3Pipeline),
        (FROM_PICTURE, StableDiffusion3Img2ImgPipeline),
        (REPAINT, StableDiffusion3InpaintPipeline),
    )
    for case, kind in kinds:
        spec = cases.sample(case, directory, num_inference_steps=2)
        assert begin(family, spec).latents.dtype == torch.bfloat16
        expected = called(kind(**pipeline.components), spec)
        assert np.array_equal(frame(family, spec), expected), case.id


@pytest.mark.parametrize("case", [FROM_PICTURE, REPAINT], ids=lambda case: case.task)
def test_the_picture_matters(directory: Path, family: SD3Family, case: Case) -> None:
    spec = cases.sample(case, directory)
    picture = cases.picture(directory.parent, spec.inputs.images[0].size, seed=3)
    inputs = msgspec.structs.replace(spec.inputs, images=(picture,))
    base = frame(family, spec)
    assert base.std() > 1, "a flat picture proves nothing"
    others = (
        msgspec.structs.replace(spec, inputs=inputs),
        cases.sample(case, directory, strength=0.3),
        msgspec.structs.replace(spec, prompt="something else"),
    )
    for other in others:
        assert not np.array_equal(frame(family, other), base)


def test_only_what_the_mask_covers_is_repainted(directory: Path, family: SD3Family) -> None:
    """Of the latents; the mask is white in the right half. The VAE's neighbourhoods overlap."""
    spec = cases.sample(REPAINT, directory)
    session = run(family, spec)
    assert session.kept is not None
    changed = (session.latents != session.kept.clean).any(dim=1)[0]
    half = session.latents.shape[-1] // 2
    assert not changed[:, :half].any()
    assert changed[:, half:].all()


def test_prompts_and_pictures_are_encoded_once(directory: Path, family: SD3Family) -> None:
    spec = cases.sample(FROM_PICTURE, directory, negative_prompt="seen by nobody")
    begin(family, spec)
    misses = family._prompts.misses, family._pictures.cache.misses
    begin(family, msgspec.structs.replace(spec, id="b.0"))
    assert misses == (family._prompts.misses, family._pictures.cache.misses)


def test_two_ranks_share_a_mixed_batch(directory: Path, two_ranks: RankPool) -> None:
    """Halves, T5 and the VAE, which encodes the pictures too."""
    specs = [
        cases.sample(FROM_PICTURE, directory, f"s.{i}", seed=i, guidance_scale=scale, strength=1.0)
        for i, scale in enumerate((7.0, 1.0, 3.0))
    ]
    one = (("model_path", str(directory)),)
    layout = (("cfg_parallel_size", 2), ("tp_size", 2), ("vae_parallel", "on"))
    expected, _, _ = parity.generate(0, one, specs, True)
    for latents, _, _ in two_ranks.run(parity.generate, (*one, *layout), specs, True):
        for mine, reference in zip(latents, expected, strict=True):
            assert np.abs(mine - reference).max() <= TOLERANCE
