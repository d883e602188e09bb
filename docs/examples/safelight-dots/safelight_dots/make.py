"""Trains the model, in seconds: `python -m safelight_dots.make DIRECTORY`.

What it writes is all that Safelight needs of a model with its own code: a `safelight.json` that
names the family, and weights in safetensors that the family knows how to read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import mse_loss

from safelight_dots.model import Dots, embed, mix

COLOURS = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "yellow": (1, 1, -1)}
RADIUS = 0.5  # of half a side
CONFIG = {"words": 32, "width": 64}
UNCONDITIONAL = 0.1


def examples(count: int, draw: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Pixels of dots on paper of any colour: (clean, places, text), `count` each."""
    names, colours = list(COLOURS), torch.tensor(list(COLOURS.values()), dtype=torch.float)
    texts = torch.stack([embed(f"a {name} dot", CONFIG["words"]) for name in names])
    which = torch.randint(len(names), (count,), generator=draw)
    where = 2 * torch.rand((count, 2), generator=draw) - 1
    distance = where.square().sum(1, keepdim=True)
    paper = 2 * torch.rand((count, 3), generator=draw) - 1
    said = torch.rand((count, 1), generator=draw) > UNCONDITIONAL
    clean = torch.where(distance < RADIUS**2, colours[which], paper)
    return clean, torch.cat([where, distance], dim=1), texts[which] * said


def train(steps: int = 500, batch: int = 512) -> Dots:
    torch.manual_seed(0)
    draw, model = torch.Generator().manual_seed(0), Dots(**CONFIG)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        clean, where, text = examples(batch, draw)
        time = torch.rand((batch, 1), generator=draw)
        noisy = mix(clean, torch.randn(clean.shape, generator=draw), time)
        inputs = torch.cat([noisy, where, time, text], dim=1)
        loss = mse_loss(model.layers(inputs), clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    return model


def write(model: Dots, directory: Path) -> None:
    folder = directory / "model"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    (directory / "safelight.json").write_text(json.dumps({"family": "dots"}), "utf-8")


if __name__ == "__main__":
    write(train(), Path(sys.argv[1]))
