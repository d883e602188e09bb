"""Stable Diffusion XL through the adapter: what the table of pipelines does not show."""

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
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLInpaintPipeline,
)

from fakes import cases, parity, zoo_sdxl
from fakes.cases import Case, Checkpoints
from fakes.ranks import RankPool
from safelight.errors import ConfigError
from safelight.models.sdxl.adapter import SDXLFamily
from safelight.models.sdxl.session import SDXLSession
from safelight.request import SampleSpec

TOLERANCE = 1e-4  # of latents, of samples that share a forward or ranks that share a sample
FROM_TEXT, FROM_PICTURE, REPAINT, REPAINT_SEEING = zoo_sdxl.CASES
SIZE = {"width": 64, "height": 64}

# diffusers' samplers make arrays of tensors, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def directory(checkpoints: Checkpoints) -> Path:
    return checkpoints.made(zoo_sdxl.tiny_sdxl)


@pytest.fixture(scope="module")
def family(directory: Path) -> SDXLFamily:
    return load(directory)


@pytest.fixture(scope="module")
def ancestral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a sampler that draws noise in every step."""
    sampler = EulerAncestralDiscreteScheduler(**zoo_sdxl.SAMPLER)
    return zoo_sdxl.tiny_sdxl(tmp_path_factory.mktemp("sdxl") / "ancestral", scheduler=sampler)


def load(directory: Path, **settings: Any) -> SDXLFamily:
    family = cases.loaded(directory, tuple(settings.items()))
    assert isinstance(family, SDXLFamily)
    return family


@torch.inference_mode()
def begin(family: SDXLFamily, spec: SampleSpec) -> SDXLSession:
    return family.begin(spec, family.encode(spec))


@torch.inference_mode()
def run(family: SDXLFamily, spec: SampleSpec) -> SDXLSession:
    """All steps of a sample alone."""
    session = begin(family, spec)
    for _ in range(session.steps):
        family.step([session])
    return session


@torch.inference_mode()
def frame(family: SDXLFamily, spec: SampleSpec) -> np.ndarray:
    """uint8 [H, W, 3]"""
    return family.decode([run(family, spec)])[0][0]


def assert_same_bits(path: Path, family: SDXLFamily, spec: SampleSpec, **loading: Any) -> None:
    mine = frame(family, spec)
    assert np.array_equal(mine, zoo_sdxl.sdxl_reference(path, spec, **loading)[0])
    assert mine.std() > 1, "a flat picture proves nothing"


@contextmanager
def rows_of_forwards(family: SDXLFamily) -> Iterator[list[int]]:
    """The number of rows of every forward while it is open."""
    rows: list[int] = []

    def note(module: Any, args: Any) -> None:
        rows.append(len(args[0]))

    hook = family.unet.register_forward_pre_hook(note)
    yield rows
    hook.remove()


def of_all_tasks(path: Path) -> list[SampleSpec]:
    """Of one size, guided and not, with other numbers of steps."""
    size = {**SIZE, "seed": 3}
    return [
        cases.sample(FROM_TEXT, path, "s.0", **size, num_inference_steps=3),
        cases.sample(FROM_PICTURE, path, "s.1", **size, guidance_scale=1.0, strength=0.8),
        cases.sample(REPAINT, path, "s.2", **size, guidance_scale=2.5, num_inference_steps=6),
    ]


@torch.inference_mode()
def test_tasks_and_guidance_share_one_forward(ancestral: Path) -> None:
    """Each draws the sampler's noise from its own generator."""
    family, specs = load(ancestral), of_all_tasks(ancestral)
    assert len({spec.batch_key for spec in specs}) == 1
    alone = [run(family, spec) for spec in specs]
    sessions = [begin(family, spec) for spec in specs]
    assert [session.steps for session in sessions] == [3, 4, 5]
    with rows_of_forwards(family) as rows:
        for _ in range(3):
            family.step(sessions)
        family.step(sessions[1:])
        family.step(sessions[2:])
    assert rows == [5, 5, 5, 3, 2], "one forward a step, two rows for the guided"
    frames = family.decode(sessions)
    for mine, made, reference in zip(sessions, frames, alone, strict=True):
        assert (mine.latents - reference.latents).abs().max() <= TOLERANCE
        assert np.abs(made.astype(int) - family.decode([reference])[0]).max() <= 1


@pytest.mark.parametrize(
    ("case", "values"),
    [
        (FROM_TEXT, {"guidance_scale": 1.0}),
        (FROM_TEXT, {"negative_prompt": "ugly"}),
        (FROM_TEXT, {"width": 72, "height": 8, "num_inference_steps": 1}),
        (FROM_PICTURE, {"guidance_scale": 0.0, "strength": 1.0}),
        (REPAINT, {"strength": 1.0, "guidance_scale": 1.0}),
        (REPAINT, {"strength": 0.25}),
    ],
    ids=["unguided", "negative", "least height", "picture forgotten", "pure noise", "one step"],
)
def test_the_bits_of_the_pipelines(
    directory: Path, family: SDXLFamily, case: Case, values: dict[str, Any]
) -> None:
    spec = cases.sample(case, directory, **values)
    assert np.array_equal(frame(family, spec), zoo_sdxl.sdxl_reference(directory, spec)[0])


@pytest.mark.parametrize("case", [FROM_TEXT, FROM_PICTURE, REPAINT], ids=lambda case: case.task)
def test_the_bits_of_a_sampler_that_draws_noise(ancestral: Path, case: Case) -> None:
    """From the sample's own generator, after all that was drawn in the beginning."""
    assert_same_bits(ancestral, load(ancestral), cases.sample(case, ancestral))


@pytest.mark.parametrize(
    ("kind", "steps", "case"),
    [
        (DDIMScheduler, 3, FROM_PICTURE),
        (DPMSolverMultistepScheduler, 3, REPAINT),
        (HeunDiscreteScheduler, 5, FROM_PICTURE),
        (HeunDiscreteScheduler, 5, REPAINT),
    ],
)
def test_other_samplers(tmp_path: Path, kind: Any, steps: int, case: Case) -> None:
    """Of four steps the strength leaves three; Heun's sampler predicts twice in all but the
    last."""
    path = zoo_sdxl.tiny_sdxl(tmp_path / "model", scheduler=kind(**zoo_sdxl.SAMPLER))
    family = load(path)
    spec = cases.sample(case, path, num_inference_steps=4, strength=0.75)
    assert begin(family, spec).steps == steps
    assert_same_bits(path, family, spec)


def test_the_refiner(tmp_path: Path) -> None:
    """One text encoder, aesthetic scores, and an empty negative prompt that is encoded."""
    path = zoo_sdxl.tiny_sdxl(tmp_path / "model", refiner=True)
    family = load(path)
    assert set(family.weights()) == {"text_encoder_2", "unet", "vae"}
    for case in (FROM_PICTURE, REPAINT):
        assert_same_bits(path, family, cases.sample(case, path, negative_prompt=""))


def test_embedded_guidance(tmp_path: Path) -> None:
    """A distilled UNet takes its scale as an input, and needs no unconditional half."""
    sampler = LCMScheduler(**{**zoo_sdxl.SAMPLER, "timestep_spacing": "linspace"})
    path = zoo_sdxl.tiny_sdxl(tmp_path / "model", scheduler=sampler, time_cond_proj_dim=8)
    family = load(path)
    spec = cases.sample(FROM_TEXT, path)
    with rows_of_forwards(family) as rows:
        assert_same_bits(path, family, spec)
    assert rows == [1] * 4
    other = cases.sample(FROM_TEXT, path, guidance_scale=2.0)
    assert not np.array_equal(frame(family, other), frame(family, spec))


def test_a_vae_with_statistics_of_its_latents(tmp_path: Path) -> None:
    statistics = {"latents_mean": [-1.6, 1.3, 0.1, 0.5], "latents_std": [8.4, 5.9, 6.0, 5.2]}
    path = zoo_sdxl.tiny_sdxl(tmp_path / "model", vae=statistics, zeros=False)
    family = load(path)
    for case in (FROM_TEXT, FROM_PICTURE):
        assert_same_bits(path, family, cases.sample(case, path, negative_prompt=""))


@pytest.mark.parametrize(
    ("case", "upcast"),
    [(FROM_TEXT, True), (FROM_PICTURE, True), (REPAINT, False)],
    ids=["text", "picture", "repainted as it is"],
)
def test_the_bits_hold_in_half_precision(
    directory: Path, tmp_path: Path, case: Case, upcast: bool
) -> None:
    """Encoded in float32 where the VAE says so, though decoded in bfloat16."""
    path = directory
    if not upcast:
        path = zoo_sdxl.tiny_sdxl(tmp_path / "model", vae={"force_upcast": False})
    family = load(path, dit_precision="bf16", vae_precision="bf16")
    spec = cases.sample(case, path, num_inference_steps=3)
    assert begin(family, spec).latents.dtype == torch.bfloat16
    assert_same_bits(path, family, spec, dtype=torch.bfloat16)
    assert family.pipeline.vae.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
def test_a_vae_that_overflows_in_half_precision_is_kept_in_float32(directory: Path) -> None:
    family = load(directory, dit_precision="fp16", vae_precision="fp16")
    assert family.pipeline.vae.dtype == torch.float32
    spec = cases.sample(FROM_PICTURE, directory)
    assert_same_bits(directory, family, spec, dtype=torch.float16)


def test_an_inpainting_directory_makes_the_same_pictures(directory: Path, tmp_path: Path) -> None:
    path = zoo_sdxl.tiny_sdxl(tmp_path / "model", kind=StableDiffusionXLInpaintPipeline)
    other, family = load(path), load(directory)
    assert "StableDiffusionXLInpaintPipeline" in other.describe()
    spec = cases.sample(FROM_TEXT, directory)
    assert np.array_equal(frame(other, spec), frame(family, spec))


@pytest.mark.parametrize("case", [FROM_PICTURE, REPAINT], ids=lambda case: case.task)
def test_the_picture_matters(directory: Path, family: SDXLFamily, case: Case) -> None:
    spec = cases.sample(case, directory)
    picture = cases.picture(directory.parent, spec.inputs.images[0].size, seed=3)
    inputs = msgspec.structs.replace(spec.inputs, images=(picture,))
    base = frame(family, spec)
    others = (
        msgspec.structs.replace(spec, inputs=inputs),
        cases.sample(case, directory, strength=0.3),
        msgspec.structs.replace(spec, prompt="something else"),
    )
    for other in others:
        assert not np.array_equal(frame(family, other), base)


def test_a_unet_that_sees_the_mask_looks_at_the_picture_around_it(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """Also where it begins with pure noise, for which the picture itself is not encoded."""
    path = checkpoints.copied(zoo_sdxl.tiny_inpainter, tmp_path / "model")
    family = load(path)
    spec = cases.sample(REPAINT_SEEING, path, strength=1.0, guidance_scale=1.0)
    assert_same_bits(path, family, spec)
    picture = cases.picture(tmp_path, spec.inputs.images[0].size, seed=3)
    inputs = msgspec.structs.replace(spec.inputs, images=(picture,))
    other = msgspec.structs.replace(spec, inputs=inputs)
    assert not np.array_equal(frame(family, other), frame(family, spec))


def test_only_what_the_mask_covers_is_repainted(directory: Path, family: SDXLFamily) -> None:
    """Of the latents; the mask is white in the right half. The VAE's neighbourhoods overlap."""
    session = run(family, cases.sample(REPAINT, directory))
    assert session.kept is not None
    changed = (session.latents != session.kept.clean).any(dim=1)[0]
    half = session.latents.shape[-1] // 2
    assert not changed[:, :half].any()
    assert changed[:, half:].all()


def test_prompts_and_pictures_are_encoded_once(directory: Path, family: SDXLFamily) -> None:
    spec = cases.sample(FROM_PICTURE, directory, negative_prompt="seen by nobody")
    begin(family, spec)
    misses = family._prompts.misses, family._pictures.cache.misses
    begin(family, msgspec.structs.replace(spec, id="b.0"))
    assert misses == (family._prompts.misses, family._pictures.cache.misses)


def test_the_shared_pipeline_is_never_written_to(directory: Path, family: SDXLFamily) -> None:
    pipelines = [family.pipeline, *family._siblings.values()]
    run(family, cases.sample(REPAINT, directory))
    for pipeline in pipelines:
        assert pipeline.scheduler is family.pipeline.scheduler
        assert pipeline.scheduler.num_inference_steps is None


def test_quantization_is_of_transformers(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"fp8-storage is of transformers; SDXL has a UNet"):
        load(directory, quantization="fp8-storage")


def test_two_ranks_share_a_mixed_batch(ancestral: Path, two_ranks: RankPool) -> None:
    """Halves and the VAE, which encodes the pictures too."""
    specs = [
        cases.sample(FROM_PICTURE, ancestral, f"s.{i}", seed=i, guidance_scale=scale, strength=1.0)
        for i, scale in enumerate((7.0, 1.0, 3.0))
    ]
    one = (("model_path", str(ancestral)),)
    layout = (("cfg_parallel_size", 2), ("vae_parallel", "on"))
    expected, _, _ = parity.generate(0, one, specs, True)
    for latents, _, _ in two_ranks.run(parity.generate, (*one, *layout), specs, True):
        for mine, reference in zip(latents, expected, strict=True):
            assert np.abs(mine - reference).max() <= TOLERANCE
