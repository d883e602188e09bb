"""FLUX.2 through the adapter: what the table of pipelines does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from fakes import cases, zoo_flux2
from fakes.cases import Case, Checkpoints, picture
from fakes.ranks import RankPool
from safelight.models.flux2.adapter import Flux2Family, Flux2Session
from safelight.request import Inputs, SampleSpec

LATENT_TOLERANCE = 1e-5  # of batched latents, relative to the largest; docs/numerics.md
RANKS_TOLERANCE = 1e-4  # of two ranks' latents
TEXT, EDIT, KLEIN, KLEIN_EDIT, DISTILLED = (
    next(case for case in zoo_flux2.CASES if case.id == name)
    for name in (
        "FLUX.2, text-to-image",
        "FLUX.2, 2 references, image-to-image",
        "FLUX.2 Klein, text-to-image",
        "FLUX.2 Klein, 2 references, image-to-image",
        "FLUX.2 Klein, distilled, image-to-image",
    )
)


@pytest.fixture(scope="module")
def paths(checkpoints: Checkpoints) -> dict[Any, Path]:
    makers = {case.make for case in (TEXT, KLEIN, DISTILLED)}
    return {make: checkpoints.made(make) for make in makers}


@pytest.fixture(scope="module")
def families(paths: dict[Any, Path]) -> dict[Any, Flux2Family]:
    return {make: cases.loaded(path) for make, path in paths.items()}


@torch.inference_mode()
def begin(family: Flux2Family, spec: SampleSpec) -> Flux2Session:
    return family.begin(spec, family.encode(spec))


@torch.inference_mode()
def run(family: Flux2Family, *sessions: Flux2Session) -> None:
    """All steps of all, in as few forwards as there can be."""
    while left := [s for s in sessions if s.index < s.steps]:
        family.step(left)


def made(family: Flux2Family, spec: SampleSpec) -> torch.Tensor:
    session = begin(family, spec)
    run(family, session)
    return session.latents


@pytest.mark.parametrize(
    ("case", "scales", "rows"),
    [
        (EDIT, (4.0, 1.0, 7.0), [3, 3, 3, 3, 2, 1]),
        (KLEIN_EDIT, (4.0, 1.0, 7.0), [5, 5, 5, 5, 3, 2]),
    ],
    ids=["embedded", "halves"],
)
def test_samples_of_other_scales_and_pictures_share_one_forward(
    case: Case,
    scales: tuple[float, ...],
    rows: list[int],
    paths: dict[Any, Path],
    families: dict[Any, Flux2Family],
    tmp_path: Path,
) -> None:
    family = families[case.make]
    specs = []
    for i, scale in enumerate(scales):
        values = {"seed": i, "num_inference_steps": 4 + i, "guidance_scale": scale}
        spec = cases.sample(case, paths[case.make], f"s.{i}", **values)
        images = tuple(picture(tmp_path, p.size, 10 + i) for p in spec.inputs.images)
        inputs = Inputs(images=images)
        specs.append(msgspec.structs.replace(spec, prompt=f"{i} " + "long " * i, inputs=inputs))
    alone = [made(family, spec) for spec in specs]
    sessions = [begin(family, spec) for spec in specs]
    counted: list[int] = []
    hook = family.transformer.register_forward_hook(lambda *call: counted.append(len(call[2][0])))
    run(family, *sessions)
    hook.remove()
    # Alone, the halves of the last one are two forwards.
    assert counted == (rows if rows[-1] == 1 else [*rows[:-1], 1, 1])
    for session, single in zip(sessions, alone, strict=True):
        assert (session.latents - single).abs().max() <= LATENT_TOLERANCE * single.abs().max()


@pytest.mark.parametrize("case", [EDIT, KLEIN_EDIT, DISTILLED], ids=lambda case: case.id)
def test_every_picture_and_their_order_matter(
    case: Case, paths: dict[Any, Path], families: dict[Any, Flux2Family], tmp_path: Path
) -> None:
    family, spec = families[case.make], cases.sample(case, paths[case.make])
    latents = made(family, spec)
    images = spec.inputs.images
    others = [
        [picture(tmp_path, p.size, 7) if p is changed else p for p in images] for changed in images
    ]
    for other in [*others, list(reversed(images))][: 3 if len(images) > 1 else 1]:
        inputs = Inputs(images=tuple(other))
        changed = made(family, msgspec.structs.replace(spec, inputs=inputs))
        assert (changed - latents).abs().max() > 1e-2


def test_a_picture_is_encoded_once(
    paths: dict[Any, Path], families: dict[Any, Flux2Family], tmp_path: Path
) -> None:
    family, spec = families[EDIT.make], cases.sample(EDIT, paths[EDIT.make])
    new = picture(tmp_path, (64, 64), 99)
    spec = msgspec.structs.replace(spec, inputs=Inputs(images=(new, new)))
    misses = family._pictures.cache.misses
    begin(family, spec)
    begin(family, msgspec.structs.replace(spec, id="b.0", prompt="another"))
    assert family._pictures.cache.misses == misses + 1


def test_references_have_positions_of_their_own(
    paths: dict[Any, Path], families: dict[Any, Flux2Family]
) -> None:
    spec = cases.sample(EDIT, paths[EDIT.make])
    session = begin(families[EDIT.make], spec)
    assert session.inputs.shape[1] == session.image_ids.shape[1] == spec.tokens
    times, counts = session.image_ids[0, :, 0].unique(return_counts=True)
    assert times.tolist() == [0, 10, 20]
    assert counts.tolist() == [4 * 3, 5 * 4, 4 * 6]


def test_a_picture_beyond_a_megapixel_is_seen_smaller(
    paths: dict[Any, Path], families: dict[Any, Flux2Family], tmp_path: Path
) -> None:
    """And has the bits of what the pipeline sees."""
    family = families[DISTILLED.make]
    spec = cases.sample(DISTILLED, paths[DISTILLED.make], width=32, height=32)
    large = Inputs(images=(picture(tmp_path, (1300, 900), 1),))
    spec = msgspec.structs.replace(spec, inputs=large)
    sampling = msgspec.structs.replace(spec.sampling, num_inference_steps=1)
    spec = msgspec.structs.replace(spec, sampling=sampling)
    session = begin(family, spec)
    assert session.references is not None
    assert session.references.shape[1] == (1230 // 16) * (852 // 16)
    run(family, session)
    with torch.inference_mode():
        (frames,) = family.decode([session])
    assert np.array_equal(frames, DISTILLED.reference(paths[DISTILLED.make], spec))


@torch.inference_mode()
def test_the_bits_hold_in_half_precision(paths: dict[Any, Path]) -> None:
    """And with the VAE in float32, as on CUDA, pictures are made."""
    path = paths[KLEIN.make]
    half = (("dit_precision", "bf16"), ("vae_precision", "bf16"))
    family, spec = cases.loaded(path, half), cases.sample(KLEIN_EDIT, path)
    session = begin(family, spec)
    run(family, session)
    assert session.latents.dtype == torch.bfloat16
    (frames,) = family.decode([session])
    s = spec.sampling
    (image,) = family.pipeline(
        image=[zoo_flux2.inputs.image(one) for one in spec.inputs.images],
        prompt=spec.prompt,
        width=s.width,
        height=s.height,
        num_inference_steps=s.num_inference_steps,
        guidance_scale=s.guidance_scale,
        max_sequence_length=s.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(s.seed),
    ).images
    assert np.array_equal(frames[0], np.asarray(image))
    family.pipeline.vae.float()
    assert np.abs(family.decode([session])[0].astype(int) - frames).mean() < 5


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        (EDIT, {"ulysses_degree": 2, "tp_size": 2, "vae_parallel": "on"}),
        (KLEIN_EDIT, {"ring_degree": 2}),
    ],
    ids=["all", "ring"],
)
def test_two_ranks_make_what_one_makes(
    case: Case,
    layout: dict[str, Any],
    paths: dict[Any, Path],
    families: dict[Any, Flux2Family],
    two_ranks: RankPool,
) -> None:
    """56 and 33 tokens, the latter uneven."""
    spec = cases.sample(case, paths[case.make], max_sequence_length=33)
    settings = (("model_path", str(paths[case.make])), *layout.items())
    results = two_ranks.run(cases.on_ranks, settings, spec)
    expected = made(families[case.make], spec).numpy()
    for latents, _ in results:
        assert np.abs(latents - expected).max() <= RANKS_TOLERANCE
