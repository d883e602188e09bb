"""Fidelity: Wan through the adapter against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from fakes.simulation import spec as sample_spec
from safelight import config as configuration
from safelight.models.card import ModelCard
from safelight.models.registry import load_card, load_family
from safelight.models.wan.adapter import WanFamily, WanSession
from safelight.request import SampleSpec

PROMPT = "a green triangle moving up on a white background"
LATENT_TOLERANCE = 1e-5  # of batched latents, relative to the largest; docs/numerics.md
FRAME_TOLERANCE = {"shapes": 1e-5, "tiny-wan": 2e-4}
"""Of batched frames, in [0, 1]. The random VAE of the tiny model enlarges differences 20-fold."""


@pytest.fixture(scope="module", params=["tiny"])
def loaded(request: pytest.FixtureRequest, tiny_wan_directory: Path) -> tuple[ModelCard, WanFamily]:
    path = str(tiny_wan_directory) if request.param == "tiny" else request.param
    config = configuration.build({"model_path": path, "device": "cpu"})
    family = load_family(config)
    assert isinstance(family, WanFamily)
    return load_card(config), family


def make_spec(
    card: ModelCard, name: str = "a.0", prompt: str = PROMPT, **values: object
) -> SampleSpec:
    size = {"width": 64, "height": 64, "num_frames": 9}
    sampling = card.resolve({**size, "num_inference_steps": 4, "seed": 7, **values})
    return msgspec.structs.replace(sample_spec(name), prompt=prompt, sampling=sampling)


def frames_of_pipeline(family: WanFamily, spec: SampleSpec) -> np.ndarray:
    """What `WanPipeline.__call__` makes of the same request: float32 [T, H, W, 3]."""
    s = spec.sampling
    result = family.pipeline(
        prompt=spec.prompt,
        negative_prompt=s.negative_prompt,
        height=s.height,
        width=s.width,
        num_frames=s.num_frames,
        num_inference_steps=s.num_inference_steps,
        guidance_scale=s.guidance_scale,
        max_sequence_length=s.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(s.seed),
        output_type="np",
    )
    return result.frames[0]


def as_bytes(frames: np.ndarray) -> np.ndarray:
    """The rounding of diffusers' `numpy_to_pil`."""
    return (frames * 255).round().astype(np.uint8)


@torch.inference_mode()
def begin(family: WanFamily, spec: SampleSpec) -> WanSession:
    return family.begin(spec, family.encode(spec))


@torch.inference_mode()
def run_alone(family: WanFamily, spec: SampleSpec) -> WanSession:
    session = begin(family, spec)
    for _ in range(spec.sampling.num_inference_steps):
        family.step([session])
    return session


@torch.inference_mode()
def float_frames(family: WanFamily, sessions: list[WanSession]) -> list[np.ndarray]:
    """Frames before rounding, decoded together: float32 [T, H, W, 3]."""
    kept = []
    original = family.pipeline.video_processor.postprocess_video

    def keep(video: torch.Tensor, **kwargs: object) -> np.ndarray:
        kept.append(original(video, **kwargs))
        return kept[-1]

    family.pipeline.video_processor.postprocess_video = keep
    try:
        family.decode(sessions)
    finally:
        del family.pipeline.video_processor.postprocess_video
    return list(kept[0])


@pytest.mark.parametrize(
    ("loaded", "values"),
    [
        ("builtin:shapes", {"num_frames": 5}),
        ("builtin:shapes", {"num_frames": 1, "guidance_scale": 1.0}),
        ("tiny", {"guidance_scale": 1.0, "num_frames": 5}),
        (
            "tiny",
            {"width": 96, "height": 48, "num_frames": 5, "negative_prompt": "a red circle"},
        ),
        ("tiny", {"max_sequence_length": 512, "num_frames": 1}),
    ],
    ids=["clip", "still", "unguided", "other size, negative prompt", "long text"],
    indirect=["loaded"],
)
def test_one_sample_has_the_bits_of_the_pipeline(
    loaded: tuple[ModelCard, WanFamily], values: dict[str, object]
) -> None:
    card, family = loaded
    spec = make_spec(card, **values)
    expected = frames_of_pipeline(family, spec)
    session = run_alone(family, spec)
    with torch.inference_mode():
        (frames,) = family.decode([session])
    assert np.array_equal(frames, as_bytes(expected))
    assert frames.std() > 1, "a flat picture proves nothing"


def test_prompts_and_seeds_matter(loaded: tuple[ModelCard, WanFamily]) -> None:
    card, family = loaded
    base = run_alone(family, make_spec(card)).latents
    assert not torch.equal(base, run_alone(family, make_spec(card, prompt="a red circle")).latents)
    assert not torch.equal(base, run_alone(family, make_spec(card, seed=8)).latents)


@pytest.mark.parametrize("loaded", ["builtin:shapes", "tiny"], indirect=True)
@torch.inference_mode()
def test_samples_at_different_steps_counts_and_scales_in_one_forward(
    loaded: tuple[ModelCard, WanFamily],
) -> None:
    """Four samples, 3 to 8 steps, one unguided, each entering one step after the last."""
    card, family = loaded
    scales, steps = [3.0, 1.0, 5.0, 2.0], [3, 4, 6, 8]
    specs = [
        make_spec(
            card,
            f"s.{i}",
            prompt=f"{PROMPT} {i}",
            seed=i,
            num_inference_steps=count,
            guidance_scale=scale,
        )
        for i, (scale, count) in enumerate(zip(scales, steps, strict=True))
    ]
    alone = [run_alone(family, spec) for spec in specs]
    waiting, running, done = [begin(family, s) for s in specs], [], []
    while waiting or running:
        if waiting:
            running.append(waiting.pop(0))
        family.step(running)
        done += [s for s in running if s.index == s.spec.sampling.num_inference_steps]
        running = [s for s in running if s not in done]
    batched = dict(zip((s.spec.id for s in done), float_frames(family, done), strict=True))
    for session in alone:
        name = session.spec.id
        latents = next(s.latents for s in done if s.spec.id == name)
        assert (latents - session.latents).abs().max() <= LATENT_TOLERANCE * latents.abs().max()
        (expected,) = float_frames(family, [session])
        assert np.abs(batched[name] - expected).max() <= FRAME_TOLERANCE[card.name]


def test_prompt_embeddings_are_computed_once(loaded: tuple[ModelCard, WanFamily]) -> None:
    card, family = loaded
    spec = make_spec(card, prompt="a prompt nobody else uses")
    begin(family, spec)
    misses = family._prompts.misses
    begin(family, msgspec.structs.replace(spec, id="b.0"))
    assert family._prompts.misses == misses
