"""The fidelity gate on CUDA: one rank, in bf16 and fp32, against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from fakes.simulation import spec as sample_spec
from safelight import config as configuration
from safelight.models.registry import load_card, load_family

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("path", ["builtin:shapes", "tiny"])
def test_one_sample_has_the_bits_of_the_pipeline(
    path: str, precision: str, tiny_wan_directory: Path
) -> None:
    model_path = str(tiny_wan_directory) if path == "tiny" else path
    config = configuration.build(
        {"model_path": model_path, "device": "cuda", "dit_precision": precision}
    )
    family, card = load_family(config), load_card(config)
    sampling = card.resolve({"width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 4})
    spec = msgspec.structs.replace(sample_spec("a.0"), sampling=sampling)
    with torch.inference_mode():
        session = family.begin(spec, family.encode(spec))
        for _ in range(4):
            family.step([session])
        (frames,) = family.decode([session])
    expected = family.pipeline(  # type: ignore[attr-defined]
        prompt=spec.prompt,
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=sampling.guidance_scale,
        max_sequence_length=sampling.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(0),
        output_type="np",
    ).frames[0]
    assert np.array_equal(frames, (expected * 255).round().astype(np.uint8))
