"""Wan from pictures, and Wan 2.2: what the table of pipelines does not show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline

from fakes import cases, parity, zoo_wan
from fakes.ranks import RankPool
from safelight.models.wan.adapter import WanFamily
from safelight.models.wan.sessions import WanSession
from safelight.request import Inputs, SampleSpec

CASES = {(case.name.removeprefix("Wan "), case.task): case for case in zoo_wan.CASES}
VIDEO, PICTURED = "text-to-video", "image-to-video"
FROM_PICTURES = [key for key in CASES if key[1] == PICTURED]
LATENT_TOLERANCE = 1e-5  # of batched latents, relative to the largest


class Models:
    """The tiny models, each written and loaded once."""

    def __init__(self, checkpoints: cases.Checkpoints, folder: Path) -> None:
        self.folder = folder
        self._checkpoints = checkpoints
        self._families: dict[Any, WanFamily] = {}

    def path(self, name: str, task: str) -> Path:
        return self._checkpoints.of(CASES[name, task])

    def family(self, name: str, task: str) -> WanFamily:
        path = self.path(name, task)
        if path not in self._families:
            self._families[path] = cases.loaded(path)
        return self._families[path]

    def spec(self, name: str, task: str, sample: str = "a.0", **values: Any) -> SampleSpec:
        return cases.sample(CASES[name, task], self.path(name, task), sample, **values)

    def pictured(self, spec: SampleSpec, *seeds: int) -> SampleSpec:
        """`spec` with these pictures."""
        pictures = tuple(cases.picture(self.folder, (48, 64), seed) for seed in seeds)
        return msgspec.structs.replace(spec, inputs=Inputs(images=pictures))


@pytest.fixture(scope="module")
def models(checkpoints: cases.Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(checkpoints, tmp_path_factory.mktemp("wan"))


@torch.inference_mode()
def begin(family: WanFamily, spec: SampleSpec) -> WanSession:
    return family.begin(spec, family.encode(spec))


@torch.inference_mode()
def run_alone(family: WanFamily, spec: SampleSpec) -> WanSession:
    session = begin(family, spec)
    for _ in range(session.steps):
        family.step([session])
    return session


@torch.inference_mode()
def rows_of_step(family: WanFamily, batch: list[WanSession]) -> list[list[int]]:
    """One step; for each expert, the rows of every forward of it."""
    rows: list[list[int]] = [[] for _ in family._experts]
    hooks = [
        expert.transformer.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append(len(kwargs["hidden_states"])),
            with_kwargs=True,
        )
        for expert, seen in zip(family._experts, rows, strict=True)
    ]
    family.step(batch)
    for hook in hooks:
        hook.remove()
    return rows


def check_batched(family: WanFamily, specs: list[SampleSpec]) -> None:
    """That `specs`, each entering a step after the last, come out as each does alone."""
    alone = [run_alone(family, spec) for spec in specs]
    sessions = [begin(family, spec) for spec in specs]
    entered = 0
    while running := [s for s in sessions[: entered + 1] if s.index < s.steps]:
        with torch.inference_mode():
            family.step(running)
        entered += 1
    for mine, single in zip(sessions, alone, strict=True):
        difference = (mine.latents - single.latents).abs().max()
        assert difference <= LATENT_TOLERANCE * single.latents.abs().max()


# -------------------------------------------------------------------------------- two experts


def test_each_expert_has_one_forward_for_its_share_of_the_batch(models: Models) -> None:
    """Four samples, guided and not, on both sides of the boundary; the third crosses it."""
    family = models.family("2.2 A14B", VIDEO)
    scales = [(3.0, 2.0), (1.0, None), (4.0, 1.0), (2.0, 3.0)]
    batch = [
        begin(family, models.spec("2.2 A14B", VIDEO, f"s.{i}", seed=i, **guidance(*pair)))
        for i, pair in enumerate(scales)
    ]
    assert [session.switch for session in batch] == [2] * 4
    for session in batch[:1]:
        rows_of_step(family, [session])
    assert rows_of_step(family, batch[:1]) == [[1, 1], []], "halves apart, as the pipeline has them"
    rows_of_step(family, batch[2:3])
    assert [s.expert for s in batch] == [1, 0, 0, 0]
    assert rows_of_step(family, batch) == [[5], [1, 1]]
    assert [s.index for s in batch] == [3, 1, 2, 1], "one step each"
    assert rows_of_step(family, batch) == [[3], [4]]
    assert [s.scale for s in batch] == [2.0, 1.0, 1.0, 3.0]


def guidance(first: float, second: float | None) -> dict[str, float | None]:
    return {"guidance_scale": first, "guidance_scale_2": second}


@pytest.mark.parametrize("task", [VIDEO, PICTURED])
def test_samples_on_both_sides_of_the_boundary_stay_themselves(models: Models, task: str) -> None:
    pairs = [(3.0, 2.0), (1.0, None), (4.0, 1.0), (3.0, 5.0)]
    specs = [
        models.spec(
            "2.2 A14B", task, f"s.{i}", seed=i, num_inference_steps=4 + i, **guidance(*pair)
        )
        for i, pair in enumerate(pairs)
    ]
    check_batched(models.family("2.2 A14B", task), specs)


def test_the_second_scale_is_that_of_the_second_expert(models: Models) -> None:
    family = models.family("2.2 A14B", VIDEO)
    base, other = (
        begin(family, models.spec("2.2 A14B", VIDEO, **guidance(3.0, second)))
        for second in (2.0, 6.0)
    )
    same = []
    with torch.inference_mode():
        for _ in range(base.steps):
            family.step([base])
            family.step([other])
            same.append(torch.equal(base.latents, other.latents))
    assert same == [True, True, False, False]


def test_both_experts_are_weighed(models: Models) -> None:
    weights = models.family("2.2 A14B", VIDEO).weights()
    assert weights["transformer_2"] == weights["transformer"] > 100_000


def test_both_experts_are_shared_out(models: Models, two_ranks: RankPool) -> None:
    """The ranks exchange as much in a step of either."""
    sent = []
    settings = (("model_path", str(models.path("2.2 A14B", VIDEO))), ("ulysses_degree", 2))
    for shift, first in ((0.5, 1), (30.0, 4)):
        spec = models.spec("2.2 A14B", VIDEO, flow_shift=shift, **guidance(1.0, None))
        assert begin(models.family("2.2 A14B", VIDEO), spec).switch == first
        sent.append(two_ranks.run(parity.generate, settings, [spec], False)[0][2])
    assert sent[0] == sent[1]
    assert sum(sent[0].values()) > 0


# --------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("name", [name for name, _ in FROM_PICTURES])
def test_every_picture_matters(models: Models, name: str) -> None:
    family, spec = models.family(name, PICTURED), models.spec(name, PICTURED)
    count = len(spec.inputs.images)
    base = run_alone(family, models.pictured(spec, *range(count))).result
    for changed in range(count):
        seeds = [index + 10 * (index == changed) for index in range(count)]
        other = run_alone(family, models.pictured(spec, *seeds)).result
        assert (base - other).abs().max() > 0.01


@pytest.mark.parametrize("name", [name for name, _ in FROM_PICTURES])
def test_samples_of_different_pictures_share_forwards(models: Models, name: str) -> None:
    family, specs = models.family(name, PICTURED), []
    for index, scale in enumerate((3.0, 1.0, 2.0)):
        spec = models.spec(name, PICTURED, f"s.{index}", seed=index, guidance_scale=scale)
        count = len(spec.inputs.images)
        specs.append(models.pictured(spec, *range(count * index, count * (index + 1))))
    assert rows_of_step(family, [begin(family, spec) for spec in specs])[0] == [5]
    check_batched(family, specs)


@pytest.mark.parametrize("seeds", [(1, 2), (1,)], ids=["first and last", "first"])
def test_a_last_frame_may_be_given_to_the_two_experts(
    models: Models, seeds: tuple[int, ...]
) -> None:
    path = models.path("2.2 A14B", PICTURED)
    spec = models.pictured(models.spec("2.2 A14B", PICTURED, num_frames=5), *seeds)
    assert_the_bits(models.family("2.2 A14B", PICTURED), spec, zoo_wan.reference(path, spec))


def test_first_alone_and_first_and_last_share_forwards(models: Models) -> None:
    family = models.family("2.2 A14B", PICTURED)
    specs = [
        models.pictured(models.spec("2.2 A14B", PICTURED, f"s.{i}", seed=i), *range(1 + i))
        for i in range(2)
    ]
    card = cases.card_of(models.path("2.2 A14B", PICTURED))
    assert len({card.batch_key(s.sampling, s.task, s.inputs) for s in specs}) == 1
    check_batched(family, specs)


def test_pictures_are_encoded_once(models: Models) -> None:
    family = models.family("2.1 FLF2V", PICTURED)
    spec = models.pictured(models.spec("2.1 FLF2V", PICTURED), 30, 31)
    caches = family._pictures._visions, family._pictures._latents
    before = [cache.misses for cache in caches]
    first = begin(family, spec)
    again = begin(family, msgspec.structs.replace(spec, id="b.0"))
    assert [cache.misses for cache in caches] == [misses + 1 for misses in before]
    assert first.conditioning.vision is again.conditioning.vision
    swapped = begin(family, models.pictured(spec, 31, 30))
    assert not torch.equal(swapped.input, first.input)


def test_no_step_writes_to_what_is_kept_of_pictures(models: Models) -> None:
    for name, task in FROM_PICTURES:
        family, spec = models.family(name, task), models.spec(name, task)
        known = family.encode(spec).known
        assert known is not None
        before = known.clone()
        run_alone(family, spec)
        assert torch.equal(known, before)


# ------------------------------------------------------------------- a timestep for every token


def test_pictures_and_prompts_alone_share_forwards(models: Models) -> None:
    family = models.family("2.2 TI2V-5B", PICTURED)
    specs = [
        models.spec("2.2 TI2V-5B", task, f"s.{i}", seed=i, width=64, num_inference_steps=3 + i)
        for i, task in enumerate((VIDEO, PICTURED, VIDEO))
    ]
    assert len({spec.batch_key for spec in specs}) == 1
    assert rows_of_step(family, [begin(family, spec) for spec in specs]) == [[6]]
    check_batched(family, specs)


def test_the_known_frame_is_kept_as_it_was_given(models: Models) -> None:
    family, spec = models.family("2.2 TI2V-5B", PICTURED), models.spec("2.2 TI2V-5B", PICTURED)
    session = run_alone(family, spec)
    assert session.conditioning.known is not None
    assert torch.equal(session.result[:, :, :1], session.conditioning.known)
    assert torch.equal(session.result[:, :, 1:], session.latents[:, :, 1:])
    levels = begin(family, spec).level.unflatten(0, (session.latents.shape[2], -1))
    assert levels[0].unique().tolist() == [0]
    assert levels[1:].unique().tolist() == [session.timesteps[0]]


@pytest.mark.parametrize("task", [VIDEO, PICTURED])
def test_the_directory_may_name_either_pipeline(models: Models, task: str) -> None:
    path = zoo_wan.tiny_ti2v(models.folder / f"either-{task}", WanImageToVideoPipeline)
    case = CASES["2.2 TI2V-5B", task]
    spec = cases.sample(case, path)
    made = zoo_wan.reference(path, spec)
    assert np.array_equal(made, zoo_wan.reference(models.path("2.2 TI2V-5B", task), spec))
    assert_the_bits(cases.loaded(path), spec, made)


# ------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize(
    ("name", "task"),
    [("2.1 FLF2V", PICTURED), ("2.2 A14B", PICTURED), ("2.2 TI2V-5B", PICTURED)],
)
def test_the_bits_hold_in_half_precision(models: Models, name: str, task: str) -> None:
    """With an image encoder, with two experts, with a timestep for every token."""
    settings = (("dit_precision", "bf16"), ("vae_precision", "bf16"))
    family = cases.loaded(models.path(name, task), settings)
    spec = models.spec(name, task)
    kind = WanImageToVideoPipeline if task == PICTURED else WanPipeline
    pipeline = kind(**family.pipeline.components, **said_in_the_index(family.pipeline))
    pipeline.set_progress_bar_config(disable=True)
    assert_the_bits(family, spec, zoo_wan.frames_of(pipeline, spec))


def said_in_the_index(pipeline: Any) -> dict[str, Any]:
    return {name: pipeline.config[name] for name in ("boundary_ratio", "expand_timesteps")}


def assert_the_bits(family: WanFamily, spec: SampleSpec, expected: np.ndarray) -> None:
    session = run_alone(family, spec)
    with torch.inference_mode():
        (frames,) = family.decode([session])
    assert np.array_equal(frames, expected)
    assert frames.std() > 1, "a flat picture proves nothing"
