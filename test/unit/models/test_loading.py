"""Where the parts of a pipeline go."""

from __future__ import annotations

import pytest
import torch

from safelight import config as configuration
from safelight.errors import ConfigError
from safelight.models import loading


def test_a_rank_without_a_gpu_is_told_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    model = configuration.build({"device": "cuda"}).model
    assert loading.device_of(model) == torch.device("cuda")
    assert loading.device_of(model, 1) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="Rank 2 has no GPU: torch sees 2"):
        loading.device_of(model, 2)


def test_offloaded_encoders_stay_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which stands for a GPU here."""
    offloaded: list[torch.nn.Module] = []
    monkeypatch.setattr(loading, "offload", lambda module, device: offloaded.append(module))
    parts = {name: torch.nn.Linear(2, 2) for name in ("text_encoder_2", "transformer")}
    parts = {**parts, "tokenizer": object()}  # type: ignore[dict-item]
    model = configuration.build({"text_encoder_cpu_offload": True}).model
    loading.place(parts, model, torch.device("meta"))
    assert offloaded == [parts["text_encoder_2"]]
    assert parts["text_encoder_2"].weight.device.type == "cpu"
    assert parts["transformer"].weight.device.type == "meta"


def test_weights_are_counted_by_component() -> None:
    parts = {"vae": torch.nn.Linear(3, 5), "tokenizer": object()}
    assert loading.weight_bytes(parts) == {"vae": 4 * (3 * 5 + 5)}
