"""The adapter protocol: what a family implements so that its model can be served in steps.

Three kinds of state are never mixed: the immutable request (`SampleSpec`), the session (tensors of
one sample, on the device) and the conditioning (private to the family).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from safelight.request import Adapter, SampleSpec

if TYPE_CHECKING:
    import numpy as np
    import torch

    Frames = np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]
    """uint8 [T, H, W, 3]"""


@dataclass(frozen=True)
class Clip:
    """Frames with sound."""

    frames: Frames
    sound: np.ndarray[Any, np.dtype[np.float32]]
    """float32 [samples, channels] in [-1, 1]"""
    sample_rate: int
    """Hz"""


class Session(Protocol):
    """One sample between its encode and its release."""

    spec: SampleSpec
    index: int
    """Denoising steps done."""
    latents: torch.Tensor
    estimate: torch.Tensor | None
    """What `latents` will become, as the last step had it, if a preview is due; see `Denoising`."""

    @property
    def steps(self) -> int:
        """Denoising steps in all; not always `num_inference_steps`: some samplers take more, and an
        input image that is changed in part takes fewer."""
        ...


class Lora(Protocol):
    """The adapters of a loaded model; see `safelight.lora.adapters.Adapters`."""

    def wear(self, adapters: Sequence[Adapter], *, merged: bool = False) -> None:
        """From now on these are in force, and no others."""
        ...

    def load(self, adapter: Adapter) -> Mapping[str, int]:
        """Load one; the layers it changes, by component."""
        ...

    def forget_merged(self) -> None:
        """No sample has merged adapters: what was made for them is not needed."""
        ...

    def drop(self, digest: str) -> None:
        """Forget one."""
        ...


class Family(Protocol):
    """A loaded model. All methods run under `torch.inference_mode`, on the rank's device."""

    @property
    def lora(self) -> Lora:
        """Asked for only when a sample has adapters."""
        ...

    def describe(self) -> str:
        """Device and precision, for people."""
        ...

    def encode(self, sample: SampleSpec) -> Any:
        """Conditioning of `sample` (prompts to embeddings), cached by content hash."""
        ...

    def begin(self, sample: SampleSpec, conditioning: Any) -> Session:
        """Starting noise, timesteps and the sample's own copy of the sampler."""
        ...

    def step(self, batch: Sequence[Any]) -> None:
        """ONE denoising step for every session of `batch`, which may be at different steps.

        A batch of one gives the bits of the diffusers pipeline. The sessions have equal batch keys;
        where they still cannot share one forward (two experts), it is several forwards.
        """
        ...

    def decodes_together(self, sessions: Sequence[Any]) -> bool:
        """Whether `decode` of these splits the work over the ranks: then all must call it.

        Otherwise one rank does it alone.
        """
        ...

    def decode(self, sessions: Sequence[Any]) -> Sequence[Frames | Clip]:
        """Finished latents to frames, one array a session; on ranks beyond the first, anything."""
        ...

    def preview(self, session: Any) -> Frames:
        """One frame of what a session's `estimate` shows, cheaply. Called on the first rank alone,
        only for sessions that have an estimate."""
        ...

    def weights(self) -> dict[str, int]:
        """Bytes of weights on this rank, by component."""
        ...
