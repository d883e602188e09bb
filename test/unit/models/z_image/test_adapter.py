"""Z-Image through the adapter: what the table of pipelines does not show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageImg2ImgPipeline, ZImagePipeline

from fakes import cases, parity, zoo_z_image
from fakes.cases import Checkpoints
from fakes.ranks import RankPool
from safelight.models.inputs import image
from safelight.models.z_image.adapter import ZImageFamily, ZImageSession
from safelight.request import SampleSpec

TOLERANCE = 1e-4  # of latents, of samples that share a forward or ranks that share a sample
FROM_TEXT, FROM_PICTURE = zoo_z_image.CASES[2:]
SIZES = ((64, 96), (96, 64), (80, 80))
"""24, 24 and 25 tokens."""


@pytest.fixture(scope="module")
def directory(checkpoints: Checkpoints) -> Path:
    return checkpoints.made(zoo_z_image.tiny_z_image)


@pytest.fixture(scope="module")
def family(directory: Path) -> ZImageFamily:
    family = cases.loaded(directory)
    assert isinstance(family, ZImageFamily)
    return family


@torch.inference_mode()
def begin(family: ZImageFamily, spec: SampleSpec) -> ZImageSession:
    return family.begin(spec, family.encode(spec))


@torch.inference_mode()
def run(family: ZImageFamily, spec: SampleSpec) -> ZImageSession:
    """All steps of a sample alone."""
    session = begin(family, spec)
    for _ in range(session.steps):
        family.step([session])
    return session


@torch.inference_mode()
def frame(family: ZImageFamily, spec: SampleSpec) -> np.ndarray:
    """uint8 [H, W, 3]"""
    return family.decode([run(family, spec)])[0][0]


def called(pipeline: Any, spec: SampleSpec, **extra: Any) -> np.ndarray:
    """What a pipeline's own `__call__` makes of a sample, uint8 [H, W, 3]."""
    s = spec.sampling
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        prompt=spec.prompt,
        negative_prompt=s.negative_prompt,
        num_inference_steps=s.num_inference_steps,
        guidance_scale=s.guidance_scale,
        max_sequence_length=s.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(s.seed),
        **extra,
    )
    return np.asarray(made.images[0])


@contextmanager
def rows_of_forwards(family: ZImageFamily) -> Iterator[list[int]]:
    """The number of rows of every forward while it is open."""
    rows: list[int] = []
    hook = family.transformer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    yield rows
    hook.remove()


def mixed(directory: Path) -> list[SampleSpec]:
    """Samples of three sizes, with prompts of very different lengths, guided and not."""
    prompts = ("a", "a long prompt of two dozen words or so, " * 2, "three squares")
    return [
        msgspec.structs.replace(
            cases.sample(
                FROM_TEXT,
                directory,
                f"s.{i}",
                width=width,
                height=height,
                seed=i,
                guidance_scale=(5.0, 0.0, 2.5)[i],
            ),
            prompt=prompts[i],
        )
        for i, (width, height) in enumerate(SIZES)
    ]


@torch.inference_mode()
def test_sizes_prompts_and_guidance_share_one_forward(
    directory: Path, family: ZImageFamily
) -> None:
    """Each enters a step after the last; all are decoded in one call."""
    specs = mixed(directory)
    assert len({spec.batch_key for spec in specs}) == 1
    alone = [run(family, spec) for spec in specs]
    sessions = [begin(family, spec) for spec in specs]
    with rows_of_forwards(family) as rows:
        for present in (1, 2, 3, 3):
            family.step(sessions[:present])
        for first in (1, 2):
            family.step(sessions[first:])
    assert rows == [2, 3, 5, 5, 3, 2], "one forward a step, two rows for the guided"
    for mine, reference in zip(sessions, alone, strict=True):
        assert mine.index == mine.steps
        assert (mine.latents - reference.latents).abs().max() <= TOLERANCE
    frames = family.decode(sessions)
    assert [made.shape[2:0:-1] for made in frames] == list(SIZES)
    for made, reference in zip(frames, alone, strict=True):
        assert np.abs(made.astype(int) - family.decode([reference])[0]).max() <= 1


@torch.inference_mode()
def test_text_and_pictures_share_one_forward(directory: Path, family: ZImageFamily) -> None:
    specs = [cases.sample(FROM_TEXT, directory), cases.sample(FROM_PICTURE, directory, "b.0")]
    assert specs[0].batch_key == specs[1].batch_key
    alone = [run(family, spec).latents for spec in specs]
    sessions = [begin(family, spec) for spec in specs]
    with rows_of_forwards(family) as rows:
        for _ in range(min(session.steps for session in sessions)):
            family.step(sessions)
    assert set(rows) == {4}
    for session, reference in zip(sessions, alone, strict=True):
        for _ in range(session.steps - session.index):
            family.step([session])
        assert (session.latents - reference).abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    "values",
    [
        {"guidance_scale": 0.5},
        {"width": 128, "height": 48, "num_inference_steps": 1},
        {"negative_prompt": "", "max_sequence_length": 20},
    ],
    ids=["a scale below 1 guides", "one step", "a cut prompt"],
)
def test_the_bits_of_the_pipeline(
    directory: Path, family: ZImageFamily, values: dict[str, Any]
) -> None:
    spec = cases.sample(FROM_TEXT, directory, **values)
    assert np.array_equal(frame(family, spec), zoo_z_image.z_image_reference(directory, spec)[0])


def test_another_shift_is_that_of_the_sampler(directory: Path, family: ZImageFamily) -> None:
    spec = cases.sample(FROM_TEXT, directory, flow_shift=1.5)
    pipeline = ZImagePipeline.from_pretrained(
        directory, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.5)
    )
    assert np.array_equal(frame(family, spec), called(pipeline, spec, width=80, height=80))


def test_noise_levels_that_shift_with_the_size(directory: Path) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    family = cases.loaded(directory)
    family.pipeline.scheduler = scheduler
    spec = cases.sample(FROM_TEXT, directory)
    pipeline = ZImagePipeline.from_pretrained(directory, scheduler=scheduler)
    assert np.array_equal(frame(family, spec), called(pipeline, spec, width=80, height=80))


def test_the_bits_hold_in_half_precision(directory: Path) -> None:
    family = cases.loaded(directory, (("dit_precision", "bf16"), ("vae_precision", "bf16")))
    spec = cases.sample(FROM_TEXT, directory)
    pipeline = ZImagePipeline.from_pretrained(directory, dtype=torch.bfloat16)
    assert np.array_equal(frame(family, spec), called(pipeline, spec, width=80, height=80))

    spec = cases.sample(FROM_PICTURE, directory)
    given = {"image": image(spec.inputs.images[0]), "strength": spec.sampling.strength}
    sibling = ZImageImg2ImgPipeline(**pipeline.components)
    assert begin(family, spec).latents.dtype == torch.bfloat16
    assert np.array_equal(frame(family, spec), called(sibling, spec, **given))


def test_pictures_strength_and_words_matter(directory: Path, family: ZImageFamily) -> None:
    spec = cases.sample(FROM_PICTURE, directory)
    picture = cases.picture(directory.parent, spec.inputs.images[0].size, seed=3)
    others = (
        msgspec.structs.replace(
            spec, inputs=msgspec.structs.replace(spec.inputs, images=[picture])
        ),
        cases.sample(FROM_PICTURE, directory, strength=0.3),
        cases.sample(FROM_PICTURE, directory, negative_prompt="red"),
        msgspec.structs.replace(spec, prompt="something else"),
    )
    base = frame(family, spec)
    assert base.std() > 1, "a flat picture proves nothing"
    for other in others:
        assert not np.array_equal(frame(family, other), base)


def test_the_less_strength_the_fewer_steps_and_the_nearer_the_picture(
    directory: Path, family: ZImageFamily
) -> None:
    weak, strong = (
        cases.sample(FROM_PICTURE, directory, strength=strength, num_inference_steps=10)
        for strength in (0.1, 0.9)
    )
    assert begin(family, weak).steps == 1
    assert begin(family, strong).steps == 9
    with torch.inference_mode():
        clean = family.encode(weak).picture
        assert clean is not None
        target = family._scaling.scaled(clean.sample(torch.Generator("cpu").manual_seed(7)))
    distance = [(run(family, spec).latents - target).abs().mean() for spec in (weak, strong)]
    assert distance[0] < distance[1]


def test_a_picture_is_resized_to_the_size_asked_for(directory: Path, family: ZImageFamily) -> None:
    """The pipeline of diffusers would fail; it makes the same of the picture resized."""
    spec = cases.sample(FROM_PICTURE, directory, width=64, height=80)
    resized = family.pipeline.image_processor.resize(image(spec.inputs.images[0]), 80, 64)
    sibling = ZImageImg2ImgPipeline.from_pretrained(directory)
    expected = called(sibling, spec, image=resized, strength=spec.sampling.strength)
    assert np.array_equal(frame(family, spec), expected)


def test_prompts_and_pictures_are_encoded_once(directory: Path, family: ZImageFamily) -> None:
    spec = cases.sample(FROM_PICTURE, directory, negative_prompt="seen by nobody")
    begin(family, spec)
    misses = family._prompts.misses, family._pictures.cache.misses
    begin(family, msgspec.structs.replace(spec, id="b.0"))
    assert misses == (family._prompts.misses, family._pictures.cache.misses)


@pytest.mark.parametrize(
    ("collective", "layout"),
    [
        ("ulysses.all_to_all", (("ulysses_degree", 2), ("tp_size", 2), ("vae_parallel", "on"))),
        ("cfg.all_gather", (("cfg_parallel_size", 2), ("vae_parallel", "on"))),
    ],
    ids=["ulysses", "cfg"],
)
def test_two_ranks_share_a_mixed_batch(
    directory: Path, two_ranks: RankPool, collective: str, layout: parity.Settings
) -> None:
    specs, one = mixed(directory), (("model_path", str(directory)),)
    expected, _, _ = parity.generate(0, one, specs, True)
    for latents, _, sent in two_ranks.run(parity.generate, (*one, *layout), specs, True):
        assert sent[collective] > 0
        for mine, reference in zip(latents, expected, strict=True):
            assert np.abs(mine - reference).max() <= TOLERANCE
