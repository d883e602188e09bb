"""The judge that counts the built-in model's adherence, held to drawn clips."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from safelight.builtin.training import world
from safelight.builtin.training.judge import adherence, classify


def drawn(count: int, frames: int, seed: int) -> tuple[list[world.Scene], torch.Tensor]:
    rng = random.Random(seed)
    scenes = world.sample_scenes(count, rng) + world.sample_scenes(count, rng, held_out=True)
    return scenes, world.render(scenes, frames, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("frames", [1, 5, 9, 13])
def test_judge_is_right_on_drawn_clips(frames: int) -> None:
    scenes, clips = drawn(60, frames, seed=frames)
    scores = adherence(list(clips), scenes, motion=frames > 1)
    assert min(scores.values()) >= 0.98, scores


@pytest.mark.parametrize("field", world.Scene._fields)
def test_judge_fails_a_wrong_label(field: str) -> None:
    sizes = {"color": 6, "shape": 3, "motion": 5, "background": 3}
    scenes, clips = drawn(20, 9, seed=4)
    wrong = [s._replace(**{field: (getattr(s, field) + 1) % sizes[field]}) for s in scenes]
    scores = adherence(list(clips), wrong)
    assert scores[field] <= 0.02
    assert scores["all"] <= 0.02
    others = [name for name in world.Scene._fields if name != field]
    assert min(scores[name] for name in others) >= 0.98


def test_judge_withstands_blur_and_noise() -> None:
    """What a decoder does to a clip: softer edges, a little noise."""
    scenes, clips = drawn(20, 9, seed=5)
    frames = clips.transpose(1, 2).flatten(0, 1)
    blurred = F.avg_pool2d(frames, 3, stride=1, padding=1, count_include_pad=False)
    noise = 0.03 * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0))
    soft = (blurred + noise).unflatten(0, (len(clips), 9)).transpose(1, 2)
    assert min(adherence(list(soft), scenes).values()) >= 0.95


def test_judge_answers_for_a_featureless_clip() -> None:
    found = classify(torch.zeros(3, 9, 64, 64))
    assert found.motion == 0
    assert world.BACKGROUND_NAMES[found.background] == "gray"
