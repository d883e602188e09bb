"""How much of a device merged weights may have."""

from __future__ import annotations

import math

import pytest
import torch

from safelight.lora.room import Room

CUDA = torch.device("cuda")


def device(
    patch: pytest.MonkeyPatch, *, free: int, reserved: int, allocated: int, most: int
) -> None:
    """One of this state, as torch tells it."""
    answers = {
        "mem_get_info": (free, 100),
        "memory_reserved": reserved,
        "memory_allocated": allocated,
        "max_memory_allocated": most,
    }
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, lambda device, answer=answer: answer)


def test_what_forwards_have_taken_stays_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room()
    device(monkeypatch, free=40, reserved=60, allocated=30, most=50)
    assert room.left(CUDA) == 100 - 30 - 20
    # Weights of 35 are merged, and a forward has had its 20 beside them.
    device(monkeypatch, free=10, reserved=90, allocated=65, most=85)
    assert room.left(CUDA) == 100 - 65 - 20
    # They are given back; that there were more at once says nothing of forwards.
    device(monkeypatch, free=10, reserved=90, allocated=30, most=85)
    assert room.left(CUDA) == 100 - 30 - 20


def test_the_host_sees_to_its_own() -> None:
    assert Room().left(torch.device("cpu")) == math.inf
