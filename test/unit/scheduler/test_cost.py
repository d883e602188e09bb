"""The cost model learns a line, and believes what it has seen often."""

from __future__ import annotations

import random

import pytest

from safelight.scheduler.cost import CostModel


def test_before_any_measurement_batching_looks_worth_trying() -> None:
    cost = CostModel()
    assert cost.predict("step", 80, 2) < 1.5 * cost.predict("step", 80, 1)


def test_it_learns_the_fixed_part_and_the_slope_from_noisy_measurements() -> None:
    cost, rng = CostModel(), random.Random(1)
    for _ in range(400):
        tokens, batch = rng.choice([16, 80, 320, 1280]), rng.randint(1, 8)
        seconds = 0.015 + 3e-5 * tokens * batch
        cost.observe("step", tokens, batch, seconds * rng.uniform(0.9, 1.1))
    for tokens, batch in [(640, 3), (2560, 1), (48, 16)]:  # none of them seen
        expected = 0.015 + 3e-5 * tokens * batch
        assert cost.predict("step", tokens, batch) == pytest.approx(expected, rel=0.15)


def test_a_size_that_is_off_the_line_gets_its_own_correction() -> None:
    """Attention: four times the tokens cost six times as much."""
    cost, rng = CostModel(), random.Random(3)
    for _ in range(300):
        for tokens, factor in ((80, 1.0), (320, 6.0)):
            batch = rng.randint(1, 4)
            cost.observe("step", tokens, batch, 0.01 + 0.004 * factor * batch)
    assert cost.predict("step", 80, 2) == pytest.approx(0.018, rel=0.25)
    assert cost.predict("step", 320, 2) == pytest.approx(0.058, rel=0.25)


def test_one_slow_first_forward_of_a_batch_size_is_forgiven() -> None:
    cost = CostModel()
    for batch in (1, 2, 4):
        for _ in range(10):
            cost.observe("step", 80, batch, 0.01 + 0.005 * batch)
    before = cost.predict("step", 80, 5)
    cost.observe("step", 80, 5, 2.0)
    assert cost.predict("step", 80, 5) < 1.5 * before


def test_it_follows_a_change() -> None:
    cost = CostModel()
    for seconds in [0.1] * 20 + [0.3] * 60:
        cost.observe("step", 80, 1, seconds)
    assert cost.predict("step", 80, 1) == pytest.approx(0.3, rel=0.1)


def test_predictions_are_positive_whatever_was_seen() -> None:
    cost = CostModel()
    cost.observe("step", 1000, 1, 5.0)
    cost.observe("step", 10, 8, 0.0)
    assert all(cost.predict("step", tokens, 1) > 0 for tokens in (1, 100, 10_000, 1_000_000))


def test_one_size_for_ever_does_not_unlearn_the_others() -> None:
    """The direction that gets no news must not blow up the filter."""
    cost, rng = CostModel(), random.Random(2)
    for batch in (1, 2, 4):
        cost.observe("step", 80, batch, 0.01 + 0.005 * batch)
    for _ in range(20_000):
        cost.observe("step", 80, 1, 0.015 * rng.uniform(0.8, 1.2))
    assert cost.predict("step", 80, 2) < 0.03
    assert cost.predict("step", 320, 1) < 0.1
    cost.observe("step", 320, 1, 0.03)
    assert 0 < cost.predict("step", 80, 2) < 0.03


def test_operations_are_learnt_apart() -> None:
    cost = CostModel()
    for _ in range(5):
        cost.observe("step", 80, 1, 1.0)
        cost.observe("decode", 80, 1, 0.1)
    assert cost.predict("step", 80) > 5 * cost.predict("decode", 80)
