"""The model, as its authors would publish it: it knows nothing of Safelight.

A flow model in pixel space that paints a dot on the paper it finds. One small network looks at one
pixel at a time: at its noisy colour, its place, the time and the prompt. It says which colour the
pixel has in the finished picture.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn


class Dots(nn.Module):
    """`words`: size of the prompt's embedding; `width`: of the hidden layers."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.words = words
        self.layers = nn.Sequential(
            nn.Linear(3 + 3 + 1 + words, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 3),
        )

    def forward(
        self, pixels: torch.Tensor, places: torch.Tensor, time: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        """The finished pixels of a batch of pictures, each at its own time.

        `pixels` [n, rows, columns, 3], `places` [rows, columns, 3] of those pixels, `time` [n],
        `text` [n, words] -> [n, rows, columns, 3].
        """
        count, rows, columns, _ = pixels.shape
        known = torch.cat([time[:, None], text], dim=1)[:, None, None]
        inputs = (
            pixels,
            places.expand(count, -1, -1, -1),
            known.expand(-1, rows, columns, -1),
        )
        made: torch.Tensor = self.layers(torch.cat(inputs, dim=-1))
        return made


def read(directory: Path) -> Dots:
    """The model of a directory that `make` wrote."""
    model = Dots(**json.loads((directory / "config.json").read_text("utf-8")))
    model.load_state_dict(load_file(directory / "model.safetensors"))
    return model.eval()


# ------------------------------------------------------------------------------------- its inputs


def embed(prompt: str, size: int) -> torch.Tensor:
    """[size]: the sum of a random code for each word, its hash; there is no vocabulary."""
    total = torch.zeros(size)
    for word in prompt.lower().split():
        bits = int.from_bytes(hashlib.sha256(word.encode()).digest())
        total += torch.tensor([2.0 * (bits >> place & 1) - 1 for place in range(size)])
    return total


def places(height: int, width: int) -> torch.Tensor:
    """[height, width, 3]: y and x in (-1, 1) of every pixel's centre, and the square of its
    distance from the middle."""
    y, x = (2 * (torch.arange(side) + 0.5) / side - 1 for side in (height, width))
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([y, x, y * y + x * x], dim=-1)


def times(steps: int, strength: float = 1.0) -> torch.Tensor:
    """From 1, all noise, to 0, the picture; a lower `strength` begins later."""
    return torch.linspace(1, 0, steps + 1)[int(steps - steps * strength) :]


def noise(seed: int, height: int, width: int) -> torch.Tensor:
    """[1, height, width, 3]; the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, height, width, 3), generator=generator)


def to_pixels(image: Image.Image, height: int, width: int) -> torch.Tensor:
    """[1, height, width, 3] in [-1, 1]."""
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(resized, np.float32))[None] / 127.5 - 1


def to_bytes(pixels: torch.Tensor) -> np.ndarray:
    """uint8 of the same shape."""
    bytes_ = (pixels.float().clamp(-1, 1) + 1) * 127.5
    return bytes_.round().to(torch.uint8).cpu().numpy()


# ----------------------------------------------------------------------------------- the sampler


def mix(clean: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """A picture as it is at `time`."""
    return clean + time * (noise - clean)


def euler(
    pixels: torch.Tensor, clean: torch.Tensor, now: torch.Tensor, then: torch.Tensor
) -> torch.Tensor:
    """One step along the straight line to what is predicted."""
    return clean + then / now * (pixels - clean)


@torch.inference_mode()
def generate(
    model: Dots,
    prompt: str,
    *,
    negative_prompt: str = "",
    image: Image.Image | None = None,
    strength: float = 1.0,
    width: int = 64,
    height: int = 64,
    steps: int = 8,
    guidance_scale: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """A picture, uint8 [height, width, 3]: the loop that Safelight takes apart."""
    where, schedule = places(height, width), times(steps, strength)
    positive, negative = (embed(text, model.words)[None] for text in (prompt, negative_prompt))
    pixels = noise(seed, height, width)
    if image is not None:
        pixels = mix(to_pixels(image, height, width), pixels, schedule[0])
    for now, then in itertools.pairwise(schedule):
        clean = model(pixels, where, now[None], positive)
        if guidance_scale > 1:
            base = model(pixels, where, now[None], negative)
            clean = base + guidance_scale * (clean - base)
        pixels = euler(pixels, clean, now, then)
    return to_bytes(pixels)[0]
