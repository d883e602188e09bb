"""Text encoders in host memory: the same embeddings, and less on the GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fakes.simulation import spec as sample_spec
from safelight import config as configuration
from safelight.models.registry import load_family

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@torch.inference_mode()
def test_an_offloaded_encoder_gives_the_same_embeddings(tiny_wan_directory: Path) -> None:
    found = []
    for offload in (False, True):
        config = configuration.build(
            {
                "model_path": str(tiny_wan_directory),
                "device": "cuda",
                "text_encoder_cpu_offload": offload,
            }
        )
        family = load_family(config)
        encoder = family.pipeline.text_encoder  # type: ignore[attr-defined]
        resting = {parameter.device.type for parameter in encoder.parameters()}
        assert resting == ({"cpu"} if offload else {"cuda"})
        found.append(family.encode(sample_spec("a.0")).positive)
    assert torch.equal(*found)
