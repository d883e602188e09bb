"""The model through the adapter protocol (`safelight.models.family`), one step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from safelight.config import EngineConfig
from safelight.models import halves
from safelight.models.inputs import image
from safelight.models.loading import dtypes_of, weight_bytes
from safelight.models.prompts import PromptCache
from safelight.parallel.guidance import Guidance
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec
from safelight_dots import model as dots

if TYPE_CHECKING:
    from safelight.models.family import Frames


@dataclass(frozen=True)
class Conditioning:
    """What a picture is made from."""

    positive: torch.Tensor
    """[1, words]"""
    negative: torch.Tensor | None
    """None without guidance."""
    picture: torch.Tensor | None
    """[1, height, width, 3]"""


@dataclass(kw_only=True)
class DotsSession:
    """One picture on its way. Nothing of it is shared with another."""

    spec: SampleSpec
    conditioning: Conditioning
    latents: torch.Tensor
    """The noisy pixels, float32 [1, height, width, 3]."""
    times: torch.Tensor
    index: int = 0

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    @property
    def now(self) -> torch.Tensor:
        return self.times[self.index]

    def advance(self, clean: torch.Tensor) -> None:
        then = self.times[self.index + 1]
        self.latents = dots.euler(self.latents, clean, self.now, then)
        self.index += 1


class Rows:
    """Which rows of a picture this rank computes, and how they come together again."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh, layout = mesh, mesh.layout
        self._axes = {"ulysses": layout.ulysses, "ring": layout.ring}
        self._ranks = layout.sp
        self._index = mesh.index("ring") * layout.ulysses + mesh.index("ulysses")

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """[..., rows, columns, channels]: as many rows on each rank, the last ones in vain."""
        missing = -whole.shape[-3] % self._ranks
        return pad(whole, (0, 0, 0, 0, 0, missing)).chunk(self._ranks, dim=-3)[self._index]

    def whole(self, part: torch.Tensor, rows: int) -> torch.Tensor:
        """All rows, on every rank: neighbours first, then groups of them."""
        for axis, degree in self._axes.items():
            if degree > 1:
                part = torch.cat(self._mesh.gather(part, axis), dim=-3)
        return part[..., :rows, :, :]


class DotsFamily:
    """A loaded model."""

    def __init__(self, model: dots.Dots, mesh: Mesh, dtype: torch.dtype, entries: int) -> None:
        self.model = model
        self.device = mesh.device
        self.dtype = dtype
        self._guidance = Guidance(mesh)
        self._rows = Rows(mesh)
        self._prompts = PromptCache(entries)

    def describe(self) -> str:
        return f"Dots on {self.device}, {self.dtype}"

    def weights(self) -> dict[str, int]:
        return weight_bytes({"model": self.model})

    # -------------------------------------------------------------------------- one sample

    def encode(self, sample: SampleSpec) -> Conditioning:
        sampling, picture = sample.sampling, None
        if sample.inputs.images:
            pixels = image(sample.inputs.images[0])
            picture = dots.to_pixels(pixels, sampling.height, sampling.width).to(self.device)
        guided = sampling.guidance_scale > 1
        return Conditioning(
            positive=self._embed(sample.prompt),
            negative=self._embed(sampling.negative_prompt) if guided else None,
            picture=picture,
        )

    def _embed(self, prompt: str) -> torch.Tensor:
        def compute() -> torch.Tensor:
            return dots.embed(prompt, self.model.words)[None].to(self.device, self.dtype)

        return self._prompts.get(prompt, compute)

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> DotsSession:
        sampling = sample.sampling
        latents = dots.noise(sampling.seed, sampling.height, sampling.width).to(self.device)
        times = dots.times(sampling.num_inference_steps, sampling.strength or 1.0).to(self.device)
        if conditioning.picture is not None:
            latents = dots.mix(conditioning.picture, latents, times[0])
        return DotsSession(spec=sample, conditioning=conditioning, latents=latents, times=times)

    # ---------------------------------------------------------------------------- a batch

    def step(self, batch: Sequence[DotsSession]) -> None:
        """Which halves of the guidance there are, and on which rank, `halves` knows."""
        scales = [session.spec.sampling.guidance_scale for session in batch]
        halves.step(self._guidance, self._forward, batch, scales)

    def _forward(
        self, context: str, sessions: Sequence[DotsSession], texts: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """One forward with a row for each session and its text: [rows, height, width, 3]."""
        pixels = torch.cat([session.latents for session in sessions])
        height, width = pixels.shape[1:3]
        made = self.model(
            self._rows.part(pixels).to(self.dtype),
            self._rows.part(dots.places(height, width)).to(self.device, self.dtype),
            torch.stack([session.now for session in sessions]).to(self.dtype),
            torch.cat(list(texts)),
        )
        return self._rows.whole(made, height).float()

    def decodes_together(self, sessions: Sequence[DotsSession]) -> bool:
        return False

    def decode(self, sessions: Sequence[DotsSession]) -> Sequence[Frames]:
        return [dots.to_bytes(session.latents) for session in sessions]


def load(directory: Path, config: EngineConfig, mesh: Mesh) -> DotsFamily:
    """Every rank has the whole model, on its own device and in the precision that was asked for."""
    dtype = dtypes_of(config.model, mesh.device)["transformer"]
    model = dots.read(directory / "model").to(mesh.device, dtype)
    return DotsFamily(model, mesh, dtype, config.model.prompt_cache_entries)
