"""The jobs of a benchmark, when they arrive, and what became of them. The same for both sides."""

from __future__ import annotations

import hashlib
import io
import itertools
import random
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import typer
from PIL import Image

from common import Spread

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle")
MOTIONS = ("standing still", "moving left", "moving right", "moving up", "moving down")
BACKGROUNDS = ("black", "white", "gray")

DEFAULT_STEPS = "4,6,8,10,12,16,20"
Jobs = Annotated[int, typer.Option(min=1, help="Jobs of one run.")]
Steps = Annotated[str, typer.Option(help="Step counts, mixed in equal shares.")]
Images = Annotated[
    float, typer.Option(min=0, max=1, help="Share of still images (PNG) among the clips (MP4).")
]

Kind = Literal["clip", "frame", "image"]
"""A clip (MP4), one frame (an MP4 too), a still image (PNG)."""


class Job(msgspec.Struct, frozen=True):
    """One job. Size, frames, guidance and text length are the model card's defaults."""

    index: int
    prompt: str
    steps: int
    seed: int
    kind: Kind = "clip"


class Outcome(msgspec.Struct, frozen=True):
    """A job that ended. Times are `time.monotonic()` seconds, which all processes share."""

    job: Job
    started: float
    """The client began to send it; in the plain loop, its turn began."""
    finished: float
    """The client has the whole file; in the plain loop, the file is written."""
    sha256: str = ""
    """Of the MP4 file, or of the PNG's pixels (its text chunks may differ)."""
    error: str | None = None
    writing: float = 0.0
    """Seconds of it that the plain loop spent on writing the file."""

    @property
    def latency(self) -> float:
        return self.finished - self.started


class Report(msgspec.Struct, frozen=True):
    """What a run of jobs came to."""

    jobs: int
    failures: int
    errors: list[str]
    """The distinct reasons, at most ten."""
    seconds: float
    """From the first start to the last end."""
    jobs_per_second: float
    """Completed ones."""
    steps_per_second: float
    """Denoising steps of completed jobs."""
    latency: Spread | None
    """Seconds; None if no job completed."""

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Report:
        """Raises `ValueError` without outcomes."""
        if not outcomes:
            raise ValueError("there are no outcomes")
        done = [outcome for outcome in outcomes if outcome.error is None]
        errors = dict.fromkeys(outcome.error for outcome in outcomes if outcome.error is not None)
        seconds = max(o.finished for o in outcomes) - min(o.started for o in outcomes)
        return cls(
            jobs=len(outcomes),
            failures=len(outcomes) - len(done),
            errors=list(errors)[:10],
            seconds=seconds,
            jobs_per_second=len(done) / seconds,
            steps_per_second=sum(outcome.job.steps for outcome in done) / seconds,
            latency=Spread.of([outcome.latency for outcome in done]) if done else None,
        )

    def rows(self) -> list[tuple[str, str]]:
        """For a table."""
        rows = [
            ("jobs", str(self.jobs)),
            ("failures", str(self.failures)),
            ("seconds", f"{self.seconds:.2f}"),
            ("jobs/s", f"{self.jobs_per_second:.2f}"),
            ("denoising steps/s", f"{self.steps_per_second:.1f}"),
        ]
        if self.latency is not None:
            rows += [
                (f"latency {name}, s", f"{getattr(self.latency, name):.3f}")
                for name in ("p50", "p95", "p99")
            ]
        return rows + [("error", error) for error in self.errors]


def parse_steps(text: str) -> list[int]:
    """`4,6,8` as numbers. Raises `typer.BadParameter`."""
    try:
        steps = [int(part) for part in text.split(",")]
    except ValueError:
        steps = []
    if not steps or min(steps) < 1:
        raise typer.BadParameter(f"'{text}' is not a list of positive numbers such as 4,6,8.")
    return steps


def make_jobs(count: int, steps: Sequence[int], *, images: float = 0.0, seed: int = 0) -> list[Job]:
    """`count` jobs, the same ones for the same arguments.

    Every step count occurs equally often (give or take one). Prompts do not repeat before all 270
    were used: a server that caches them gets nothing for free.
    """
    rng = random.Random(seed)
    prompts = [
        f"a {color} {shape} {motion} on a {background} background"
        for color, shape, motion, background in itertools.product(
            COLORS, SHAPES, MOTIONS, BACKGROUNDS
        )
    ]
    rng.shuffle(prompts)
    mixed = list(itertools.islice(itertools.cycle(steps), count))
    rng.shuffle(mixed)
    still = set(rng.sample(range(count), round(count * images)))
    return [
        Job(
            index=index,
            prompt=prompts[index % len(prompts)],
            steps=mixed[index],
            seed=rng.randrange(2**31),
            kind="image" if index in still else "clip",
        )
        for index in range(count)
    ]


def poisson_arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds after the start at which `count` jobs arrive, `rate` per second on average."""
    rng = random.Random(seed)
    return list(itertools.accumulate(rng.expovariate(rate) for _ in range(count)))


def latencies_in_line(seconds: Sequence[float], clients: int) -> list[float]:
    """Latencies of `clients` who share a loop that serves one job after another.

    Job i takes `seconds[i]`, and is asked for when job i - clients is done: a closed loop, first
    come, first served. So the plain loop's latencies can be compared with a server's.
    """
    ends = list(itertools.accumulate(seconds))
    asked = [0.0] * min(clients, len(ends)) + ends[: max(0, len(ends) - clients)]
    return [end - start for end, start in zip(ends, asked, strict=True)]


def fingerprint(data: bytes) -> str:
    """SHA-256 of an MP4 file, or of a PNG's pixels."""
    if data.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(data)) as picture:
            data = picture.tobytes()
    return hashlib.sha256(data).hexdigest()
