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
Output = Literal["image", "video"]
Task = Literal["text-to-image", "image-to-image", "inpainting", "text-to-video", "image-to-video"]
TASKS: Mapping[Output, tuple[Task, ...]] = {
    "image": ("text-to-image", "image-to-image", "inpainting"),
    "video": ("text-to-video", "image-to-video"),
}
"""What each kind of output can be made from."""

Preset = Literal["maximum", "high", "medium", "low", "default"]
PRESETS: Mapping[Preset, int] = {"maximum": 100, "high": 90, "medium": 55, "low": 35}
"""Compression by the names that SGLang Diffusion has for it; `default` is one of the next."""
DEFAULT_PRESET: Mapping[Output, int] = {"image": 75, "video": 50}

MAX_PREVIEWS = 16
MAX_PROMPT = 32_000  # characters; the OpenAI limit
MAX_SEED = 2**63 - 1


Scale = Annotated[float, Meta(ge=0, le=100)]
"""Bounds of an optional number stand inside: msgspec has none for `float | None`."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every sampling parameter, resolved: nothing is left for a rank to guess.

    What a user leaves out comes from the model's card (`ModelCard.resolve`).
    """

    width: Annotated[int, Meta(ge=8, le=8192, description="Width of the output in pixels.")]
    height: Annotated[int, Meta(ge=8, le=8192, description="Height of the output in pixels.")]
    num_frames: Annotated[
        int, Meta(ge=1, le=4096, description="Frames to generate; 1 makes a still picture.")
    ]
    fps: Annotated[int, Meta(ge=1, le=240, description="Frames per second of the saved video.")] = 1
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
    ] = 1.0
    guidance_scale_2: Annotated[
        Scale | None,
        Meta(
            description="Guidance of the second, low-noise expert (Wan 2.2); "
            "by default guidance_scale."
        ),
    ] = None
    true_cfg_scale: Annotated[
        Scale | None,
        Meta(
            description="Classifier-free guidance of models whose guidance_scale is an input of "
            "the transformer; above 1 it is on where there is a negative prompt."
        ),
    ] = None
    flow_shift: Annotated[
        Annotated[float, Meta(gt=0, le=100)] | None,
        Meta(description="Shift of the noise levels; by default the model's own."),
    ] = None
    strength: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Meta(description="How far the input image is changed: 1 forgets it."),
    ] = None
    max_sequence_length: Annotated[
        int, Meta(ge=1, le=4096, description="Prompt tokens kept; a longer prompt is cut.")
    ] = 512
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


class Picture(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input picture: decoded by the manager, kept as bare pixels, read by the ranks."""

    path: str
    """Absolute path of uint8 pixels in C order, [height, width] or [height, width, 3]."""
    width: int
    height: int
    mode: Literal["RGB", "L"] = "RGB"
    digest: str
    """SHA-256 of the pixels, hexadecimal: what is computed from them is cached by it."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        return self.width, self.height


class Inputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a sample is made from besides its prompt."""

    images: tuple[Picture, ...] = ()
    mask: Picture | None = None
    """Of the first image's size, mode L: white is repainted, black is kept."""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All of them."""
        return self.images + (() if self.mask is None else (self.mask,))


class Adapter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA as one request uses it: resolved by the manager, never named by path by a client."""

    name: str
    """As in the catalog; for people."""
    scale: Annotated[float, Meta(ge=-10, le=10)] = 1.0
    target: str = "all"
    """The component it changes (`transformer`, `transformer_2`, …), or all that its file has."""
    path: str = ""
    """Absolute path of its safetensors file, which stays as long as a job needs it."""
    digest: str = ""
    """SHA-256 of the file, hexadecimal: adapters of one digest are one adapter."""


class Clip(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A finished video that a sample goes on from: its file is that video, then the sample's frames
    but the first, which is the video's last one over again."""

    path: str
    """Absolute path of an MP4 of our own, of the sample's size and rate."""
    num_frames: int


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """How and where one sample's frames become a file. Ranks carry it and never read it."""

    path: str
    """Absolute path of the finished file."""
    format: MediaFormat
    fps: int
    compression: int
    """0 to 100; quality of jpeg, webp and mp4, ignored elsewhere."""
    parameters: dict[str, str]
    """Embedded in PNG text chunks; empty when switched off."""
    outside: Inputs = Inputs()
    """An image, and the mask outside of which its pixels are to be found in the file."""
    continues: Clip | None = None


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
    model: str = ""
    """Name of the model that makes it."""
    task: Task = "text-to-image"
    inputs: Inputs = Inputs()
    adapters: tuple[Adapter, ...] = ()
    merged: bool = False
    """Whether the adapters are to be merged into the weights while it is stepped."""
    previews: int = 0
    """Pictures of the running estimate to deliver before the last step."""


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
    inputs: Inputs = Inputs()
    seeds: tuple[int, ...] = ()
    """Seed of every sample, if they were listed."""
    adapters: tuple[Adapter, ...] = ()
    """What was in force, or asked for, when it was accepted; nothing changes it later."""
    merged: bool = False
    previews: int = 0
    continues: Clip | None = None
    extra: dict[str, Any] = {}
    """What the HTTP dialect must echo (for example `user`); the engine does not read it."""

    @property
    def material(self) -> tuple[str, ...]:
        """Paths of the files it is made from."""
        clip = () if self.continues is None else (self.continues.path,)
        return (*(picture.path for picture in self.inputs.pictures), *clip)

    def seed_of(self, index: int) -> int:
        """Seed of sample `index`: as listed, or `seed`, `seed + 1`, …"""
        if self.seeds:
            return self.seeds[index]
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
