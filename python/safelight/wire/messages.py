"""Every message between processes: frozen, tagged structs, one union per link and direction.

======== =========================== ======================= ==========================
link     from -> to                   union                   answer
======== =========================== ======================= ==========================
requests manager -> scheduler         `ToScheduler`           `FromScheduler`
ranks    every rank -> scheduler      `FromRank`              `ToRank`
frames   rank 0 -> output manager     `Frames`                none
media    output manager -> manager    `FromOutput`            none
control  every process -> supervisor  `ToSupervisor`          `FromSupervisor`
======== =========================== ======================= ==========================

Times are `time.monotonic()` seconds, which all processes of a host share. Bulk pixels are not in
messages: `Frames` names shared memory.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from safelight.request import Adapter, Delivery, SampleSpec, State


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Base of all messages; the tag is the class name."""


# ------------------------------------------------------------------------- manager and scheduler


class Attach(Message, frozen=True):
    """The manager is here (again): tell it which groups serve and how busy they are."""


class Submit(Message, frozen=True):
    """Take these samples. A sample that is already known with this attempt is ignored."""

    samples: tuple[SampleSpec, ...]


class Cancel(Message, frozen=True):
    """Stop these samples within one step. Unknown ones are ignored."""

    samples: tuple[str, ...]


class Written(Message, frozen=True):
    """The files of these samples are durable: forget them everywhere."""

    samples: tuple[str, ...]


class Drain(Message, frozen=True):
    """This model is to be unloaded: finish what was accepted, keep what comes later."""

    model: str


class FlushCaches(Message, frozen=True):
    """Let all ranks forget what they have kept of prompts and pictures. Not answered: it comes
    before whatever is submitted later."""


class Redeliver(Message, frozen=True):
    """The output manager was lost: decode these samples again from their final latents."""

    samples: tuple[str, ...]


class LoadAdapters(Message, frozen=True):
    """Try these adapters out on every group of this model; answered by `AdaptersLoaded`."""

    ticket: str
    model: str
    adapters: tuple[Adapter, ...]


class ForgetAdapters(Message, frozen=True):
    """Nobody will use these adapters any more: the ranks may drop them. Not answered."""

    model: str
    digests: tuple[str, ...]


ToScheduler = (
    Attach
    | Submit
    | Cancel
    | Written
    | Redeliver
    | Drain
    | LoadAdapters
    | ForgetAdapters
    | FlushCaches
)


class SampleProgress(msgspec.Struct, frozen=True, kw_only=True):
    sample: str
    attempt: int
    state: State
    step: int
    steps: int
    eta: float
    """Predicted seconds until it is finished."""
    position: int
    """Samples that are served before it; 0 when it is in the running batch."""


class Progress(Message, frozen=True):
    """Samples that moved."""

    samples: tuple[SampleProgress, ...]


class SampleFailed(Message, frozen=True):
    sample: str
    attempt: int
    code: str
    message: str


class SampleCancelled(Message, frozen=True):
    sample: str
    attempt: int


class RankCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one plan cost one rank."""

    rank: int
    seconds: float
    traffic: dict[str, int] = {}
    """Bytes sent to other ranks, by ``axis.collective``."""
    peak_memory: int = 0
    """Bytes."""


class PlanDone(Message, frozen=True):
    """What one forward plan cost; feeds metrics, benchmarks and tests."""

    group: int
    op: str
    samples: tuple[str, ...]
    started: float
    finished: float
    ranks: tuple[RankCost, ...] = ()
    """Of all ranks of the group, in order."""


class RankInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One rank that serves."""

    rank: int
    pid: int
    device: str = ""
    load_seconds: float = 0.0
    peak_memory: int = 0
    """Bytes, as last reported."""
    weights: dict[str, int] = {}
    """Bytes of weights on this rank, by component."""


class GroupStatus(Message, frozen=True):
    """A worker group came or went."""

    group: int
    ready: bool
    detail: str
    model: str = ""
    ranks: tuple[RankInfo, ...] = ()
    """Those that have said hello, in order."""


class Drained(Message, frozen=True):
    """Nothing that was accepted before its drain is left of this model."""

    model: str


class Load(Message, frozen=True):
    """How busy the scheduler is: the basis of admission and of `Retry-After`."""

    unfinished: int
    backlog: float
    """Predicted seconds of work for everything accepted."""


class AdaptersLoaded(Message, frozen=True):
    """What became of a `LoadAdapters`."""

    ticket: str
    error: str | None = None
    """Why one of them does not fit the model, for people; the model is unharmed."""
    layers: dict[str, int] = {}
    """Layers that they change, by component."""


FromScheduler = (
    Progress
    | SampleFailed
    | SampleCancelled
    | PlanDone
    | GroupStatus
    | Drained
    | Load
    | AdaptersLoaded
)


# --------------------------------------------------------------------------- scheduler and ranks


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """What one forward cost during warm-up."""

    op: str
    tokens: int
    batch: int
    seconds: float


class RankHello(Message, frozen=True):
    """The first message of a rank: it has loaded the model and holds no samples."""

    group: int
    rank: int
    world_size: int
    pid: int
    load_seconds: float
    peak_memory: int
    """Bytes: resident on CPU, allocated on CUDA."""
    timings: tuple[Timing, ...] = ()
    """Warm-up measurements; they prime the cost model."""
    weights: dict[str, int] = {}
    """Bytes of weights on this rank, by component."""
    device: str = ""
    model: str = ""
    """Name of the model it has loaded."""


OUT_OF_MEMORY = "out_of_memory"
"""Code of a failure one rank may have alone: it says so and ends, and the group with it."""


class SampleFailure(msgspec.Struct, frozen=True, kw_only=True):
    sample: str
    code: str
    message: str


class Report(Message, frozen=True):
    """Plan `seq` was executed. Rank 0's counts; the others' say that they did the same."""

    group: int
    rank: int
    seq: int
    started: float
    finished: float
    failures: tuple[SampleFailure, ...] = ()
    steps: dict[str, int] = {}
    """Of an encode: the denoising steps its samples will take."""
    traffic: dict[str, int] = {}
    """Bytes sent to other ranks since the last report, by ``axis.collective``."""
    peak_memory: int = 0
    """Bytes, as in `RankHello`."""
    previews: float = 0.0
    """Of a step: seconds that went into previews, which say nothing about the cost of steps."""
    adapting: float = 0.0
    """Seconds that went into loading and switching adapters, of which the same is true."""
    layers: dict[str, int] = {}
    """Of an adapt: layers that the adapters change, by component."""


FromRank = RankHello | Report


class Encode(Message, frozen=True):
    """Turn prompts into conditioning, draw the noise."""

    seq: int
    release: tuple[str, ...]
    samples: tuple[SampleSpec, ...]


class Step(Message, frozen=True):
    """Advance this batch by one denoising step."""

    seq: int
    release: tuple[str, ...]
    samples: tuple[str, ...]


class Decode(Message, frozen=True):
    """Latents to frames, handed to the output manager."""

    seq: int
    release: tuple[str, ...]
    samples: tuple[str, ...]


class Drop(Message, frozen=True):
    """Nothing to compute; forget the samples in `release`."""

    seq: int
    release: tuple[str, ...]
    caches: bool = False
    """Forget, too, what was kept of prompts and pictures of any sample."""


class Shutdown(Message, frozen=True):
    """Finish and exit with status 0."""


class Adapt(Message, frozen=True):
    """Load these adapters, drop those; the answer's failures name an adapter's digest."""

    seq: int
    release: tuple[str, ...]
    load: tuple[Adapter, ...] = ()
    drop: tuple[str, ...] = ()
    """Digests."""


Plan = Encode | Step | Decode | Drop | Adapt
ToRank = Plan | Shutdown


# ----------------------------------------------------------------- ranks, output manager, manager


class Sound(msgspec.Struct, frozen=True, kw_only=True):
    """float32 samples in [-1, 1] in shared memory, C order."""

    memory: str
    shape: tuple[int, int]
    """[samples, channels]"""
    sample_rate: int
    """Hz"""


class Frames(Message, frozen=True):
    """uint8 frames of one sample in shared memory, C order."""

    sample: str
    attempt: int
    memory: str
    """A path that opens the shared memory, as long as the rank holds the sample."""
    shape: tuple[int, int, int, int]
    """[T, H, W, 3]"""
    delivery: Delivery
    sound: Sound | None = None
    preview: int | None = None
    """Of a picture of the running estimate: which one, from 0; its sample goes on."""
    step: int = 0
    """Denoising steps done, of a preview."""


class PreviewReady(Message, frozen=True):
    """A picture of a sample's running estimate is there; it is not durable, and not waited for."""

    sample: str
    attempt: int
    preview: int
    step: int
    path: str


class MediaReady(Message, frozen=True):
    """One sample's file is durable."""

    sample: str
    attempt: int
    path: str
    media_type: str
    nbytes: int
    sha256: str
    width: int
    height: int
    num_frames: int


FRAMES_LOST = "frames_lost"
"""Code of a `MediaFailed` whose rank ended before its frames were opened: to be made again."""


class MediaFailed(Message, frozen=True):
    sample: str
    attempt: int
    code: str
    message: str
    preview: int | None = None
    """Which preview it was; those are missed by nobody."""


FromOutput = MediaReady | MediaFailed | PreviewReady


# ------------------------------------------------------------------------- everyone and supervisor


class Starting(Message, frozen=True):
    """What a process is busy with while it starts, for the progress display."""

    process: str
    stage: str


class Ready(Message, frozen=True):
    """The process serves. `detail` is for people (for example the address)."""

    process: str
    pid: int
    detail: str = ""


class Hung(Message, frozen=True):
    """A process does not answer any more: it should be ended and started again."""

    process: str
    detail: str


class LoadModel(Message, frozen=True):
    """Start the worker groups of a model; it is said with `ModelState` what became of it."""

    model: str
    wanted: bool = True
    """False: by a manager that has just been started, and takes it to be there since the server's
    start. It is only told whether it is."""


class UnloadModel(Message, frozen=True):
    """End the worker groups of a model."""

    model: str


ToSupervisor = Starting | Ready | Hung | LoadModel | UnloadModel


class Stop(Message, frozen=True):
    """Finish within `grace` seconds, then exit with status 0."""

    grace: float


class PeerRestarted(Message, frozen=True):
    """Another process died; it is back without its memory, or, for ranks, on its way."""

    process: str


class ModelState(Message, frozen=True):
    """What became of a `LoadModel` or an `UnloadModel`."""

    model: str
    state: Literal["loaded", "unloaded", "failed"]
    detail: str = ""


FromSupervisor = Stop | PeerRestarted | ModelState
