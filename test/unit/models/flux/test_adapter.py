"""Fidelity: Flux through the adapter against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from fakes import zoo_flux
from fakes.cases import Checkpoints
from fakes.ranks import RankPool
from fakes.simulation import spec as sample_spec
from safelight import config as configuration
from safelight.models.card import ModelCard
from safelight.models.flux.base import FluxSession
from safelight.models.flux.pictures import FluxFamily
from safelight.models.registry import load_card, load_family
from safelight.request import SampleSpec

PROMPT = "a green triangle on a white background"
LATENT_TOLERANCE = 1e-5  # of batched latents, relative to the largest; docs/numerics.md
RANKS_TOLERANCE = 1e-4  # of two ranks' latents
FRAME_TOLERANCE = 1  # of batched frames, in 1/255: what lies on an edge is rounded either way


@pytest.fixture(scope="module")
def directories(checkpoints: Checkpoints) -> dict[str, Path]:
    return {
        "dev": checkpoints.made(zoo_flux.tiny_flux),
        "schnell": checkpoints.made(zoo_flux.tiny_schnell),
    }


@pytest.fixture(scope="module", params=["dev", "schnell"])
def loaded(
    request: pytest.FixtureRequest, directories: dict[str, Path]
) -> tuple[ModelCard, FluxFamily]:
    config = configured(directories[request.param])
    family = load_family(config)
    assert isinstance(family, FluxFamily)
    return load_card(config), family


def configured(directory: Path, **values: object) -> configuration.EngineConfig:
    return configuration.build({"model_path": str(directory), "device": "cpu", **values})


def make_spec(
    card: ModelCard, name: str = "a.0", prompt: str = PROMPT, **values: object
) -> SampleSpec:
    small = {"width": 64, "height": 64, "max_sequence_length": 64}
    sampling = card.resolve({**small, "num_inference_steps": 4, "seed": 7, **values})
    return msgspec.structs.replace(sample_spec(name), prompt=prompt, sampling=sampling)


def frame_of_pipeline(family: FluxFamily, spec: SampleSpec) -> np.ndarray:
    """What `FluxPipeline.__call__` makes of the same request: uint8 [H, W, 3]."""
    s = spec.sampling
    (image,) = family.pipeline(
        prompt=spec.prompt,
        height=s.height,
        width=s.width,
        num_inference_steps=s.num_inference_steps,
        guidance_scale=s.guidance_scale,
        max_sequence_length=s.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(s.seed),
        negative_prompt=s.negative_prompt or None,
        true_cfg_scale=s.true_cfg_scale or 1.0,
    ).images
    return np.asarray(image)


@torch.inference_mode()
def begin(family: FluxFamily, spec: SampleSpec) -> FluxSession:
    return family.begin(spec, family.encode(spec))


@torch.inference_mode()
def run_alone(family: FluxFamily, spec: SampleSpec) -> FluxSession:
    session = begin(family, spec)
    for _ in range(spec.sampling.num_inference_steps):
        family.step([session])
    return session


@pytest.mark.parametrize(
    "values",
    [
        {"width": 96, "height": 48},
        {"width": 16, "height": 112, "num_inference_steps": 1},
        {"max_sequence_length": 512},
        {"true_cfg_scale": 4.0, "negative_prompt": "ugly"},
    ],
    ids=[
        "wide",
        "one step of a column",
        "long text",
        "true guidance",
    ],
)
def test_one_sample_has_the_bits_of_the_pipeline(
    loaded: tuple[ModelCard, FluxFamily], values: dict[str, object]
) -> None:
    card, family = loaded
    spec = make_spec(card, **values)
    expected = frame_of_pipeline(family, spec)
    session = run_alone(family, spec)
    with torch.inference_mode():
        (frames,) = family.decode([session])
    assert frames.shape == (1, spec.sampling.height, spec.sampling.width, 3)
    assert np.array_equal(frames[0], expected)
    assert frames.std() > 1, "a flat picture proves nothing"


@torch.inference_mode()
def test_the_bits_hold_in_half_precision(directories: dict[str, Path]) -> None:
    """And with the VAE in float32, as on CUDA, which the pipeline cannot do, pictures are made."""
    half = {"dit_precision": "bf16", "vae_precision": "bf16"}
    config = configured(directories["dev"], **half)
    family, spec = load_family(config), make_spec(load_card(config), guidance_scale=3.3)
    assert isinstance(family, FluxFamily)
    session = run_alone(family, spec)
    assert session.latents.dtype == torch.bfloat16
    (frames,) = family.decode([session])
    assert np.array_equal(frames[0], frame_of_pipeline(family, spec))
    family.pipeline.vae.float()
    assert np.abs(family.decode([session])[0].astype(int) - frames).mean() < 5


def test_both_text_encoders_have_the_precision_of_text_encoders(
    directories: dict[str, Path],
) -> None:
    config = configured(directories["dev"], text_encoder_precision="bf16")
    family = load_family(config)
    assert isinstance(family, FluxFamily)
    pipeline = family.pipeline
    assert {pipeline.text_encoder.dtype, pipeline.text_encoder_2.dtype} == {torch.bfloat16}
    assert run_alone(family, make_spec(load_card(config))).latents.dtype == torch.float32


def test_prompts_seeds_and_guidance_matter(loaded: tuple[ModelCard, FluxFamily]) -> None:
    card, family = loaded
    base = run_alone(family, make_spec(card)).latents
    other = {"prompt": "a red circle"}, {"seed": 8}, {"guidance_scale": 1.0}
    same = [torch.equal(base, run_alone(family, make_spec(card, **v)).latents) for v in other]
    assert same == [False, False, not family.transformer.config.guidance_embeds]


@torch.inference_mode()
def test_samples_at_different_steps_counts_and_scales_in_one_forward(
    loaded: tuple[ModelCard, FluxFamily],
) -> None:
    """Four samples, 2 to 6 steps, each entering one step after the last."""
    card, family = loaded
    dev = family.transformer.config.guidance_embeds
    specs = [
        make_spec(
            card,
            f"s.{i}",
            prompt=f"{i} {PROMPT}",
            seed=i,
            num_inference_steps=count,
            guidance_scale=scale if dev else 0.0,
        )
        for i, (count, scale) in enumerate(zip([2, 3, 4, 6], [3.5, 1.0, 7.0, 0.0], strict=True))
    ]
    alone = [run_alone(family, spec) for spec in specs]
    waiting, running, done = [begin(family, s) for s in specs], [], []
    while waiting or running:
        if waiting:
            running.append(waiting.pop(0))
        family.step(running)
        done += [s for s in running if s.index == s.spec.sampling.num_inference_steps]
        running = [s for s in running if s not in done]
    done.sort(key=lambda session: session.spec.id)
    for batched, single, frames in zip(done, alone, family.decode(done), strict=True):
        difference = (batched.latents - single.latents).abs().max()
        assert difference <= LATENT_TOLERANCE * single.latents.abs().max()
        (expected,) = family.decode([single])
        assert np.abs(frames.astype(int) - expected).max() <= FRAME_TOLERANCE


@torch.inference_mode()
def test_samples_of_different_sizes_take_turns(loaded: tuple[ModelCard, FluxFamily]) -> None:
    """And both keep their bits."""
    card, family = loaded
    specs = [
        make_spec(card, f"s.{i}", seed=i, width=64 + 32 * i, num_inference_steps=2 + i)
        for i in range(2)
    ]
    alone = [run_alone(family, spec).latents for spec in specs]
    first, second = (begin(family, spec) for spec in specs)
    for session in (first, second, second, first, second):
        family.step([session])
    assert torch.equal(first.latents, alone[0])
    assert torch.equal(second.latents, alone[1])


def test_prompt_embeddings_are_computed_once(loaded: tuple[ModelCard, FluxFamily]) -> None:
    card, family = loaded
    spec = make_spec(card, prompt="a prompt nobody else uses")
    begin(family, spec)
    misses = family._prompts.misses
    begin(family, msgspec.structs.replace(spec, id="b.0"))
    assert family._prompts.misses == misses


@torch.inference_mode()
def test_guided_and_unguided_samples_share_one_forward(
    loaded: tuple[ModelCard, FluxFamily],
) -> None:
    card, family = loaded
    guided = {"true_cfg_scale": 3.0, "negative_prompt": "ugly"}
    specs = [
        make_spec(card, f"s.{i}", seed=i, num_inference_steps=4 + i, **values)
        for i, values in enumerate([guided, {}, {**guided, "true_cfg_scale": 6.0}])
    ]
    alone = [run_alone(family, spec).latents for spec in specs]
    assert not torch.equal(alone[0], run_alone(family, make_spec(card, seed=0)).latents)
    sessions = [begin(family, spec) for spec in specs]
    rows = []
    hook = family.transformer.register_forward_hook(lambda *call: rows.append(len(call[2][0])))
    for _ in range(4):
        family.step(sessions)
    hook.remove()
    assert rows == [5] * 4
    for session, single in zip(sessions, alone, strict=True):
        for _ in range(session.steps - 4):
            family.step([session])
        difference = (session.latents - single).abs().max()
        assert difference <= LATENT_TOLERANCE * single.abs().max()


# ----------------------------------------------------------------------------------- several ranks


@pytest.mark.parametrize(
    "layout",
    [
        {"ring_degree": 2},
        {"ulysses_degree": 2, "tp_size": 2, "vae_parallel": "on"},
    ],
    ids=["ring", "all"],
)
def test_two_ranks_make_what_one_makes(
    directories: dict[str, Path], two_ranks: RankPool, layout: dict[str, object]
) -> None:
    """Two samples in a batch, of 15 image tokens and 33 words, which two ranks share unevenly."""
    path = directories["dev"]
    card = load_card(configured(path, **layout))
    uneven = {"width": 80, "height": 48, "max_sequence_length": 33}
    specs = [make_spec(card, f"s.{i}", seed=i, guidance_scale=1.0 + i, **uneven) for i in range(2)]
    one = (("model_path", str(path)),)
    expected, pictures = zoo_flux.generate(0, one, specs)
    ranks = two_ranks.run(zoo_flux.generate, (*one, *layout.items()), specs)
    for latents, _ in ranks:
        for mine, reference in zip(latents, expected, strict=True):
            assert np.abs(mine - reference).max() <= RANKS_TOLERANCE
    for mine, reference in zip(ranks[0][1], pictures, strict=True):
        assert np.abs(mine.astype(int) - reference).max() <= FRAME_TOLERANCE
