"""The world the built-in model is trained on: one drawn shape on a plain background.

A :class:`Scene` names a colour, a shape, a motion and a background. Scenes are
drawn analytically (signed distances, one pixel of anti-aliasing), so the data is
unlimited, free of any third party's rights, and an exact label comes with it.

One sixth of the (colour, shape, motion) triples is never trained on: these
*held-out* combinations are what :mod:`.evaluate` asks for.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

import torch
from torch import Tensor

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 35),
    "green": (40, 185, 60),
    "blue": (45, 75, 235),
    "yellow": (240, 220, 40),
    "purple": (165, 45, 215),
    "cyan": (40, 215, 225),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (10, 10, 10),
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle")
MOTIONS: tuple[str, ...] = ("still", "left", "right", "up", "down")

COLOR_NAMES = tuple(COLORS)
BACKGROUND_NAMES = tuple(BACKGROUNDS)
COLOR_TABLE = torch.tensor(list(COLORS.values()), dtype=torch.float32)
BACKGROUND_TABLE = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32)
DIRECTIONS = torch.tensor([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], dtype=torch.float32)

SIZE = 64
MAX_FRAMES = 13
SPEED = 2.5  # pixels a frame
CENTRE_FRAME = 5  # a moving shape is near the middle of the picture at this frame

PHRASES: tuple[tuple[str, ...], ...] = (
    ("standing still", "staying still", "not moving"),
    ("moving left", "moving to the left", "going left"),
    ("moving right", "moving to the right", "going right"),
    ("moving up", "moving upwards", "going up"),
    ("moving down", "moving downwards", "going down"),
)


class Scene(NamedTuple):
    """What a clip shows; every field is an index into the tables of this module."""

    color: int
    shape: int
    motion: int
    background: int


def is_held_out(color: int, shape: int, motion: int) -> bool:
    """Whether a triple is kept out of training (with every background)."""
    return (color + 2 * shape + motion) % 6 == 0


_TRIPLES = [
    (color, shape, motion)
    for color in range(len(COLORS))
    for shape in range(len(SHAPES))
    for motion in range(len(MOTIONS))
]
TRAIN_COMBINATIONS = [triple for triple in _TRIPLES if not is_held_out(*triple)]
HELD_OUT_COMBINATIONS = [triple for triple in _TRIPLES if is_held_out(*triple)]


def sample_scenes(count: int, rng: random.Random, held_out: bool = False) -> list[Scene]:
    """Draw scenes from the training combinations, or from the held-out ones."""
    triples = HELD_OUT_COMBINATIONS if held_out else TRAIN_COMBINATIONS
    return [Scene(*rng.choice(triples), rng.randrange(len(BACKGROUNDS))) for _ in range(count)]


def all_held_out_scenes() -> list[Scene]:
    """Every held-out triple on every background, each once."""
    backgrounds = range(len(BACKGROUNDS))
    return [
        Scene(*triple, background) for triple in HELD_OUT_COMBINATIONS for background in backgrounds
    ]


# ---------------------------------------------------------------------------- drawing


def signed_distances(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Distances in pixels to the edge of each shape (negative inside), stacked first.

    The three shapes of one ``radius`` have about the same area.
    """
    circle = torch.sqrt(x * x + y * y) - radius
    square = torch.maximum(x.abs(), y.abs()) - 0.886 * radius
    lowered = y - 0.2 * radius  # so that the triangle's middle looks centred
    sides = 0.8660254 * x.abs() - 0.5 * lowered
    triangle = torch.maximum(lowered, sides) - 0.66 * radius
    return torch.stack((circle, square, triangle))


def pixel_grid(size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Coordinates (x, y) of the pixel centres."""
    centres = torch.arange(size, dtype=torch.float32) + 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return x, y


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _draw(scenes: list[Scene], position: Tensor, radius: Tensor, jitter: Tensor) -> Tensor:
    """Paint the scenes; ``position`` is [n, frames, 2], ``jitter`` [2, n, 3] of colour."""
    count = len(scenes)
    x, y = pixel_grid()
    distance = signed_distances(
        x - position[..., 0, None, None],
        y - position[..., 1, None, None],
        radius[:, None, None, None],
    )
    labels = torch.tensor(scenes)
    distance = distance[labels[:, 1], torch.arange(count)]
    cover = (0.5 - distance).clamp(0, 1)[:, None]
    color = (COLOR_TABLE[labels[:, 0]] + jitter[0]).view(count, 3, 1, 1, 1)
    background = (BACKGROUND_TABLE[labels[:, 3]] + jitter[1]).view(count, 3, 1, 1, 1)
    return (background + (color - background) * cover) / 127.5 - 1


def render(scenes: list[Scene], frames: int, generator: torch.Generator) -> Tensor:
    """Draw clips of the scenes: float [n, 3, frames, 64, 64] in [-1, 1].

    Position and radius are drawn at random; the first frames of a longer clip
    are distributed like a shorter clip's.
    """
    count = len(scenes)
    radius = _uniform(13, 18, (count,), generator)
    direction = DIRECTIONS[torch.tensor(scenes)[:, 2]]
    offset = _uniform(-1, 1, (count, 2), generator)
    offset = offset * torch.where((direction == 0), 8.0, 2.0)
    time = torch.arange(frames, dtype=torch.float32)[None, :, None] - CENTRE_FRAME
    position = SIZE / 2 + offset[:, None] + direction[:, None] * SPEED * time
    return _draw(scenes, position, radius, torch.zeros(2, count, 3))


def render_wild(scenes: list[Scene], frames: int, generator: torch.Generator) -> Tensor:
    """Like :func:`render`, with any position, velocity, radius and a little colour
    noise: training the VAE on these too keeps it from memorising the world."""
    count = len(scenes)
    radius = _uniform(11, 21, (count,), generator)
    start = _uniform(10, SIZE - 10, (count, 1, 2), generator)
    moving = torch.rand((count, 1, 2), generator=generator) < 0.6
    velocity = _uniform(-4.5, 4.5, (count, 1, 2), generator) * moving
    time = torch.arange(frames, dtype=torch.float32)[None, :, None]
    position = (start + velocity * time).clamp(4, SIZE - 4)
    jitter = 4 * torch.randn((2, count, 3), generator=generator)
    return _draw(scenes, position, radius, jitter)


# --------------------------------------------------------------------------- captions


def canonical_caption(scene: Scene) -> str:
    """The one standard caption of a scene."""
    return (
        f"a {COLOR_NAMES[scene.color]} {SHAPES[scene.shape]} {PHRASES[scene.motion][0]}"
        f" on a {BACKGROUND_NAMES[scene.background]} background"
    )


def caption(scene: Scene, rng: random.Random) -> str:
    """A caption in one of several wordings; half of the time the standard one."""
    if rng.random() < 0.5:
        return canonical_caption(scene)
    return paraphrase(scene, rng)


def paraphrase(scene: Scene, rng: random.Random) -> str:
    """A caption in a randomly chosen wording."""
    name = BACKGROUND_NAMES[scene.background]
    subject = rng.choice(("a ", "the ", "")) + f"{COLOR_NAMES[scene.color]} {SHAPES[scene.shape]}"
    motion = rng.choice(PHRASES[scene.motion])
    background = rng.choice((f"on a {name} background", f"on {name}", f"{name} background"))
    return rng.choice(
        (
            f"{subject} {motion} {background}",
            f"{subject} {background} {motion}",
            f"{subject} is {motion} {background}",
        )
    )


def _words() -> list[str]:
    words = {"a", "the", "is", "on", "background"}
    words.update(COLORS, BACKGROUNDS, SHAPES)
    for phrases in PHRASES:
        for phrase in phrases:
            words.update(phrase.split())
    return sorted(words)


PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
VOCABULARY: dict[str, int] = {
    word: index for index, word in enumerate((PAD, END, UNKNOWN, *_words(), ".", ","))
}


def tokenize(text: str) -> list[int]:
    """Token ids of a caption, exactly as the exported tokenizer makes them."""
    words = re.findall(r"\w+|[^\w\s]+", text.lower())
    unknown = VOCABULARY[UNKNOWN]
    return [VOCABULARY.get(word, unknown) for word in words] + [VOCABULARY[END]]
