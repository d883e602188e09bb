"""Work on VAEs for `fakes.ranks`, and the table of how far a split VAE is from a whole one."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from distvae.models.layers.conv_mixin import PatchConvMixin
from distvae.vae import parallelize_decoder, parallelize_encoder

from fakes import vaes_zoo
from safelight.errors import ConfigError
from safelight.parallel import vaes
from safelight.parallel.layout import Layout
from safelight.parallel.mesh import Mesh
from safelight.parallel.vae import ONE_BY_ONE, WITH_FEATURE_CACHE, ParallelVae, facts_of

if TYPE_CHECKING:
    from fakes.ranks import RankPool

CPU = torch.device("cpu")
COLUMNS = 3
"""Latent columns: few, as only rows are split; odd, as nothing may depend on that."""
LATENT_FRAMES = 2

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
    scale = vaes.compression(facts_of(vae))
    frames = [] if vaes_zoo.is_flat(vae) else [vaes_zoo.frames(vae)]
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


def untouched(name: str) -> Any:
    """A VAE nobody split."""
    vae = vaes_zoo.build(name)
    if isinstance(vae, ONE_BY_ONE):
        vae.enable_slicing()
    return vae


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
    reference = untouched(name)
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
    reference = untouched(name)
    ours, mesh = parallel(name)
    found = []
    for rows, samples in cases:
        x = pixels(reference, rows, samples)
        before = mesh.traffic.collectives
        y = ours.encode(x).latent_dist.parameters
        whole = reference.encode(x).latent_dist.parameters
        found.append(compare(y, whole, mesh.traffic.collectives - before))
    return found


@torch.inference_mode()
def alternate(rank: int, name: str) -> list[tuple[bool, bool]]:
    """Whole, split, whole, split, with latents of two sizes: (whole has the bits of a VAE nobody
    split, split has those of its first time)."""
    reference = untouched(name)
    ours, _ = parallel(name)
    inputs = [latents(reference, rows) for rows in (5, 7)]
    first = [ours.decode(x) for x in inputs]
    return [
        (
            torch.equal(ours.whole.decode(x).sample, reference.decode(x).sample),
            torch.equal(ours.decode(x), before),
        )
        for x, before in zip(inputs, first, strict=True)
    ]


@dataclass(frozen=True)
class Weights:
    """Bytes of parameters and buffers."""

    alone: int
    """Of a VAE nobody split."""
    both: int
    """Of the whole and the split one, shared storage counted once."""
    follows: bool
    """Whether the split one has the precision that the whole one is cast to."""


def weights(rank: int, name: str) -> Weights:
    reference = untouched(name)
    ours, _ = parallel(name)
    alone, both = storage_bytes(reference), storage_bytes(ours.whole, ours.split)
    for parameter in ours.whole.parameters():  # as `to` does, which warns of what is not so here
        parameter.data = parameter.data.double()
    return Weights(alone, both, all(p.dtype == torch.float64 for p in ours.split.parameters()))


def storage_bytes(*modules: torch.nn.Module) -> int:
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def decisions(rank: int, name: str, mode: str, sizes: list[tuple[int, int]]) -> list[bool]:
    """Whether latents of so many rows and columns are decoded together."""
    ours, _ = parallel(name, mode)
    return [ours.splits_decode((1, 4, *size)) for size in sizes]


def batch_decisions(rank: int, name: str) -> list[bool]:
    """One sample a little too small, and two of it: latents, then pixels."""
    ours, _ = parallel(name, "auto")
    decodes = [ours.splits_decode((samples, 4, 63, 64)) for samples in (1, 2)]
    return decodes + [ours.splits_encode((samples, 3, 252, 256)) for samples in (1, 2)]


def encode_decisions(rank: int, name: str, mode: str, sizes: list[tuple[int, int]]) -> list[bool]:
    """Whether pixels of such height and width are encoded together."""
    ours, _ = parallel(name, mode)
    return [ours.splits_encode((1, 3, *size)) for size in sizes]


def refusal(rank: int, name: str) -> str:
    """What `--vae-parallel on` is answered."""
    try:
        parallel(name)
    except ConfigError as refused:
        return str(refused)
    return ""


@torch.inference_mode()
def alone(rank: int, name: str, mode: str, rows: int) -> tuple[bool, int]:
    """Rank 0 decodes and encodes while the others do something else: (bits of diffusers,
    collectives)."""
    reference = untouched(name)
    ours, mesh = parallel(name, mode)
    before = mesh.traffic.collectives
    same = True
    if rank == 0:
        x, y = latents(reference, rows), pixels(reference, rows)
        same = torch.equal(ours.decode(x), reference.decode(x).sample) and torch.equal(
            ours.encode(y).latent_dist.parameters, reference.encode(y).latent_dist.parameters
        )
    return same, mesh.traffic.collectives - before


@torch.inference_mode()
def fail_midway(rank: int, name: str) -> tuple[str, int, bool]:
    """A decode that fails on every rank after many messages: (what was raised, tensors that are
    kept, whether the next decode has the usual bits)."""
    ours, mesh = parallel(name)
    x = latents(ours.whole, 5)
    usual = ours.decode(x)

    def fail(*_: Any) -> None:
        raise ArithmeticError("as told")

    hook = ours.split.decoder.decoder.up_blocks[-1].register_forward_hook(fail)
    try:
        with mesh.together():
            ours.decode(x)
        raised = ""
    except ArithmeticError as failure:
        raised = str(failure)
    finally:
        hook.remove()
    kept = kept_rows(ours.split) + kept_features(ours.split)
    return raised, kept, torch.equal(ours.decode(x), usual)


@torch.inference_mode()
def wrong_channels(rank: int, name: str) -> tuple[str, int]:
    """What is raised for latents of a channel too many, and the collectives before that."""
    ours, mesh = parallel(name)
    before = mesh.traffic.collectives
    x = latents(ours.whole, 4)
    try:
        ours.decode(torch.cat([x, x[:, :1]], dim=1))
    except RuntimeError as failure:
        return str(failure), mesh.traffic.collectives - before
    return "", 0


@torch.inference_mode()
def with_timestep(rank: int) -> tuple[float, float]:
    """Distance from the whole VAE's result with the same timestep, and with another."""
    ours, _ = parallel("AutoencoderKLLTX2Video (timestep)")
    x = latents(ours.whole, 5)
    result = ours.decode(x, temb=torch.tensor([0.05]))
    same, other = (ours.whole.decode(x, temb=torch.tensor([t])).sample for t in (0.05, 0.9))
    return float((result - same).abs().max()), float((result - other).abs().max())


def kept_features(vae: Any) -> int:
    """Features that are kept for the next frame."""
    caches = [vae._feat_map, vae._enc_feat_map] if isinstance(vae, WITH_FEATURE_CACHE) else []
    return sum(entry is not None for cache in caches for entry in cache)


def kept_rows(vae: torch.nn.Module) -> int:
    """Buffers that convolutions keep of what neighbours sent."""
    return sum(len(m.halo_buffer) for m in vae.modules() if isinstance(m, PatchConvMixin))


def traffic(rank: int, rows: int, samples: int) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes counted for a decode of AutoencoderKL, and those its layers' shapes add up to."""
    ours, mesh = parallel("AutoencoderKL")
    x = latents(ours.whole, rows, samples)
    assert not ours.decode(x).requires_grad  # although nobody said that none is needed
    return mesh.traffic.take(), expected_traffic(rank, mesh.layout.group_size, x)


def expected_traffic(rank: int, ranks: int, x: torch.Tensor) -> dict[str, int]:
    """From the inputs that an unsplit decoder's layers see behind the middle block."""
    vae = vaes_zoo.build("AutoencoderKL")
    neighbours = 1 if rank in (0, ranks - 1) else 2
    sent = {"vae.send": 0, "vae.all_reduce": 0, "vae.all_gather": 0}

    def reduced(count: int) -> int:
        return 2 * 4 * count * (ranks - 1) // ranks

    def see(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        batch, channels, _, columns = inputs[0].shape
        if isinstance(layer, torch.nn.GroupNorm):  # sums with the row count, then squares
            sums = batch * layer.num_groups
            sent["vae.all_reduce"] += reduced(sums + 1) + reduced(sums)
        elif layer.kernel_size == (3, 3):  # a row to every neighbour
            sent["vae.send"] += 4 * batch * channels * columns * neighbours

    decoder = vae.decoder
    for part in (decoder.up_blocks, decoder.conv_norm_out, decoder.conv_out):
        for layer in part.modules():
            if isinstance(layer, torch.nn.GroupNorm | torch.nn.Conv2d):
                layer.register_forward_pre_hook(see)
    image = vae.decode(x).sample
    widest = -(-x.shape[-2] // ranks) * image.shape[-2] // x.shape[-2]
    part = image[:, :, :1].numel() * widest * 4
    sent["vae.all_gather"] = (part + 8) * (ranks - 1)  # and the number of rows, an int64
    return sent


@torch.inference_mode()
def pairs(rank: int, name: str) -> Parity:
    """Four ranks, two and two, every pair with latents of its own."""
    mesh = mesh_of(Layout(cfg=2, ulysses=2))
    ours = ParallelVae(vaes_zoo.build(name), mesh, "on", mesh.group("ulysses"))
    x = latents(ours.whole, 2 + mesh.index("cfg"))
    before = mesh.traffic.collectives
    y = ours.decode(x)
    return compare(y, ours.whole.decode(x).sample, mesh.traffic.collectives - before)


@torch.inference_mode()
def half_precision(rank: int, name: str) -> tuple[float, float]:
    """Mean distance in float16 from the float32 result: of the whole VAE and of the split one."""
    exact = vaes_zoo.build(name)
    ours, _ = parallel(name)
    for parameter in ours.whole.parameters():
        parameter.data = parameter.data.half()
    x = latents(exact, 8)
    result = exact.decode(x).sample
    whole, split = ours.whole.decode(x.half()).sample, ours.decode(x.half())
    return float((whole - result).abs().mean()), float((split - result).abs().mean())


@dataclass(frozen=True)
class Upstream:
    """What DistVAE itself makes of a VAE."""

    decoder_factor: int
    """Latent rows of which every band is a multiple."""
    encoder_factor: int
    kept: int
    """Received rows that are kept after a decode."""


@torch.inference_mode()
def upstream(rank: int, name: str) -> Upstream:
    vae = vaes_zoo.build(name)
    parallelize_decoder(vae, None)
    parallelize_encoder(vae, None)
    vae.decode(latents(vae, 8 * dist.get_world_size()))
    return Upstream(
        vae.decoder.patchify.scale_factor, vae.encoder.patchify.scale_factor, kept_rows(vae)
    )


@dataclass(frozen=True)
class Row:
    """A line of the table of parities."""

    vae: str
    operation: str
    """decode or encode."""
    ranks: int
    delta: float | None
    """Largest absolute difference, float32; None if it is not split."""
    magnitude: float | None
    """Largest absolute value of the whole VAE's result."""
    reason: str
    """Why it is not split; empty if it is."""


def table(pools: dict[int, RankPool]) -> list[Row]:
    """Every VAE of the zoo, split by every pool, worst of all row counts; by number of ranks."""
    rows = []
    for name in vaes_zoo.ZOO:
        reason = vaes.why_whole(facts_of(vaes_zoo.build(name)))
        for operation, work in (("decode", decode_parity), ("encode", encode_parity)):
            for ranks, pool in pools.items():
                if reason:
                    rows.append(Row(name, operation, ranks, None, None, reason))
                    continue
                found = pool.run(work, name, cases(ranks))[0]
                delta, magnitude = max(p.delta for p in found), max(p.magnitude for p in found)
                rows.append(Row(name, operation, ranks, delta, magnitude, ""))
    return rows


def cases(ranks: int) -> list[tuple[int, int]]:
    """(latent rows, samples): a row a rank, an odd number for two samples, one more than even."""
    return [(ranks, 1), (2 * ranks - 1, 2), (2 * ranks + 1, 1)]
