"""The step cache of every family that has one: fewer blocks, whose bits nobody else changes."""

from __future__ import annotations

import functools
import itertools
import weakref
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from fakes import cases, pipelines, zoo_flux2, zoo_generic, zoo_sdxl
from fakes.cases import Case, Checkpoints, Stepper
from fakes.lora import Files, difference, in_turns
from fakes.parity import Settings
from fakes.ranks import RankPool
from fakes.simulation import spec as sample_spec
from safelight import config as configuration
from safelight.cache.first_block import StepCache
from safelight.errors import ConfigError
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec, Task
from safelight.worker.warmup import warm_up

NAMES = (
    *("Wan 2.1", "Wan 2.2 A14B", "FLUX.1 dev", "FLUX.1 Kontext", "Qwen-Image", "Qwen-Image-Edit"),
    *("FLUX.1 Fill", "Wan 2.2 TI2V-5B", "Qwen-Image-Edit-Plus"),
)
CASES: list[Case] = [next(case for case in pipelines.CASES if case.name == name) for name in NAMES]
STEPS = 10
SOME, LIVELY = 0.15, 0.5
"""Thresholds at which tiny random models compute some steps and not others: Wan, and the rest, in
which everything changes more."""
LARGEST = 1e-5
"""Difference that several ranks may make, in latents; of their largest where that is above 1."""
COMPILED = 1e-4
"""The same of compiled blocks."""

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def settings(threshold: float) -> Settings:
    return (("step_cache", "first-block"), ("step_cache_threshold", threshold))


def some(case: Case) -> Settings:
    return settings(SOME if case.name.startswith("Wan") else LIVELY)


def stepper(where: Any, given: Settings) -> Stepper:
    return Stepper(cases.loaded(where, given), Mesh.single(cases.CPU))


def family(one: Stepper) -> Any:
    return one.executor._family


def transformers(one: Stepper) -> list[Any]:
    parts = family(one).pipeline.components
    found = (parts.get(name) for name in ("transformer", "transformer_2"))
    return [part for part in found if part is not None]


class Counted:
    """Forwards of transformers, and how many of them computed the last block."""

    def __init__(self, transformers: list[Any]) -> None:
        self.forwards = self.full = 0
        for transformer in transformers:
            *_, blocks = (m for m in transformer.children() if isinstance(m, torch.nn.ModuleList))
            # What is inside a block runs only if it is computed.
            next(blocks[-1].children()).register_forward_hook(self._one_full)
            transformer.register_forward_hook(self._one_forward)

    def _one_full(self, *_: Any) -> None:
        self.full += 1

    def _one_forward(self, *_: Any) -> None:
        self.forwards += 1


def spec(case: Case, where: Any, name: str, **values: Any) -> SampleSpec:
    return cases.sample(case, where, f"{name}.0", **{"num_inference_steps": STEPS, **values})


def latents(one: Stepper, name: str) -> np.ndarray:
    made: torch.Tensor = one.executor._sessions[name].latents
    return made.float().numpy().copy()


def alone(where: Any, given: Settings, sample: SampleSpec) -> np.ndarray:
    """Last latents of a sample from a model that has seen no other."""
    one = stepper(where, given)
    one.begin(sample)
    one.step(sample.id, count=one.left(sample.id))
    return latents(one, sample.id)


# ------------------------------------------------------------------------------------- one rank


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_threshold_of_nothing_leaves_the_bits_of_diffusers(
    case: Case, checkpoints: Checkpoints
) -> None:
    where = checkpoints.of(case)
    sample = cases.sample(case, where)
    one = stepper(where, settings(0.0))
    counted = Counted(transformers(one))
    one.begin(sample)
    assert np.array_equal(one.finish(sample.id), case.reference(where, sample))
    assert counted.full == counted.forwards > 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fewer_blocks_are_computed_and_company_changes_no_bits(
    case: Case, checkpoints: Checkpoints
) -> None:
    """Samples take turns, one joins late, one shows previews: each as if it were alone."""
    where, given = checkpoints.of(case), some(case)
    specs = [
        spec(case, where, "a"),
        msgspec.structs.replace(spec(case, where, "b", seed=8), previews=2),
        spec(case, where, "late", seed=9, num_inference_steps=STEPS - 2),
    ]
    specs[1] = msgspec.structs.replace(specs[1], prompt="two squares")
    one = stepper(where, given)
    counted = Counted(transformers(one))
    one.begin(*specs[:2])
    one.step("a.0", count=3)
    one.step("b.0")
    one.begin(specs[2])
    while waiting := [sample.id for sample in specs if one.left(sample.id)]:
        for name in waiting:
            one.step(name)
    assert 0 < counted.full < counted.forwards
    assert one.previews
    for sample in specs:
        assert np.array_equal(latents(one, sample.id), alone(where, given, sample)), sample.id


def test_a_sample_with_adapters_beside_one_without(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    case = CASES[0]
    where, given = checkpoints.of(case), some(case)
    adapter = Files(tmp_path, checkpoints).adapter(case, "a")
    plain = spec(case, where, "plain")
    adapted = msgspec.structs.replace(plain, id="adapted.0", adapters=(adapter,))
    one = stepper(where, given)
    counted = Counted(transformers(one))
    one.begin(plain, adapted)
    for name in ("plain.0", "adapted.0") * STEPS:
        one.step(name)
    assert counted.full < counted.forwards
    for sample in (plain, adapted):
        assert np.array_equal(latents(one, sample.id), alone(where, given, sample)), sample.id


def test_what_is_kept_of_a_sample_ends_with_it(checkpoints: Checkpoints) -> None:
    case = CASES[1]  # of two transformers
    where = checkpoints.of(case)
    one = stepper(where, some(case))
    one.begin(spec(case, where, "a"))
    one.step("a.0", count=STEPS)
    session = one.executor._sessions["a.0"]
    halves = list(session.cached.values())
    assert len(halves) == 2, "both experts"
    assert {name for states in halves for name in states} == {"cond", "uncond"}
    found = [state for states in halves for state in states.values()]
    assert {state.head_block_output for state in found} == {None}, "of use within a forward"
    assert all(state.head_block_residual is not None for state in found)
    del found
    kept = [weakref.ref(state) for states in halves for state in states.values()]
    del session, halves
    one.executor.release(["a.0"])
    assert [state() for state in kept] == [None] * len(kept)


@pytest.mark.parametrize("half", [0, 1])
def test_a_step_that_is_tried_again_is_as_if_it_had_not_failed(
    half: int, checkpoints: Checkpoints
) -> None:
    """What was noted before it failed would pass for a full forward, of either half."""
    case = CASES[0]
    where, given = checkpoints.of(case), settings(0.0)
    one, sample = stepper(where, given), spec(case, where, "a")
    one.begin(sample)
    one.step("a.0")
    *_, last = transformers(one)[0].blocks
    attention = next(last.children())
    works = attention.register_forward_pre_hook(_fails(after=half))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no memory"):
        family(one).step([one.executor._sessions["a.0"]])
    works.remove()
    one.step("a.0", count=STEPS - 1)
    assert np.array_equal(latents(one, "a.0"), alone(where, given, sample))


def _fails(after: int) -> Any:
    """A hook that fails once it has been called so often."""
    calls = itertools.count()

    def fail(*_: Any) -> None:
        if next(calls) == after:
            raise RuntimeError("no memory")

    return fail


def test_a_warm_up_leaves_nothing_behind(checkpoints: Checkpoints) -> None:
    case = CASES[0]
    where, given = checkpoints.of(case), some(case)
    one, sample = stepper(where, given), spec(case, where, "a")
    card = cases.card_of(where, **dict(given))
    timings = warm_up(family(one), card, Mesh.single(cases.CPU))
    assert {timing.batch for timing in timings} == {1}
    one.begin(sample)
    one.step("a.0", count=STEPS)
    assert np.array_equal(latents(one, "a.0"), alone(where, given, sample))


def test_compiled_blocks_are_cached_and_not_compiled_anew_for_every_sample(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as ever, but not made into C++: that takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    case = CASES[0]
    where, given = checkpoints.of(case), some(case)
    one = stepper(where, (*given, ("enable_torch_compile", True)))
    counters = torch._dynamo.utils.counters
    counters.clear()
    graphs = []
    for name, seed in (("a", 7), ("b", 8)):
        sample = spec(case, where, name, seed=seed)
        one.begin(sample)
        one.step(sample.id, count=STEPS)
        graphs.append(counters["stats"]["unique_graphs"])
        made, expected = latents(one, sample.id), alone(where, given, sample)
        assert difference(made, expected) <= COMPILED
    assert graphs[0] == graphs[1] > 0


def test_samples_that_are_put_in_one_forward_get_their_steps_apart(
    checkpoints: Checkpoints,
) -> None:
    """No batch key allows it; if it came to it, each would be tried alone."""
    case = CASES[2]
    where = checkpoints.of(case)
    one = stepper(where, some(case))
    one.begin(spec(case, where, "a"), spec(case, where, "b"))
    sessions = list(one.executor._sessions.values())
    with pytest.raises(ValueError, match="2 samples would share one decision"):
        family(one).step(sessions)
    one.step("a.0", "b.0")
    assert [session.index for session in sessions] == [1, 1]


def test_without_a_cache_a_transformer_is_left_as_it_is(checkpoints: Checkpoints) -> None:
    transformer = family(stepper(checkpoints.of(CASES[0]), ())).transformer
    assert not transformer.is_cache_enabled
    model = configuration.build({}).model
    cache = StepCache.apply(transformer, Mesh.single(cases.CPU), model)
    with cache.context("batch", [object(), object()]):  # type: ignore[list-item]
        assert not transformer.is_cache_enabled


# ----------------------------------------------------------------------------------- many ranks


LAYOUTS: list[tuple[int, Settings]] = [
    (0, (("ulysses_degree", 2),)),
    (0, (("ring_degree", 2),)),
    (0, (("cfg_parallel_size", 2),)),
    (2, (("ulysses_degree", 2), ("tp_size", 2))),
    (4, (("ulysses_degree", 2),)),
]
"""Numbers of cases, and layouts of two ranks."""


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_ranks_decide_alike_and_make_what_one_makes(
    layout: tuple[int, Settings], two_ranks: RankPool, checkpoints: Checkpoints
) -> None:
    case = CASES[layout[0]]
    assert_parity(case, layout[1], two_ranks, checkpoints)


def test_four_ranks_on_two_axes_decide_alike(
    four_ranks: RankPool, checkpoints: Checkpoints
) -> None:
    assert_parity(CASES[0], (("ulysses_degree", 2), ("ring_degree", 2)), four_ranks, checkpoints)


def assert_parity(case: Case, layout: Settings, ranks: RankPool, files: Checkpoints) -> None:
    where = files.of(case)
    specs = [spec(case, where, "a"), spec(case, where, "b", seed=8)]
    model = (("model_path", str(where)), *some(case))
    made, *others = ranks.run(in_turns, model + layout, specs)
    ranks.close()
    for theirs in others:
        assert all(map(np.array_equal, made, theirs))
    worst = max(map(difference, made, in_turns(0, model, specs)))
    assert worst <= LARGEST


# ------------------------------------------------------------------------------------- for real


BUILTIN = {"device": "cpu", "dit_precision": "fp32"}
PROMPTS = {
    "a red circle moving left on a white background": ("text-to-video", 9),
    "a blue square standing still on a black background": ("text-to-image", 1),
}


@pytest.mark.parametrize(
    ("threshold", "steps", "share", "least"),
    [(0.08, 20, 0.7, 30.0), (0.08, 50, 0.35, 30.0), (0.2, 50, 0.2, 22.0)],
)
def test_how_much_is_left_out_of_the_builtin_model_and_what_it_costs(
    threshold: float, steps: int, share: float, least: float, record_property: Any
) -> None:
    """The bounds that docs/step_cache.md states: full forwards of all, and PSNR in dB."""
    whole, cached = (
        stepper("builtin:shapes", (*BUILTIN.items(), *given)) for given in ((), settings(threshold))
    )
    counted = Counted(transformers(cached))
    for index, (prompt, (task, frames)) in enumerate(PROMPTS.items()):
        sample = _drawn(prompt, task, num_frames=frames, num_inference_steps=steps, seed=index)
        counted.forwards = counted.full = 0
        for one in (whole, cached):
            one.begin(sample)
        quality = _psnr(whole.finish(sample.id), cached.finish(sample.id))
        record_property(prompt, (counted.full, counted.forwards, quality))
        assert counted.forwards == 2 * steps
        assert counted.full <= share * counted.forwards
        assert least <= quality < 60  # dB


def _drawn(prompt: str, task: Task, **values: Any) -> SampleSpec:
    card = cases.card_of(Path("builtin:shapes"))
    sampling = card.resolve(values, task=task)
    drawn = msgspec.structs.replace(sample_spec("a.0"), prompt=prompt, task=task)
    return msgspec.structs.replace(drawn, sampling=sampling, tokens=card.tokens(sampling))


def _psnr(expected: np.ndarray, made: np.ndarray) -> float:
    error = np.square(expected.astype(float) - made).mean()
    return float(10 * np.log10(255**2 / error))


# -------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (zoo_flux2.tiny_flux2, "Flux2Transformer2DModel"),
        (zoo_sdxl.tiny_sdxl, "UNet2DConditionModel"),
        (zoo_generic.tiny_cogview4, "CogView4Pipeline"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_a_model_that_runs_without_is_refused_before_it_is_loaded(
    make: Any, name: str, checkpoints: Checkpoints
) -> None:
    where = checkpoints.made(make)
    assert not cases.card_of(where).alone
    message = f"--step-cache first-block is not for {name} here; families with Flux"
    with pytest.raises(ConfigError, match=message):
        cases.card_of(where, **dict(settings(SOME)))


def test_samples_of_a_cached_model_are_alone(checkpoints: Checkpoints) -> None:
    assert cases.card_of(checkpoints.of(CASES[0]), **dict(settings(SOME))).alone
