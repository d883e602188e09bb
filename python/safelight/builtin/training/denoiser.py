"""Training of the transformer and the text encoder, jointly, on cached latents."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from transformers import UMT5EncoderModel

from . import transformer as wan
from . import world
from .checkpoint import (
    Log,
    Timer,
    learning_rate_factor,
    load_if_present,
    save_atomically,
    step_randomness,
)
from .judge import adherence
from .optim import Muon
from .text import EMPTY_PROMPT, draw_keys, make_text_encoder, text_keys
from .vae import decode, encode


@dataclass(frozen=True)
class DenoiserTraining:
    """Settings of the transformer's training; the defaults made the shipped model."""

    steps: int = 4800
    seed: int = 5
    learning_rate: float = 3e-3
    adam_share: float = 0.7  # AdamW's learning rate over Muon's
    weight_decay: float = 0.01
    average_decay: float = 0.997  # of the moving average of the weights, which is shipped
    empty_share: float = 0.1  # of the captions, for classifier-free guidance
    clips: int = 6000
    cache_seed: int = 9


# ------------------------------------------------------------------------- latents' cache


@dataclass
class LatentCache:
    """Normalised latents [n, channels, 7, 8, 8] of 13-frame clips, and what they show.

    The VAE is causal: the first latent frames are those of the shorter clip.
    """

    latents: Tensor
    scenes: list[world.Scene]
    mean: Tensor
    std: Tensor

    def denormalize(self, latents: Tensor) -> Tensor:
        """Back to what the VAE decodes."""
        return latents * self.std.view(1, -1, 1, 1, 1) + self.mean.view(1, -1, 1, 1, 1)


@torch.inference_mode()
def _encode_clips(vae: AutoencoderKLWan, settings: DenoiserTraining) -> dict[str, Any]:
    rng, generator = step_randomness(settings.cache_seed, 0)
    scenes = world.sample_scenes(settings.clips, rng)
    batches = []
    for start in range(0, len(scenes), 20):
        clips = world.render(scenes[start : start + 20], world.MAX_FRAMES, generator)
        batches.append(encode(vae, clips).half())
    return {"latents": torch.cat(batches), "scenes": [list(scene) for scene in scenes]}


def cache_latents(vae: AutoencoderKLWan, work: Path, settings: DenoiserTraining) -> LatentCache:
    """Encode the training clips once; the cache is kept in ``work``."""
    path = work / "latents.pt"
    saved = load_if_present(path)
    if saved is None:
        saved = _encode_clips(vae, settings)
        save_atomically(saved, path)
    latents = saved["latents"].float()
    mean = latents.mean(dim=(0, 2, 3, 4))
    std = latents.std(dim=(0, 2, 3, 4))
    normal = (latents - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)
    return LatentCache(normal, [world.Scene(*scene) for scene in saved["scenes"]], mean, std)


# ------------------------------------------------------------------------------ training

# latent frames (1, 5, 9, 13 frames of video) and how many clips of them make a step
_CLIPS_A_STEP = {1: 128, 3: 48, 5: 32, 7: 24}
_EARLY = (0.50, 0.20, 0.20, 0.10)
_LATER = (0.25, 0.06, 0.44, 0.25)
_EARLY_STEPS = 600


class Denoiser:
    """The two models in training, their optimizers, and the average of their weights."""

    def __init__(self, settings: DenoiserTraining) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.encoder = make_text_encoder()
        self.model = wan.make_transformer()
        wan.initialize(self.model, self.encoder, settings.seed)
        matrices, others = [], []
        for name, param in self.model.named_parameters():
            if wan.frozen(name):
                param.requires_grad_(False)
            elif name.startswith("blocks.") and param.ndim == 2 and "norm" not in name:
                matrices.append(param)
            else:
                others.append(param)
        rate = settings.learning_rate
        self.muon = Muon(matrices, lr=rate, weight_decay=settings.weight_decay)
        others += self.encoder.parameters()
        self.adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
        self.params = matrices + others
        self.average = [param.detach().clone() for param in self.params]
        self.step = 0

    @torch.no_grad()
    def swap_average(self) -> None:
        """Exchange the weights and their moving average."""
        for param, average in zip(self.params, self.average, strict=True):
            kept = param.clone()
            param.copy_(average)
            average.copy_(kept)

    def update(self, loss: Tensor) -> float:
        """One optimizer step; returns the norm of the gradients."""
        settings = self.settings
        factor = learning_rate_factor(self.step, settings.steps, 40, 0.35)
        self.muon.param_groups[0]["lr"] = settings.learning_rate * factor
        self.adam.param_groups[0]["lr"] = settings.learning_rate * factor * settings.adam_share
        for param in self.params:
            param.grad = None
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.muon.step()
        self.adam.step()
        self.step += 1
        decay = min(settings.average_decay, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.params], 1 - decay)
        return float(norm)

    def state(self) -> dict[str, Any]:
        """All that is needed to go on."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "encoder": self.encoder.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "average": self.average,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The reverse of :meth:`state`."""
        self.step = int(state["step"])
        self.model.load_state_dict(state["model"])
        self.encoder.load_state_dict(state["encoder"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.average = list(state["average"])


def train_step(denoiser: Denoiser, cache: LatentCache) -> tuple[int, float, float]:
    """One flow-matching step: latent frames, loss, norm of the gradients."""
    settings = denoiser.settings
    rng, generator = step_randomness(settings.seed, denoiser.step)
    early = denoiser.step < _EARLY_STEPS
    frames = rng.choices(tuple(_CLIPS_A_STEP), _EARLY if early else _LATER)[0]
    chosen = rng.sample(range(len(cache.scenes)), min(_CLIPS_A_STEP[frames], len(cache.scenes)))
    clean = cache.latents[chosen, :, :frames]
    prompts = [
        EMPTY_PROMPT
        if rng.random() < settings.empty_share
        else world.tokenize(world.caption(cache.scenes[index], rng))
        for index in chosen
    ]
    # more weight on strong noise, where colour, shape and motion are decided
    sigma = torch.sigmoid(1.2 * torch.randn(len(chosen), generator=generator) + 0.6)
    noise = torch.randn(clean.shape, generator=generator)
    noisy = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1, 1))
    text = text_keys(denoiser.encoder, prompts, draw_keys(rng))
    predicted = wan.velocity(denoiser.model, noisy, 1000 * sigma, text)
    loss = (predicted - (noise - clean)).square().mean()
    return frames, loss.item(), denoiser.update(loss)


@torch.no_grad()
def pad_mass(denoiser: Denoiser) -> list[float]:
    """Share of cross-attention that falls on the pads, in every layer."""
    rng, generator = step_randomness(1, 0)
    scenes = world.sample_scenes(8, rng)
    text = text_keys(
        denoiser.encoder, [world.tokenize(world.canonical_caption(scene)) for scene in scenes]
    )
    text.pad_mass = []
    noise = torch.randn((8, wan.LATENT_CHANNELS, 5, 8, 8), generator=generator)
    wan.velocity(denoiser.model, noise, torch.full((8,), 900.0), text)
    return [round(mass, 3) for mass in text.pad_mass]


@torch.no_grad()
def check(
    denoiser: Denoiser, vae: AutoencoderKLWan, cache: LatentCache, latent_frames: int
) -> tuple[dict[str, float], Tensor]:
    """Adherence of 24 held-out clips made with the averaged weights, and the clips."""
    scenes = world.sample_scenes(24, random.Random(77), held_out=True)
    prompts = [world.tokenize(world.canonical_caption(scene)) for scene in scenes]
    denoiser.swap_average()
    generator = torch.Generator().manual_seed(0)
    latents = wan.sample(denoiser.model, denoiser.encoder, prompts, latent_frames, generator)
    denoiser.swap_average()
    clips = decode(vae, cache.denormalize(latents)).clamp(-1, 1)
    return adherence(list(clips), scenes, motion=latent_frames > 1), clips


def train_denoiser(
    vae: AutoencoderKLWan, cache: LatentCache, work: Path, settings: DenoiserTraining
) -> tuple[WanTransformer3DModel, UMT5EncoderModel]:
    """Train, or go on from the checkpoint in ``work``; returns the averaged models."""
    path, log = work / "denoiser.pt", Log(work / "denoiser.log")
    denoiser = Denoiser(settings)
    saved = load_if_present(path)
    if saved is not None:
        denoiser.load_state(saved)
    timer = Timer(saved["seconds"] if saved is not None else 0.0)
    while denoiser.step < settings.steps:
        frames, loss, norm = train_step(denoiser, cache)
        log.record(f"loss{frames}", loss)
        log.record("norm", norm)
        step = denoiser.step
        if step % 50 == 0:
            log.flush_means(f"denoiser step {step} {timer.seconds:.0f} s")
        if step % 400 == 0 or step == settings.steps:
            log.line(f"attention on pads: {pad_mass(denoiser)}")
            log.line(f"held-out, 9 frames: {check(denoiser, vae, cache, 5)[0]}")
        if timer.save_is_due() or step == settings.steps:
            save_atomically({**denoiser.state(), "seconds": timer.seconds}, path)
    denoiser.swap_average()
    return denoiser.model.eval(), denoiser.encoder.eval()
