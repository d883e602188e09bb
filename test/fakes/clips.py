"""Samples as real videos, by the real encoder."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fakes.shared_memory import clip, in_memory
from safelight.output import video
from safelight.output.frames import open_frames
from safelight.request import SampleSpec


def pixels(spec: SampleSpec) -> NDArray[np.uint8]:
    """Its frames, uint8 [T, H, W, 3]: a moving gradient, which begins where its seed says and,
    where there is one, with its input picture."""
    sampling = spec.sampling
    shift = sampling.seed % 7
    frames = clip(sampling.num_frames + shift, sampling.height, sampling.width)[shift:]
    if spec.inputs.images:
        shape = (sampling.height, sampling.width, 3)
        frames[0] = np.fromfile(spec.inputs.images[0].path, np.uint8).reshape(shape)
    return frames


def made(spec: SampleSpec) -> bytes:
    """An MP4, as the output manager would write it."""
    frames, delivery = pixels(spec), spec.delivery
    count, height, width, channels = frames.shape
    with (
        tempfile.NamedTemporaryFile(suffix=".mp4") as file,
        in_memory(frames) as memory,
        open_frames(memory, (count, height, width, channels)) as opened,
    ):
        video.Encoder().encode(
            opened,
            Path(file.name),
            fps=delivery.fps,
            compression=delivery.compression,
            after=delivery.continues,
        )
        return Path(file.name).read_bytes()
