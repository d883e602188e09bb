"""Degrees: completed when partly given, refused with a reason and what would fit."""

from __future__ import annotations

import pytest

from safelight.config import ParallelConfig
from safelight.errors import ConfigError
from safelight.parallel import layout as layouts
from safelight.parallel.layout import Capabilities, Layout, complete, refusals

MODEL = Capabilities(transformer="Transformer", heads=12, encoder_heads={"text_encoder": 8})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Layout()),
        ({"num_gpus": 4}, Layout(ulysses=4)),
        ({"num_gpus": 4, "ulysses_degree": 2}, Layout(ring=2, ulysses=2)),
        ({"num_gpus": 4, "ring_degree": 4}, Layout(ring=4)),
        ({"num_gpus": 4, "ulysses_degree": 2, "ring_degree": 2}, Layout(ring=2, ulysses=2)),
        ({"ulysses_degree": 2, "ring_degree": 2}, Layout(ring=2, ulysses=2)),
        ({"ulysses_degree": 4}, Layout(ulysses=4)),
        ({"ring_degree": 2}, Layout(ring=2)),
        ({"sp_degree": 4}, Layout(ulysses=4)),
        ({"sp_degree": 4, "ring_degree": 2}, Layout(ring=2, ulysses=2)),
        ({"num_gpus": 4, "enable_cfg_parallel": True}, Layout(cfg=2, ulysses=2)),
        ({"cfg_parallel_size": 2}, Layout(cfg=2)),
        ({"cfg_parallel_size": 2, "ulysses_degree": 2}, Layout(cfg=2, ulysses=2)),
        ({"dp_size": 2}, Layout(dp=2)),
        ({"num_gpus": 4, "dp_size": 2}, Layout(dp=2, ulysses=2)),
        ({"num_gpus": 4, "sp_degree": 2}, Layout(dp=2, ulysses=2)),
        ({"num_gpus": 4, "sp_degree": 1}, Layout(dp=4)),
        ({"dp_size": 2, "sp_degree": 2}, Layout(dp=2, ulysses=2)),
        ({"dp_size": 2, "ulysses_degree": 2}, Layout(dp=2, ulysses=2)),
        ({"tp_size": 2}, Layout(ulysses=2, tp=2)),
        ({"num_gpus": 2, "tp_size": 2}, Layout(ulysses=2, tp=2)),
        ({"tp_size": 2, "sp_degree": 1}, Layout(spare=2, tp=2)),
        ({"num_gpus": 2, "sp_degree": 1, "vae_parallel": "on"}, Layout(spare=2)),
        (
            {"num_gpus": 4, "ulysses_degree": 2, "ring_degree": 2, "tp_size": 2},
            Layout(ring=2, ulysses=2, tp=2),
        ),
        ({"num_gpus": 8, "sp_degree": 4, "tp_size": 4}, Layout(dp=2, ulysses=4, tp=4)),
        ({"num_gpus": 8, "sp_degree": 4, "tp_size": 8}, Layout(spare=2, ulysses=4, tp=8)),
        ({"num_gpus": 4, "sp_degree": 2, "tp_size": 2}, Layout(dp=2, ulysses=2, tp=2)),
        ({"num_gpus": 4, "sp_degree": 1, "tp_size": 2}, Layout(dp=2, spare=2, tp=2)),
        (
            {"num_gpus": 8, "sp_degree": 4, "tp_size": 4, "vae_parallel": "on"},
            Layout(spare=2, ulysses=4, tp=4),
        ),
        ({"cfg_parallel_size": 2, "tp_size": 3}, Layout(cfg=2, ulysses=3, tp=3)),
        ({"gpu_ids": "0,1"}, Layout(ulysses=2)),
        ({"gpu_ids": "0,1,2,3", "ulysses_degree": 2}, Layout(ulysses=2)),
        ({"gpu_ids": "0,1", "num_gpus": 1}, Layout()),
        (
            {"num_gpus": 8, "dp_size": 2, "cfg_parallel_size": 2, "tp_size": 4},
            Layout(dp=2, cfg=2, ulysses=2, tp=4),
        ),
    ],
)
def test_what_was_not_given_is_completed(given: dict[str, object], expected: Layout) -> None:
    assert complete(ParallelConfig(**given)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_gpus": 3, "ulysses_degree": 2}, ["3", "--ulysses-degree 2", "does not divide"]),
        ({"num_gpus": 3, "dp_size": 2}, ["3 GPUs", "2 replicas"]),
        ({"num_gpus": 3, "cfg_parallel_size": 2}, ["halved"]),
        ({"num_gpus": 4, "dp_size": 1, "sp_degree": 2}, ["use 2", "4 ranks", "--tp-size"]),
        ({"num_gpus": 2, "ulysses_degree": 2, "ring_degree": 2}, ["2 ranks", "ulysses 2"]),
        ({"sp_degree": 3, "ulysses_degree": 2, "ring_degree": 2}, ["--sp-degree 3", "give 4"]),
        ({"enable_cfg_parallel": True, "cfg_parallel_size": 1}, ["contradicts"]),
        ({"num_gpus": 4, "tp_size": 3}, ["--tp-size 3"]),
        ({"num_gpus": 8, "dp_size": 1, "sp_degree": 2, "tp_size": 4}, ["use 4", "8 ranks"]),
        ({"vae_parallel": "on"}, ["--vae-parallel on", "only one"]),
        ({"dp_size": 2, "vae_parallel": "on"}, ["--vae-parallel on", "only one"]),
        ({"num_gpus": 1, "dp_size": 2}, ["1 GPU cannot"]),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        complete(ParallelConfig(**given))  # type: ignore[arg-type]
    assert [word for word in words if word not in str(refused.value)] == []


def test_an_error_names_a_command_line_that_works() -> None:
    with pytest.raises(ConfigError, match="--num-gpus 3 --ulysses-degree 3 --ring-degree 1"):
        complete(ParallelConfig(num_gpus=3, ulysses_degree=2))


@pytest.mark.parametrize(
    ("given", "example"),
    [
        ({"sp_degree": 3, "ulysses_degree": 2}, "--num-gpus 3 --ulysses-degree 3 --ring-degree 1"),
        (
            {"num_gpus": 6, "ulysses_degree": 4, "tp_size": 2},
            "--num-gpus 6 --ulysses-degree 6 --ring-degree 1 --tp-size 2",
        ),
        (
            {"num_gpus": 12, "dp_size": 2, "ulysses_degree": 4, "tp_size": 2},
            "--num-gpus 12 --dp-size 2 --ulysses-degree 6 --ring-degree 1 --tp-size 2",
        ),
        (
            {"num_gpus": 6, "enable_cfg_parallel": True, "ulysses_degree": 2},
            "--num-gpus 6 --cfg-parallel-size 2 --ulysses-degree 3 --ring-degree 1",
        ),
        ({"num_gpus": 4, "tp_size": 3}, "--num-gpus 4 --ulysses-degree 4 --ring-degree 1"),
    ],
)
def test_examples_keep_what_was_asked_for(given: dict[str, object], example: str) -> None:
    with pytest.raises(ConfigError) as refused:
        complete(ParallelConfig(**given))  # type: ignore[arg-type]
    first = str(refused.value).partition(". For example: ")[2].rstrip(".").split("; ")[0]
    assert first == example


def test_one_device_has_no_other_layouts_to_propose() -> None:
    with pytest.raises(ConfigError) as refused:
        complete(ParallelConfig(num_gpus=1, dp_size=2))
    assert "example" not in str(refused.value)


def test_examples_for_a_parallel_vae_leave_it_several_ranks() -> None:
    with pytest.raises(ConfigError) as refused:
        complete(ParallelConfig(num_gpus=3, dp_size=2, vae_parallel="on"))
    assert "--num-gpus 3 --ulysses-degree 3" in str(refused.value)
    assert "--dp-size 3" not in str(refused.value)


@pytest.mark.parametrize(
    ("layout", "changes", "words"),
    [
        (Layout(ulysses=5), {}, ["12 attention heads", "1, 2, 3, 4, 6, 12 fit"]),
        (Layout(ring=2), {"masked": True}, ["mask", "--ulysses-degree 2"]),
        (Layout(ulysses=2), {"sequence": False}, ["no plan", "--dp-size"]),
        (Layout(cfg=2), {"guided": False}, ["no unconditional forward"]),
        (Layout(ulysses=3, tp=3), {}, ["8 attention heads", "text_encoder", "1, 2, 4, 8 fit"]),
        (
            Layout(ulysses=2, tp=2),
            {"encoder_heads": {}, "encoders_whole": {"text_encoder": "is a CLIP"}},
            ["no text encoder", "text_encoder is a CLIP"],
        ),
    ],
)
def test_what_a_model_cannot_do_is_explained(
    layout: Layout, changes: dict[str, object], words: list[str]
) -> None:
    import msgspec

    (reason,) = refusals(layout, msgspec.structs.replace(MODEL, **changes))
    assert [word for word in words if word not in reason] == []


def test_what_a_model_can_do_is_not_refused() -> None:
    for layout in (Layout(), Layout(ring=5), Layout(ulysses=6), Layout(cfg=2, ulysses=2, tp=4)):
        layouts.check(layout, MODEL)


def test_fitting_layouts_fit_and_use_every_device() -> None:
    found = layouts.fitting(8, MODEL)
    assert {layout.num_gpus for layout in found} == {8}
    assert all(not refusals(layout, MODEL) for layout in found)
    assert Layout(cfg=2, ulysses=4, tp=8) in found
    assert not any(layout.ulysses == 8 for layout in found)
    assert any(layout.ring == 8 for layout in found)
    with pytest.raises(ConfigError, match="Layouts that fit: --num-gpus 8 --ulysses-degree 4"):
        layouts.check(Layout(ulysses=8), MODEL)


@pytest.mark.parametrize(("asked", "proposed"), [(1, None), (2, "--tp-size 2"), (8, "--tp-size 8")])
def test_encoders_are_shared_in_proposals_as_far_as_was_asked(
    asked: int, proposed: str | None
) -> None:
    with pytest.raises(ConfigError) as refused:
        layouts.check(Layout(ulysses=8, tp=asked), MODEL)
    first = str(refused.value).partition("Layouts that fit: ")[2].split("; ")[0]
    assert first == " ".join(
        filter(None, ("--num-gpus 8 --ulysses-degree 4 --ring-degree 2", proposed))
    )


@pytest.mark.parametrize("layout", layouts.fitting(8, MODEL))
def test_the_flags_of_a_layout_ask_for_it(layout: Layout) -> None:
    words = layout.flags().split()
    given = {
        flag.removeprefix("--").replace("-", "_"): int(value)
        for flag, value in zip(words[::2], words[1::2], strict=True)
    }
    assert complete(ParallelConfig(**given)) == layout  # type: ignore[arg-type]
