"""`safelight generate`: prompts in, files out, through the same processes that serve HTTP."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from safelight.cli import naming
from safelight.config import EngineConfig
from safelight.errors import ConfigError, JobCancelled, JobError
from safelight.request import DEFAULT_PRESET, PRESETS, Adapter, MediaFormat, Output, Preset

if TYPE_CHECKING:
    from safelight.engine import Engine, Job
    from safelight.manager.events import JobView

INTERRUPTED = 130  # the shell's status of a command ended by Ctrl-C


class GenerateOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `generate` takes besides the engine's configuration and the sampling parameters."""

    prompt: Annotated[list[str], Meta(description="What to generate; repeat it for several.")] = []
    prompt_file: Annotated[
        str | None,
        Meta(description="Text file, one prompt a line.", extra={"aliases": ("prompt_path",)}),
    ] = None
    image_path: Annotated[
        list[str],
        Meta(
            description="Input picture, to edit or to animate; repeat it for several.",
            extra={"aliases": ("input_image", "image")},
        ),
    ] = []
    mask_path: Annotated[
        str | None,
        Meta(
            description="Picture of the first one's size: transparent, or in an opaque picture "
            "white, is what is made anew.",
            extra={"aliases": ("mask",)},
        ),
    ] = None
    round_size: Annotated[
        bool,
        Meta(description="Take the nearest size the model can make instead of refusing another."),
    ] = False
    size: Annotated[
        str | None, Meta(description="WIDTHxHEIGHT; the same as --width and --height.")
    ] = None
    n: Annotated[
        int,
        Meta(
            ge=1,
            description="Outputs of each prompt, with consecutive seeds.",
            extra={"aliases": ("num_samples", "num_images")},
        ),
    ] = 1
    output_path: Annotated[str, Meta(description="Directory for the files.")] = "outputs"
    output_file_name: Annotated[
        str | None,
        Meta(
            description="Name of the file; its extension is the format: "
            ".mp4, or for one frame .png, .jpg, .webp. Several files get an index."
        ),
    ] = None
    output_compression: Annotated[
        Annotated[int, Meta(ge=0, le=100)] | None,
        Meta(description="Quality of jpeg, webp (by default 95) and mp4 (50)."),
    ] = None
    output_quality: Annotated[
        Preset | None,
        Meta(
            description="The same by name: maximum is 100, high 90, medium 55, low 35, default 75 "
            "for pictures and 50 for videos; --output-compression wins."
        ),
    ] = None
    priority: Annotated[int, Meta(ge=-100, le=100, description="Higher goes first.")] = 0
    lora: Annotated[
        list[str],
        Meta(
            description="Adapter of --lora-dir or --lora-path, as NAME or NAME:SCALE; repeat it. "
            "By default that of --lora-path."
        ),
    ] = []
    save_output: Annotated[
        bool, Meta(description="For the command lines of other engines: files are always saved.")
    ] = True


def compression_of(options: GenerateOptions, kind: Output) -> int | None:
    """0 to 100, as asked for; None leaves it to the format."""
    if options.output_compression is not None or options.output_quality is None:
        return options.output_compression
    return PRESETS.get(options.output_quality, DEFAULT_PRESET[kind])


@dataclass(frozen=True)
class Work:
    """Everything there is to do, checked before a process is started."""

    prompts: list[str]
    sampling: dict[str, Any]
    format: MediaFormat
    options: GenerateOptions
    model: str
    destinations: list[list[Path]]
    """For each prompt, the files of its outputs."""


def generate(config: EngineConfig, sampling: Mapping[str, Any], options: GenerateOptions) -> int:
    """Make the files and print what they are; 0 if all were made, 130 after Ctrl-C."""
    from safelight.cli.display import Startup, stderr_console
    from safelight.engine import Engine

    work = plan(config, sampling, options)
    with contextlib.ExitStack() as stack:
        unfinished = stack.enter_context(_unfinished_removed(work.destinations))
        with Startup(stderr_console()) as startup:
            engine = stack.enter_context(Engine(config, on_starting=startup))
        jobs = submit(engine, work)
        with _interrupts_cancel(jobs):
            statuses = _watch(jobs)
        for status, paths in zip(statuses, work.destinations, strict=True):
            if status == 0:
                unfinished.difference_update(paths)
    return max(statuses)


# --------------------------------------------------------------------------------------- planning


def plan(config: EngineConfig, sampling: Mapping[str, Any], options: GenerateOptions) -> Work:
    """Check everything that can be checked without the model's weights.

    Raises `ConfigError` or `InvalidRequest`, naming the option and what would fit.
    """
    from safelight.engine import read_media
    from safelight.manager.building import build_request, choose
    from safelight.models.registry import load_cards

    if not options.save_output:
        raise ConfigError("--no-save-output: generate always saves; leave it out.")
    prompts = read_prompts(options)
    values = dict(sampling)
    name = options.output_file_name
    format = None if name is None else naming.format_of(name)
    output: Output | None = None if format is None else "video" if format == "mp4" else "image"
    if format is not None and values.get("num_frames") is not None:
        naming.check_fits(format, values["num_frames"])
    limit = config.server.max_input_pixels
    media = read_media(options.image_path, options.mask_path, limit)
    _, cards = load_cards(config)
    card = choose(cards, None, output, media)
    for prompt in prompts:
        request = build_request(
            card,
            prompt,
            values,
            output=output,
            media=media,
            round_size=options.round_size,
            n=options.n,
            max_outputs=config.server.max_outputs,
            format=format,
            compression=options.output_compression,
            priority=options.priority,
            adapters=adapters_of(config, options),
        )
    format = request.format
    paths = naming.destinations(Path(options.output_path), name, format, prompts, options.n)
    return Work(prompts, values, format, options, card.name, paths)


def adapters_of(config: EngineConfig, options: GenerateOptions) -> Sequence[Adapter]:
    """What `--lora` names. Raises `ConfigError` for what the engine will not have."""
    from safelight.manager.adapter_files import names_at_start
    from safelight.manager.wanted import IN_FORCE, wanted

    if not options.lora:
        return IN_FORCE
    adapters = wanted(options.lora)
    known = names_at_start(config.lora)
    for one in adapters:
        if one.name not in known:
            raise ConfigError(
                f"--lora {one.name}: there is no such adapter, but "
                f"{', '.join(sorted(known)) or 'none'}. Give its directory as --lora-dir, or its "
                "file as --lora-path.",
                param="lora",
            )
    return adapters


def read_prompts(options: GenerateOptions) -> list[str]:
    """The prompts of the command line, then those of the file. Raises `ConfigError` for none."""
    prompts = list(options.prompt)
    if options.prompt_file is not None:
        try:
            text = Path(options.prompt_file).expanduser().read_text("utf-8")
        except OSError as failure:
            raise ConfigError(
                f"--prompt-file: cannot read {options.prompt_file}: {failure.strerror}."
            ) from failure
        except UnicodeDecodeError as failure:
            raise ConfigError(f"--prompt-file: {options.prompt_file} is not UTF-8.") from failure
        prompts += [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ConfigError('There is no prompt: give --prompt "what to generate".')
    return prompts


def submit(engine: Engine, work: Work) -> list[Job]:
    """One job a prompt."""
    kind: Output = "video" if work.format == "mp4" else "image"
    return [
        engine.submit(
            prompt,
            model=work.model,
            sampling=work.sampling,
            images=work.options.image_path,
            mask=work.options.mask_path,
            output=kind,
            round_size=work.options.round_size,
            n=work.options.n,
            format=work.format,
            compression=compression_of(work.options, kind),
            priority=work.options.priority,
            lora=work.options.lora or None,
            destinations=paths,
        )
        for prompt, paths in zip(work.prompts, work.destinations, strict=True)
    ]


# --------------------------------------------------------------------------------------- watching


@contextlib.contextmanager
def _interrupts_cancel(jobs: Sequence[Job]) -> Iterator[None]:
    """Ctrl-C and SIGTERM cancel the jobs, so that everything ends the ordinary way.

    A second Ctrl-C is an ordinary KeyboardInterrupt again.
    """

    def cancel_all() -> None:
        for job in jobs:
            job.cancel()

    def on_signal(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # A handler interrupts the engine's own waiting: calls into it belong in another thread.
        threading.Thread(target=cancel_all, name="cancel", daemon=True).start()

    previous = {name: signal.signal(name, on_signal) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


def _watch(jobs: Sequence[Job]) -> list[int]:
    """Show the progress of all jobs, report each when it has ended; their exit statuses."""
    from safelight.cli.display import Bars, stderr_console

    with Bars(stderr_console()) as bars:
        tasks = [bars.add(job.request.prompt) for job in jobs]
        statuses = []
        for job in jobs:
            for _ in job.subscribe():
                for other, task in zip(jobs, tasks, strict=True):
                    view = other.progress()
                    bars.update(task, view.steps_done, view.steps_total, view.status, view.eta)
            statuses.append(_finish(job))
        return statuses


def _finish(job: Job) -> int:
    """Report a job that has ended; its exit status."""
    try:
        view = job.wait()
    except JobCancelled:
        print(f"cancelled: {job.request.prompt:.80}", file=sys.stderr)
        return INTERRUPTED
    except JobError as failure:
        print(f"safelight: {failure.message}", file=sys.stderr)
        return 1
    for line in report(view):
        print(line)
    return 0


@contextlib.contextmanager
def _unfinished_removed(destinations: Sequence[Sequence[Path]]) -> Iterator[set[Path]]:
    """Gives the files not finished yet; those still in it at the end are removed.

    Files that were there before, and were not replaced, stay. Ends after the engine, which may
    still write while it stops.
    """
    unfinished = {path for paths in destinations for path in paths}
    before = {path: _identity(path) for path in unfinished}
    new_directories = {path.parent for path in unfinished if not path.parent.exists()}
    try:
        yield unfinished
    finally:
        for path in unfinished:
            if _identity(path) != before[path]:
                path.unlink()
        for directory in new_directories:
            with contextlib.suppress(OSError):  # finished files are in it, or it was never made
                directory.rmdir()


def _identity(path: Path) -> tuple[int, int] | None:
    """Tells a file from one that replaced it; None if there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns


def report(view: JobView) -> list[str]:
    """A line a file: path, size, frames, seed, seconds."""
    seconds = (view.completed_at or 0) - (view.started_at or view.created_at)
    return [
        f"{_relative(Path(output.path))}  {output.width}x{output.height}  "
        f"{output.num_frames} frame{'s' if output.num_frames != 1 else ''}  "
        f"seed {output.seed}  {seconds:.1f} s"
        for output in view.outputs
    ]


def _relative(path: Path) -> Path:
    """As one would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
