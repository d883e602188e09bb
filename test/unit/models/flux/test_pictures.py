"""FLUX.1 from pictures: what the table of pipelines does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from fakes import cases, zoo_flux
from fakes.cases import Case, Checkpoints, picture
from fakes.ranks import RankPool
from safelight.models.flux.base import FluxSession
from safelight.models.flux.pictures import FluxFamily
from safelight.request import Inputs, SampleSpec

LATENT_TOLERANCE = 1e-5  # of batched latents, relative to the largest; docs/numerics.md
RANKS_TOLERANCE = 1e-4  # of two ranks' latents
DEV, FILL, KONTEXT, PAINT = (
    next(case for case in zoo_flux.CASES if case.id == name)
    for name in (
        "FLUX.1 dev, image-to-image",
        "FLUX.1 Fill, inpainting",
        "FLUX.1 Kontext, image-to-image",
        "FLUX.1 dev, inpainting",
    )
)


@pytest.fixture(scope="module")
def paths(checkpoints: Checkpoints) -> dict[Any, Path]:
    makers = {case.make for case in (DEV, FILL, KONTEXT)}
    return {make: checkpoints.made(make) for make in makers}


@pytest.fixture(scope="module")
def families(paths: dict[Any, Path]) -> dict[Any, FluxFamily]:
    return {make: cases.loaded(path) for make, path in paths.items()}


@torch.inference_mode()
def begin(family: FluxFamily, spec: SampleSpec) -> FluxSession:
    return family.begin(spec, family.encode(spec))


@torch.inference_mode()
def run(family: FluxFamily, *sessions: FluxSession) -> None:
    """All steps of all, in as few forwards as there can be."""
    while left := [s for s in sessions if s.index < s.steps]:
        family.step(left)


def made(family: FluxFamily, spec: SampleSpec) -> torch.Tensor:
    session = begin(family, spec)
    run(family, session)
    return session.latents


def with_image(spec: SampleSpec, pixels: np.ndarray, folder: Path) -> SampleSpec:
    """The sample with other pixels in its picture, which nobody has seen."""
    path = folder / f"{len(list(folder.iterdir()))}.raw"
    path.write_bytes(pixels.tobytes())
    (old,) = spec.inputs.images
    changed = msgspec.structs.replace(old, path=str(path), digest=str(path))
    inputs = msgspec.structs.replace(spec.inputs, images=(changed,))
    return msgspec.structs.replace(spec, inputs=inputs)


def pixels_of(spec: SampleSpec) -> np.ndarray:
    one = spec.inputs.images[0]
    return np.fromfile(one.path, np.uint8).reshape(one.height, one.width, 3).copy()


@pytest.mark.parametrize("case", [DEV, PAINT, FILL, KONTEXT], ids=lambda case: case.id)
def test_the_picture_matters_and_is_encoded_once(
    case: Case, paths: dict[Any, Path], families: dict[Any, FluxFamily], tmp_path: Path
) -> None:
    family, spec = families[case.make], cases.sample(case, paths[case.make])
    latents = made(family, spec)
    misses = family._pictures.cache.misses
    assert torch.equal(made(family, msgspec.structs.replace(spec, id="again.0")), latents)
    assert family._pictures.cache.misses == misses
    other = with_image(spec, 255 - pixels_of(spec), tmp_path)
    assert (made(family, other) - latents).abs().max() > 1e-2
    # Fill encodes what it keeps of the picture as well.
    assert family._pictures.cache.misses == misses + (2 if case is FILL else 1)


@pytest.mark.parametrize(
    ("steps", "strength", "left"), [(4, 0.6, 3), (4, 1.0, 4), (10, 0.35, 4), (4, 0.1, 1)]
)
def test_strength_leaves_steps(
    paths: dict[Any, Path],
    families: dict[Any, FluxFamily],
    steps: int,
    strength: float,
    left: int,
) -> None:
    values = {"num_inference_steps": steps, "strength": strength}
    session = begin(families[DEV.make], cases.sample(DEV, paths[DEV.make], **values))
    assert session.steps == left
    run(families[DEV.make], session)
    assert session.index == left


@torch.inference_mode()
def test_samples_of_all_tasks_share_one_forward(
    paths: dict[Any, Path], families: dict[Any, FluxFamily]
) -> None:
    path, family = paths[DEV.make], families[DEV.make]
    text = next(case for case in zoo_flux.CASES if case.id == "FLUX.1 dev, text-to-image")
    specs = [
        cases.sample(case, path, f"s.{i}", num_inference_steps=5, seed=i)
        for i, case in enumerate([text, DEV, PAINT])
    ]
    assert len({spec.batch_key for spec in specs}) == 1
    alone = [made(family, spec) for spec in specs]
    sessions = [begin(family, spec) for spec in specs]
    rows: list[int] = []
    hook = family.transformer.register_forward_hook(lambda *call: rows.append(len(call[2][0])))
    run(family, *sessions)
    hook.remove()
    assert rows == [4, 4, 4, 2, 1], "three samples, one of them guided, of 5, 3 and 4 steps"
    for session, single in zip(sessions, alone, strict=True):
        assert (session.latents - single).abs().max() <= LATENT_TOLERANCE * single.abs().max()


def test_inpainting_keeps_what_is_black(
    paths: dict[Any, Path], families: dict[Any, FluxFamily]
) -> None:
    """The mask is white in its right half."""
    session = begin(families[PAINT.make], cases.sample(PAINT, paths[PAINT.make]))
    run(families[PAINT.make], session)
    assert session.kept is not None
    made, picture = (t.view(4, 4, 16) for t in (session.latents, session.kept.clean))
    assert torch.equal(made[:, :2], picture[:, :2])
    assert (made[:, 2:] - picture[:, 2:]).abs().min() > 0


def test_fill_does_not_look_at_what_it_paints_over(
    paths: dict[Any, Path], families: dict[Any, FluxFamily], tmp_path: Path
) -> None:
    """With all steps taken; and what it keeps matters, as does where."""
    family = families[FILL.make]
    spec = cases.sample(FILL, paths[FILL.make], width=80, height=64)
    size = (80, 64)  # as large as the output: nothing is resized
    images = (picture(tmp_path, size, 3),)
    inputs = Inputs(images=images, mask=picture(tmp_path, size, 0, "L"))
    spec = msgspec.structs.replace(spec, inputs=inputs)
    latents = made(family, spec)
    for columns, same in (slice(40, None), True), (slice(None, 40), False):
        pixels = pixels_of(spec)
        pixels[:, columns] = 255 - pixels[:, columns]
        other = with_image(spec, pixels, tmp_path)
        assert torch.equal(made(family, other), latents) == same
    path = tmp_path / "white"
    path.write_bytes(bytes([255]) * (80 * 64))
    assert spec.inputs.mask is not None
    white = msgspec.structs.replace(spec.inputs.mask, path=str(path), digest="white")
    everywhere = msgspec.structs.replace(spec.inputs, mask=white)
    other = msgspec.structs.replace(spec, inputs=everywhere)
    assert not torch.equal(made(family, other), latents)


def test_kontext_sees_tokens_behind_those_of_the_image(
    paths: dict[Any, Path], families: dict[Any, FluxFamily]
) -> None:
    spec = cases.sample(KONTEXT, paths[KONTEXT.make])
    session = begin(families[KONTEXT.make], spec)
    assert session.inputs.shape[1] == len(session.image_ids) == spec.tokens
    own = session.latents.shape[1]
    assert session.image_ids[:own, 0].unique().tolist() == [0]
    assert session.image_ids[own:, 0].unique().tolist() == [1]


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        (DEV, {"ulysses_degree": 2, "vae_parallel": "on"}),
        (FILL, {"ring_degree": 2, "vae_parallel": "on"}),
    ],
    ids=["dev", "fill"],
)
def test_two_ranks_make_what_one_makes(
    case: Case,
    layout: dict[str, Any],
    paths: dict[Any, Path],
    families: dict[Any, FluxFamily],
    two_ranks: RankPool,
) -> None:
    spec = cases.sample(case, paths[case.make])
    settings = (("model_path", str(paths[case.make])), *layout.items())
    results = two_ranks.run(cases.on_ranks, settings, spec)
    expected = made(families[case.make], spec).numpy()
    for latents, _ in results:
        assert np.abs(latents - expected).max() <= RANKS_TOLERANCE
