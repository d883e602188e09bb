"""The training code: its lean forward passes equal the published ones; it resumes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from safelight.builtin.training import transformer as wan
from safelight.builtin.training import vae as autoencoder
from safelight.builtin.training import world
from safelight.builtin.training.denoiser import (
    Denoiser,
    DenoiserTraining,
    LatentCache,
    pad_mass,
    train_denoiser,
    train_step,
)
from safelight.builtin.training.optim import orthogonalize
from safelight.builtin.training.text import PIPELINE_KEYS, TEXT_DIM, text_keys


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return autoencoder.make_vae().eval()


def made_up_cache() -> LatentCache:
    generator = torch.Generator().manual_seed(0)
    channels = autoencoder.LATENT_CHANNELS
    latents = torch.randn((160, channels, 7, 8, 8), generator=generator)
    scenes = world.sample_scenes(len(latents), random.Random(0))
    return LatentCache(latents, scenes, torch.zeros(channels), torch.ones(channels))


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_whole_clip_vae_equals_the_chunked_one(vae, frames: int) -> None:
    clips = torch.rand(2, 3, frames, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = autoencoder.encode(vae, clips)
        torch.testing.assert_close(latents, vae.encode(clips).latent_dist.mode(), atol=1e-5, rtol=0)
        made = autoencoder.decode(vae, latents).clamp(-1, 1)
        torch.testing.assert_close(made, vae.decode(latents).sample, atol=1e-4, rtol=0)


def test_lean_transformer_equals_the_published_one_with_512_keys() -> None:
    denoiser = Denoiser(DenoiserTraining())
    torch.nn.init.normal_(denoiser.model.proj_out.weight, 0, 0.05)
    captions = ["a red circle moving up on a white background", "blue square"]
    prompts = [world.tokenize(caption) for caption in captions]
    latents, timesteps = torch.randn(2, wan.LATENT_CHANNELS, 5, 8, 8), torch.tensor([100.0, 900.0])
    padded = torch.zeros(2, PIPELINE_KEYS, TEXT_DIM)
    with torch.no_grad():
        for row, prompt in zip(padded, prompts, strict=True):
            hidden = denoiser.encoder(torch.tensor([prompt])).last_hidden_state
            row[: len(prompt)] = hidden[0]
        expected = denoiser.model(latents, timesteps, padded, return_dict=False)[0]
        text = text_keys(denoiser.encoder, prompts)
        made = wan.velocity(denoiser.model, latents, timesteps, text)
    torch.testing.assert_close(made, expected, atol=2e-5, rtol=0)
    assert max(pad_mass(denoiser)) < 0.15


def test_interrupted_training_equals_uninterrupted(vae, tmp_path: Path) -> None:
    cache, settings = made_up_cache(), DenoiserTraining(steps=2)
    whole = Denoiser(settings)
    losses = [train_step(whole, cache)[1] for _ in range(2)]
    first = Denoiser(settings)
    again = [train_step(first, cache)[1]]
    torch.save({**first.state(), "seconds": 1.0}, tmp_path / "state.pt")
    second = Denoiser(settings)
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    again += [train_step(second, cache)[1]]
    assert again == losses
    for left, right in zip(whole.average, second.average, strict=True):
        assert torch.equal(left, right)


def test_finished_training_is_not_repeated(vae, tmp_path: Path) -> None:
    cache, settings = made_up_cache(), DenoiserTraining(steps=1)
    first, _ = train_denoiser(vae, cache, tmp_path, settings)
    second, _ = train_denoiser(vae, cache, tmp_path, settings)
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(left, right)


def test_frozen_biases_do_not_move() -> None:
    denoiser, cache = Denoiser(DenoiserTraining(steps=2)), made_up_cache()
    for _ in range(2):
        train_step(denoiser, cache)
    parameters = dict(denoiser.model.named_parameters())
    held = [name for name in parameters if wan.frozen(name)]
    assert len(held) == wan.LAYERS + 2
    assert all(not parameters[name].any() for name in held)


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(2, 48, 96), iterations=5))
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_vae_steps_depend_on_the_step_alone() -> None:
    from safelight.builtin.training.checkpoint import step_randomness

    first = autoencoder.training_batch(*step_randomness(3, 17), still=False)
    second = autoencoder.training_batch(*step_randomness(3, 17), still=False)
    other = autoencoder.training_batch(*step_randomness(3, 18), still=False)
    assert torch.equal(first, second)
    assert first.shape != other.shape or not torch.equal(first, other)
