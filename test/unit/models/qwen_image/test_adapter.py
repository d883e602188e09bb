"""Qwen-Image through the adapter: what the table of pipelines does not measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from fakes import cases, zoo_qwen
from fakes.cases import Case, Checkpoints, Stepper, loaded
from fakes.parity import CPU
from fakes.ranks import RankPool
from safelight.errors import GenerationFailed
from safelight.models.qwen_image.texts import groups, padded
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec

LATENT_TOLERANCE = 1e-5  # of batched latents; docs/numerics.md
RANKS_TOLERANCE = 1e-4  # of two ranks' latents
TEXT, FROM_PICTURE, INPAINT, EDIT, EDIT_INPAINT, PLUS = zoo_qwen.CASES
GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 3.0}
UNGUIDED = {"negative_prompt": "", "true_cfg_scale": 4.0}
"""As in the pipeline: without a negative prompt there is no guidance, whatever its scale."""


@pytest.fixture(scope="module")
def directories(checkpoints: Checkpoints) -> dict[str, Path]:
    return {case.name: checkpoints.of(case) for case in (TEXT, EDIT, PLUS)}


@pytest.fixture(scope="module")
def families(directories: dict[str, Path]) -> dict[str, Any]:
    return {name: loaded(path) for name, path in directories.items()}


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def small_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    zoo_qwen.quarter_of_a_side(monkeypatch)


def sample(
    case: Case, path: Path, name: str, prompt: str = cases.PROMPT, **values: Any
) -> SampleSpec:
    return msgspec.structs.replace(cases.sample(case, path, name, **values), prompt=prompt)


def alone(family: Any, spec: SampleSpec) -> torch.Tensor:
    session = family.begin(spec, family.encode(spec))
    while session.index < session.steps:
        family.step([session])
    return session.latents


class Forwards:
    """Batch sizes of the transformer's forwards, and whether they had a mask."""

    def __init__(self, family: Any) -> None:
        self._transformer = family.transformer
        self.rows: list[int] = []
        self.masked: list[bool] = []

    def __enter__(self) -> Forwards:
        self._hook = self._transformer.register_forward_pre_hook(self._count, with_kwargs=True)
        return self

    def _count(self, module: Any, positional: Any, named: dict[str, Any]) -> None:
        self.rows.append(len(named["hidden_states"]))
        self.masked.append(named["encoder_hidden_states_mask"] is not None)

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


# ------------------------------------------------------------------------------------ batches


def test_all_tasks_guided_or_not_share_one_forward(
    directories: dict[str, Path], families: dict[str, Any]
) -> None:
    """Three tasks, prompts of four lengths, three numbers of steps, two unguided."""
    path, family = directories[TEXT.name], families[TEXT.name]
    specs = [
        sample(TEXT, path, "a.0", "a word", **GUIDED, num_inference_steps=3),
        sample(FROM_PICTURE, path, "b.0", "two words here", **UNGUIDED, num_inference_steps=8),
        sample(INPAINT, path, "c.0", "a good deal of words", **{**GUIDED, "true_cfg_scale": 1.0}),
        sample(INPAINT, path, "d.0", "a good deal more of words", **GUIDED, max_sequence_length=20),
    ]
    assert len({spec.batch_key for spec in specs}) == 1
    expected = [alone(family, spec) for spec in specs]
    sessions = [family.begin(spec, family.encode(spec)) for spec in specs]
    assert sessions[3].conditioning.positive.shape[1] == 20
    left = list(sessions)
    with Forwards(family) as forwards:
        while left:
            family.step(left)
            left = [s for s in left if s.index < s.steps]
    assert forwards.rows[0] == 6, "four samples, two of them guided"
    assert len(forwards.rows) == max(s.steps for s in sessions)
    assert forwards.masked[0]
    for session, latents in zip(sessions, expected, strict=True):
        assert (session.latents - latents).abs().max() <= LATENT_TOLERANCE


def test_prompts_of_one_length_have_no_mask(
    directories: dict[str, Path], families: dict[str, Any]
) -> None:
    path, family = directories[TEXT.name], families[TEXT.name]
    specs = [sample(TEXT, path, f"{p}.0", p, **UNGUIDED) for p in ("red", "ten")]
    with Forwards(family) as forwards:
        family.step([family.begin(spec, family.encode(spec)) for spec in specs])
    assert (forwards.rows, forwards.masked) == ([2], [False])


def test_alone_the_halves_are_apart_and_have_no_mask(
    directories: dict[str, Path], families: dict[str, Any]
) -> None:
    path, family = directories[TEXT.name], families[TEXT.name]
    for values, rows in (
        (GUIDED, [1, 1]),
        (UNGUIDED, [1]),
        ({**GUIDED, "true_cfg_scale": 1.0}, [1]),
    ):
        spec = sample(TEXT, path, "a.0", **values)
        with Forwards(family) as forwards:
            family.step([family.begin(spec, family.encode(spec))])
        assert (forwards.rows, any(forwards.masked)) == (rows, False)


def test_texts_are_padded_for_the_ranks_and_masked() -> None:
    texts = [torch.randn(1, words, 2) for words in (3, 5, 3)]
    rows, mask = padded(texts, 4)
    assert rows.shape == (3, 8, 2)
    assert mask is not None
    assert mask.sum(dim=1).tolist() == [3, 5, 3]
    assert torch.equal(rows[1, :5], texts[1][0])
    assert rows[~mask].abs().max() == 0
    alike, none = padded([texts[0], texts[2]], 2)
    assert none is None
    assert torch.equal(alike, torch.cat([texts[0], texts[2]]))
    short, mask = padded(texts[:1], 4)
    assert mask is not None, "fewer words than ranks"
    assert short.shape == (1, 4, 2)
    assert groups(texts, apart=False) == [[0, 1, 2]]
    assert groups(texts, apart=True) == [[0, 2], [1]]


# ----------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("case", [FROM_PICTURE, INPAINT, EDIT_INPAINT, PLUS], ids=lambda c: c.id)
def test_pictures_and_their_order_matter(
    directories: dict[str, Path],
    families: dict[str, Any],
    tmp_path: Path,
    small_edits: None,
    case: Case,
) -> None:
    path, family = directories[case.name], families[case.name]
    case = dataclasses.replace(case, images=((64, 64),) * len(case.images))
    spec = sample(case, path, "a.0", **UNGUIDED)
    images = spec.inputs.images
    others = [cases.picture(tmp_path, one.size, 90) for one in images]
    changed = [(*images[:i], other, *images[i + 1 :]) for i, other in enumerate(others)]
    if len(images) > 1:
        changed.append(images[::-1])
    base = alone(family, spec)
    for images in changed:
        inputs = msgspec.structs.replace(spec.inputs, images=images)
        other = alone(family, msgspec.structs.replace(spec, inputs=inputs))
        assert (other - base).abs().max() > 1e-3
    assert torch.equal(base, alone(family, spec)), "what is cached is the same"


@pytest.mark.parametrize("case", [INPAINT, EDIT_INPAINT], ids=lambda c: c.id)
def test_what_the_mask_keeps_is_the_picture(
    directories: dict[str, Path], families: dict[str, Any], small_edits: None, case: Case
) -> None:
    """White, the right half, is repainted; the left has the picture's latents."""
    path, family = directories[case.name], families[case.name]
    spec = sample(case, path, "a.0", **UNGUIDED)
    session = family.begin(spec, family.encode(spec))
    original, mask = session.kept.clean, session.kept.mask.bool()
    assert 0 < mask.float().mean() < 1
    while session.index < session.steps:
        family.step([session])
    assert torch.equal(session.latents[~mask], original[~mask])
    assert (session.latents - original)[mask].abs().mean() > 0.1


def test_strength_leaves_so_many_steps(
    directories: dict[str, Path], families: dict[str, Any]
) -> None:
    path, family = directories[TEXT.name], families[TEXT.name]
    steps = {}
    for strength in (0.1, 0.5, 0.6, 1.0):
        spec = sample(FROM_PICTURE, path, "a.0", num_inference_steps=7, strength=strength)
        steps[strength] = family.begin(spec, family.encode(spec)).steps
    assert steps == {0.1: 1, 0.5: 4, 0.6: 5, 1.0: 7}


def test_pictures_and_prompts_are_encoded_once(
    directories: dict[str, Path], families: dict[str, Any]
) -> None:
    path, family = directories[TEXT.name], families[TEXT.name]
    specs = [sample(FROM_PICTURE, path, f"{i}.0", "a prompt of its own", seed=i) for i in (1, 2)]
    latents = []
    for spec in specs:
        latents.append(family.begin(spec, family.encode(spec)).latents)
        misses = family._prompts.misses, family._pictures.cache.misses
    family.begin(specs[0], family.encode(specs[0]))
    assert (family._prompts.misses, family._pictures.cache.misses) == misses
    assert not torch.equal(*latents), "but what is drawn is each sample's own"


def test_a_picture_of_another_shape_than_the_output(
    directories: dict[str, Path], families: dict[str, Any]
) -> None:
    """It is seen in its own shape, here 9 by 6 tokens beside 2 by 1."""
    path, family = directories[EDIT.name], families[EDIT.name]
    spec = sample(EDIT, path, "a.0")
    session = family.begin(spec, family.encode(spec))
    assert session.grids == [(1, 1, 2), (1, 6, 9)]
    assert session.input.shape[1] == 2 + 54
    assert spec.tokens == 2 + 54


def test_a_prompt_without_positions_fails_alone(
    directories: dict[str, Path], families: dict[str, Any], small_edits: None
) -> None:
    path, family = directories[EDIT.name], families[EDIT.name]
    spec = sample(EDIT, path, "a.0", "word " * 800, **UNGUIDED)
    with pytest.raises(GenerationFailed, match=r"takes at most 40\d\d at this size"):
        family.begin(spec, family.encode(spec))


def test_the_bits_hold_in_half_precision(directories: dict[str, Path]) -> None:
    """And with the VAE in float32, as on CUDA, which the pipelines cannot do, pictures are made."""
    path = directories[TEXT.name]
    half = (("dit_precision", "bf16"), ("vae_precision", "bf16"))
    family = loaded(path, half)
    small = {"width": 32, "height": 32, "num_inference_steps": 3}
    for case in (TEXT, INPAINT):
        spec = sample(case, path, f"{case.task}.0", **small)
        expected = zoo_qwen.reference(path, spec, dtype=torch.bfloat16)
        stepper = Stepper(family, Mesh.single(CPU))
        stepper.begin(spec)
        assert np.array_equal(stepper.finish(spec.id), expected)
    family = loaded(path, half[:1])
    session = family.begin(spec, family.encode(spec))
    family.step([session])
    assert session.latents.dtype == torch.bfloat16
    assert family.decode([session])[0].std() > 1


# -------------------------------------------------------------------------------- several ranks


@pytest.mark.parametrize(
    ("size", "forwards"), [((64, 64), 4), ((80, 48), 12)], ids=["even", "uneven"]
)
def test_two_ranks_with_prompts_of_different_lengths(
    directories: dict[str, Path],
    two_ranks: RankPool,
    size: tuple[int, int],
    forwards: int,
) -> None:
    """Masked where the ranks share the picture evenly; else a forward for every length. Lengths
    are odd, even, and one of the unconditional half."""
    path = directories[TEXT.name]
    shape = dict(zip(("width", "height"), size, strict=True))
    specs = [
        sample(TEXT, path, "a.0", "odd", **GUIDED, **shape),
        sample(TEXT, path, "b.0", "even", **UNGUIDED, **shape),
        sample(TEXT, path, "c.0", "seven", **{**GUIDED, "negative_prompt": "red"}, **shape),
    ]
    one = (("model_path", str(path)),)
    expected, _ = zoo_qwen.generate(0, one, specs)
    for latents, count in two_ranks.run(zoo_qwen.generate, (*one, ("ulysses_degree", 2)), specs):
        assert count == forwards
        for mine, reference in zip(latents, expected, strict=True):
            assert np.abs(mine - reference).max() <= RANKS_TOLERANCE


def test_two_ranks_with_a_half_each(directories: dict[str, Path], two_ranks: RankPool) -> None:
    path = directories[TEXT.name]
    specs = [
        sample(TEXT, path, "a.0", "odd", **GUIDED),
        sample(TEXT, path, "b.0", "a longer one", **UNGUIDED),
    ]
    one = (("model_path", str(path)),)
    expected, _ = zoo_qwen.generate(0, one, specs)
    settings = (*one, ("cfg_parallel_size", 2))
    for latents, count in two_ranks.run(zoo_qwen.generate, settings, specs):
        assert count == 4
        for mine, reference in zip(latents, expected, strict=True):
            assert np.abs(mine - reference).max() <= RANKS_TOLERANCE


def test_two_ranks_share_the_text_encoder(
    directories: dict[str, Path], two_ranks: RankPool
) -> None:
    """Which sees the pictures; each rank has its own heads."""
    path = directories[PLUS.name]
    specs = [sample(PLUS, path, "a.0", **UNGUIDED)]
    one = (("model_path", str(path)),)
    expected, _ = zoo_qwen.generate(0, one, specs)
    settings = (*one, ("tp_size", 2), ("sp_degree", 1))
    for latents, _ in two_ranks.run(zoo_qwen.generate, settings, specs):
        assert np.abs(latents[0] - expected[0]).max() <= RANKS_TOLERANCE
