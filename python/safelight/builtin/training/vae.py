"""The causal video autoencoder (``AutoencoderKLWan``) and its training.

The model is the unmodified diffusers class: 8x smaller in space, 2x in time (no
temporal compression at all would break WanPipeline's rounding of frame counts).
The published class encodes and decodes in chunks of few frames, with a cache.
:func:`encode` and :func:`decode` run the same weights over the whole clip at once,
which gives the same result (a test compares them) several times faster.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    WanMidBlock,
    WanResample,
    WanResidualBlock,
    patchify,
    unpatchify,
)
from torch import Tensor

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

LATENT_CHANNELS = 20
SPATIAL_FACTOR = 8
TEMPORAL_FACTOR = 2


@dataclass(frozen=True)
class VaeTraining:
    """Settings of the VAE's training; the defaults made the shipped model."""

    steps: int = 2800
    seed: int = 1
    learning_rate: float = 3e-3
    latent_noise: float = 0.12  # at most this share of the latents' deviation
    stills_share: float = 0.3  # of the steps, at the start, mostly on stills


def make_vae(mean: list[float] | None = None, std: list[float] | None = None) -> AutoencoderKLWan:
    """The autoencoder, with random weights."""
    return AutoencoderKLWan(
        base_dim=32,
        decoder_base_dim=64,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1],
        num_res_blocks=0,
        attn_scales=[],
        temperal_downsample=[True],
        patch_size=4,
        in_channels=48,
        out_channels=48,
        is_residual=False,
        scale_factor_spatial=SPATIAL_FACTOR,
        scale_factor_temporal=TEMPORAL_FACTOR,
        latents_mean=mean or [0.0] * LATENT_CHANNELS,
        latents_std=std or [1.0] * LATENT_CHANNELS,
    )


@torch.no_grad()
def initialize(vae: AutoencoderKLWan) -> None:
    """Start near an image autoencoder: weak residual branches, weak past frames."""
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            module.conv2.weight.mul_(0.2)
            module.conv2.bias.zero_()
        elif isinstance(module, WanAttentionBlock):
            module.proj.weight.mul_(0.2)
            module.proj.bias.zero_()
        elif isinstance(module, WanCausalConv3d) and module.kernel_size[0] == 3:
            module.weight[:, :, :2].mul_(0.3)


# ------------------------------------------------------- forward passes over whole clips


def _causal_conv(conv: WanCausalConv3d, x: Tensor) -> Tensor:
    if conv.kernel_size == (1, 1, 1):
        return F.conv3d(x, conv.weight, conv.bias)
    if x.shape[2] == 1 and conv.kernel_size == (3, 3, 3):  # only the kernel's last frame counts
        frame = F.conv2d(x[:, :, 0], conv.weight[:, :, 2], conv.bias, padding=1)
        return frame[:, :, None]
    before = conv._padding[4]
    padding = (0, conv._padding[2], conv._padding[0])
    x = F.pad(x, (0, 0, 0, 0, before, 0))
    return F.conv3d(x, conv.weight, conv.bias, stride=conv.stride, padding=padding)


def _residual(block: WanResidualBlock, x: Tensor) -> Tensor:
    shortcut = block.conv_shortcut
    kept = _causal_conv(shortcut, x) if isinstance(shortcut, WanCausalConv3d) else x
    x = _causal_conv(block.conv1, F.silu(block.norm1(x)))
    return _causal_conv(block.conv2, F.silu(block.norm2(x))) + kept


def _resample(block: WanResample, x: Tensor) -> Tensor:
    """The first frame is never resampled in time."""
    if block.mode == "upsample3d" and x.shape[2] > 1:
        first, rest = x[:, :, :1], _causal_conv(block.time_conv, x[:, :, 1:])
        batch, channels, frames, height, width = rest.shape
        rest = rest.reshape(batch, 2, channels // 2, frames, height, width)
        rest = torch.stack((rest[:, 0], rest[:, 1]), dim=3).flatten(2, 3)
        x = torch.cat((first, rest), dim=2)
    batch, _, frames = x.shape[:3]
    x = block.resample(x.transpose(1, 2).flatten(0, 1))
    x = x.unflatten(0, (batch, frames)).transpose(1, 2)
    if block.mode == "downsample3d" and frames > 1:
        time = block.time_conv
        x = torch.cat((x[:, :, :1], F.conv3d(x, time.weight, time.bias, stride=(2, 1, 1))), dim=2)
    return x


def _middle(block: WanMidBlock, x: Tensor) -> Tensor:
    x = _residual(block.resnets[0], x)
    return _residual(block.resnets[1], block.attentions[0](x))


def encode(vae: AutoencoderKLWan, clips: Tensor) -> Tensor:
    """Latents (the distribution's mean) of clips [n, 3, 4k + 1, h, w]."""
    encoder = vae.encoder
    x = _causal_conv(encoder.conv_in, patchify(clips, vae.config.patch_size))
    for block in encoder.down_blocks:
        x = _resample(block, x) if isinstance(block, WanResample) else _residual(block, x)
    x = _middle(encoder.mid_block, x)
    x = _causal_conv(encoder.conv_out, F.silu(encoder.norm_out(x)))
    return _causal_conv(vae.quant_conv, x)[:, : vae.config.z_dim]


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Clips of (unnormalised) latents, not clamped."""
    decoder = vae.decoder
    x = _causal_conv(decoder.conv_in, _causal_conv(vae.post_quant_conv, latents))
    x = _middle(decoder.mid_block, x)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _residual(resnet, x)
        if block.upsamplers is not None:
            x = _resample(block.upsamplers[0], x)
    x = _causal_conv(decoder.conv_out, F.silu(decoder.norm_out(x)))
    return unpatchify(x, vae.config.patch_size)


# ------------------------------------------------------------------------------ training

_CLIPS_A_STEP = {1: 48, 5: 14, 9: 8, 13: 6}
_STILLS_FIRST = (0.75, 0.20, 0.05, 0.0)
_CLIPS_LATER = (0.20, 0.30, 0.35, 0.15)


def training_batch(rng: random.Random, generator: torch.Generator, still: bool) -> Tensor:
    """Clips of one length; circles less often, the other shapes have harder edges."""
    weights = _STILLS_FIRST if still else _CLIPS_LATER
    frames = rng.choices(tuple(_CLIPS_A_STEP), weights)[0]
    scenes = [
        world.Scene(
            rng.randrange(len(world.COLORS)),
            rng.choice((0, 1, 1, 2, 2)),
            rng.randrange(len(world.MOTIONS)),
            rng.randrange(len(world.BACKGROUNDS)),
        )
        for _ in range(_CLIPS_A_STEP[frames])
    ]
    draw = world.render_wild if rng.random() < 0.5 else world.render
    return draw(scenes, frames, generator)


def reconstruction_loss(made: Tensor, target: Tensor) -> Tensor:
    """Squared and absolute error, and the absolute error of the edges."""
    error = made - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.square().mean() + 0.15 * error.abs().mean() + 0.15 * edges


def _optimizers(vae: AutoencoderKLWan, rate: float) -> tuple[Muon, torch.optim.AdamW]:
    inner: list[Tensor] = []
    outer: list[Tensor] = []
    for name, param in vae.named_parameters():
        is_end = any(part in name for part in ("conv_in", "conv_out", "quant_conv"))
        is_kernel = param.ndim >= 4 and param.numel() > param.shape[0]
        (inner if is_kernel and not is_end else outer).append(param)
    adam = torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    return Muon(inner, lr=rate), adam


def train_step(
    vae: AutoencoderKLWan,
    optimizers: tuple[Muon, torch.optim.AdamW],
    settings: VaeTraining,
    step: int,
) -> tuple[int, float]:
    """One step; returns the clips' length and the squared error."""
    rng, generator = step_randomness(settings.seed, step)
    rate = settings.learning_rate * learning_rate_factor(step, settings.steps, 20, 0.4)
    clips = training_batch(rng, generator, step < settings.stills_share * settings.steps)
    latents = encode(vae, clips)
    spread = latents.detach().std() * settings.latent_noise
    strength = torch.rand((len(clips), 1, 1, 1, 1), generator=generator)
    noise = torch.randn(latents.shape, generator=generator) * spread * strength
    made = decode(vae, latents + noise)
    loss = reconstruction_loss(made, clips)
    loss = loss + 1e-4 * latents.square().mean() + 1e-3 * F.relu(latents.abs() - 4).mean()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
        optimizer.param_groups[0]["lr"] = rate
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return clips.shape[2], (made.detach() - clips).square().mean().item()


@torch.no_grad()
def reconstruct(
    vae: AutoencoderKLWan, count: int, frames: int, seed: int = 7
) -> tuple[dict[str, float], Tensor, Tensor]:
    """Adherence and PSNR of reconstructed held-out clips, the clips, what came back."""
    scenes = world.sample_scenes(count, random.Random(seed), held_out=True)
    clips = world.render(scenes, frames, torch.Generator().manual_seed(seed))
    made = decode(vae, encode(vae, clips)).clamp(-1, 1)
    table = adherence(list(made), scenes, motion=frames > 1)
    table["psnr"] = 10 * math.log10(4 / (made - clips).square().mean().item())
    return table, clips, made


def train_vae(work: Path, settings: VaeTraining) -> AutoencoderKLWan:
    """Train, or go on from the checkpoint in ``work``; returns the finished VAE."""
    torch.manual_seed(settings.seed)
    vae = make_vae()
    initialize(vae)
    optimizers = _optimizers(vae, settings.learning_rate)
    path, log = work / "vae.pt", Log(work / "vae.log")
    saved = load_if_present(path) or {"step": 0, "seconds": 0.0}
    if saved["step"]:
        vae.load_state_dict(saved["vae"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    step, timer = int(saved["step"]), Timer(saved["seconds"])

    def save() -> None:
        states = [optimizer.state_dict() for optimizer in optimizers]
        state = {"step": step, "seconds": timer.seconds, "vae": vae.state_dict()}
        save_atomically({**state, "optimizers": states}, path)

    while step < settings.steps:
        frames, error = train_step(vae, optimizers, settings, step)
        step += 1
        log.record(f"psnr{frames:02d}", 10 * math.log10(4 / error))
        if step % 50 == 0:
            log.flush_means(f"vae step {step} {timer.seconds:.0f} s")
        if step % 300 == 0:
            log.line(f"vae reconstructions: {reconstruct(vae, 24, 9)[0]}")
        if timer.save_is_due() or step == settings.steps:
            save()
    return vae.eval()
