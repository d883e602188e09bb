"""What a job is: its sampling parameters, its request, its samples and their states.

`Sampling` is the one declaration of every sampling parameter: the command line, the config file,
the native and OpenAI HTTP bodies and the wire all derive from it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from safelight.errors import IllegalTransition

ImageFormat = Literal["png", "jpeg", "webp"]
MediaFormat = Literal["png", "jpeg", "webp", "mp4"]
Task = Literal["text-to-video", "text-to-image"]

MAX_PROMPT = 32_000  # characters; the OpenAI limit
MAX_SEED = 2**63 - 1


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every sampling parameter, resolved: nothing is left for a rank to guess.

    What a user leaves out comes from the model's card (`ModelCard.resolve`).
    """

    width: Annotated[int, Meta(ge=8, le=8192, description="Width of the output in pixels.")]
    height: Annotated[int, Meta(ge=8, le=8192, description="Height of the output in pixels.")]
    num_frames: Annotated[
        int, Meta(ge=1, le=4096, description="Frames to generate; 1 makes a still picture.")
    ]
    fps: Annotated[int, Meta(ge=1, le=240, description="Frames per second of the saved video.")]
    num_inference_steps: Annotated[
        int, Meta(ge=1, le=1000, description="Number of denoising steps.")
    ]
    guidance_scale: Annotated[
        float,
        Meta(
            ge=0,
            le=100,
            description="Classifier-free guidance: how closely to follow the prompt; "
            "1 or less turns it off.",
        ),
    ]
    max_sequence_length: Annotated[
        int, Meta(ge=1, le=4096, description="Prompt tokens kept; a longer prompt is cut.")
    ]
    negative_prompt: Annotated[
        str, Meta(max_length=MAX_PROMPT, description="What the output should not show.")
    ] = ""
    seed: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_SEED,
            description="Seed of the starting noise; random when left out, always reported.",
        ),
    ] = 0


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """How and where one sample's frames become a file. Ranks carry it and never read it."""

    path: str
    """Absolute path of the finished file."""
    format: MediaFormat
    fps: int
    compression: int
    """0 to 100; quality for jpeg and webp, ignored elsewhere."""
    parameters: dict[str, str]
    """Embedded in PNG text chunks; empty when switched off."""


class SampleSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One output of a job, as the scheduler and the ranks see it."""

    id: str
    """`<job id>.<index>`; unique for ever."""
    attempt: int
    prompt: str
    sampling: Sampling
    priority: int
    batch_key: str
    """Samples with equal keys may share a forward."""
    tokens: int
    """Transformer tokens of one forward of this sample alone; the unit of the cost model."""
    delivery: Delivery


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it was accepted. Immutable; what the job store keeps."""

    id: str
    task: Task
    model: str
    prompt: str
    sampling: Sampling
    n: int = 1
    priority: int = 0
    format: MediaFormat = "mp4"
    compression: int = 95
    created_at: float
    """Unix seconds."""
    extra: dict[str, Any] = {}
    """What the HTTP dialect must echo (for example `user`); the engine does not read it."""

    def seed_of(self, index: int) -> int:
        """Seed of sample `index`: `seed`, `seed + 1`, …"""
        return (self.sampling.seed + index) % (MAX_SEED + 1)


# --------------------------------------------------------------------------------------- states


class State(enum.StrEnum):
    """States of a sample. The last three are final."""

    QUEUED = "queued"
    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"
    WRITING = "writing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return not TRANSITIONS[self]


class Event(enum.StrEnum):
    """What moves a sample from one state to the next."""

    START = "start"  # its prompt enters an encode plan
    ENCODED = "encoded"  # conditioning and noise are ready
    STEP = "step"  # one denoising step done, more to go
    LAST_STEP = "last_step"  # the last denoising step done
    DECODED = "decoded"  # frames handed to the output manager
    WRITTEN = "written"  # the file is durable
    REWRITE = "rewrite"  # the file was lost before it was durable: decode again
    FAIL = "fail"  # it, and it alone, failed
    CANCEL = "cancel"  # the user or a disconnect stopped it
    LOST = "lost"  # the ranks that held it are gone: start again


_ENDINGS = {Event.FAIL: State.FAILED, Event.CANCEL: State.CANCELLED}

TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.QUEUED: {Event.START: State.ENCODING, **_ENDINGS},
    State.ENCODING: {Event.ENCODED: State.DENOISING, Event.LOST: State.QUEUED, **_ENDINGS},
    State.DENOISING: {
        Event.STEP: State.DENOISING,
        Event.LAST_STEP: State.DECODING,
        Event.LOST: State.QUEUED,
        **_ENDINGS,
    },
    State.DECODING: {Event.DECODED: State.WRITING, Event.LOST: State.QUEUED, **_ENDINGS},
    State.WRITING: {
        Event.WRITTEN: State.COMPLETED,
        Event.REWRITE: State.DECODING,
        Event.LOST: State.QUEUED,
        **_ENDINGS,
    },
    State.COMPLETED: {},
    State.FAILED: {},
    State.CANCELLED: {},
}
"""The one table. `docs/states.md` is generated from it."""


def advance(state: State, event: Event) -> State:
    """The state after `event`. Raises `IllegalTransition`, changing nothing, if there is none."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"A sample that is {state} cannot take '{event}'.") from None


def sample_id(job_id: str, index: int) -> str:
    return f"{job_id}.{index}"


def job_of(sample: str) -> str:
    """The job a sample id belongs to."""
    return sample.rpartition(".")[0]


def index_of(sample: str) -> int:
    """The sample's index in its job."""
    return int(sample.rpartition(".")[2])
