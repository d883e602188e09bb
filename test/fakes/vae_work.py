"""Work on VAEs for `fakes.ranks`, and the table of how far a split VAE is from a whole one."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from fakes import vaes_zoo
from safelight.parallel import vaes
from safelight.parallel.layout import Layout
from safelight.parallel.mesh import Mesh
from safelight.parallel.vae import ParallelVae

if TYPE_CHECKING:
    pass

CPU = torch.device("cpu")
COLUMNS = 3
"""Latent columns: few, as only rows are split; odd, as nothing may depend on that."""
LATENT_FRAMES = 2
FRAMES = 9
"""What every video VAE takes: one more than a multiple of 8."""

_meshes: dict[Layout, Mesh] = {}


def mesh_of(layout: Layout) -> Mesh:
    """This rank's mesh of that layout; made once, as its groups live as long as the process."""
    if layout not in _meshes:
        _meshes[layout] = Mesh.create(layout, CPU)
    _meshes[layout].traffic.take()
    return _meshes[layout]


def parallel(name: str, mode: str = "on") -> tuple[ParallelVae, Mesh]:
    """A VAE of the zoo over all ranks."""
    mesh = mesh_of(Layout(ulysses=dist.get_world_size()))
    return ParallelVae(vaes_zoo.build(name), mesh, mode), mesh


def latents(vae: Any, rows: int, samples: int = 1) -> torch.Tensor:
    """Normal latents that fit `vae`, the same on every rank."""
    config = vae.config
    channels = config["z_dim"] if "z_dim" in config else config["latent_channels"]
    frames = [] if vaes_zoo.is_flat(vae) else [LATENT_FRAMES]
    generator = torch.Generator().manual_seed(rows)
    return torch.randn((samples, channels, *frames, rows, COLUMNS), generator=generator)


def pixels(vae: Any, rows: int, samples: int = 1) -> torch.Tensor:
    """Normal pixels of so many latent rows, the same on every rank."""
    scale = vaes.compression({**vae.config, "_class_name": type(vae).__name__})
    frames = [] if vaes_zoo.is_flat(vae) else [FRAMES]
    generator = torch.Generator().manual_seed(rows)
    return torch.randn((samples, 3, *frames, rows * scale, COLUMNS * scale), generator=generator)


@dataclass(frozen=True)
class Parity:
    """How a split result compares to that of a VAE of its own that nobody split."""

    delta: float
    """Largest absolute difference."""
    magnitude: float
    """Largest absolute value of the whole VAE's result."""
    digest: int
    """Of the bits."""
    messages: int
    """Collectives it took."""


def compare(ours: torch.Tensor, reference: torch.Tensor, messages: int) -> Parity:
    assert ours.shape == reference.shape
    return Parity(
        float((ours - reference).abs().max()),
        float(reference.abs().max()),
        zlib.crc32(ours.contiguous().numpy().tobytes()),
        messages,
    )


@torch.inference_mode()
def decode_parity(rank: int, name: str, cases: list[tuple[int, int]]) -> list[Parity]:
    """For every (rows, samples)."""
    reference = vaes_zoo.build(name)
    ours, mesh = parallel(name)
    found = []
    for rows, samples in cases:
        x = latents(reference, rows, samples)
        before = mesh.traffic.collectives
        y = ours.decode(x)
        whole = reference.decode(x, return_dict=False)[0]
        found.append(compare(y, whole, mesh.traffic.collectives - before))
    return found


@torch.inference_mode()
def encode_parity(rank: int, name: str, cases: list[tuple[int, int]]) -> list[Parity]:
    """For every (rows, samples); of the distribution's parameters."""
    reference = vaes_zoo.build(name)
    ours, mesh = parallel(name)
    found = []
    for rows, samples in cases:
        x = pixels(reference, rows, samples)
        before = mesh.traffic.collectives
        y = ours.encode(x).latent_dist.parameters
        whole = reference.encode(x).latent_dist.parameters
        found.append(compare(y, whole, mesh.traffic.collectives - before))
    return found
