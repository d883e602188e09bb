"""The plain loop: one `WanPipeline`, one job after another, each to its finished file.

    python benchmark/diffusers_loop.py --jobs 16

This is the script a team writes first, and what Safelight is measured against. It gets the same
jobs, sizes, steps, seeds, guidance, text length, precision and threads (all cores) as the server,
and writes the same kinds of file. `--writer diffusers` writes clips as diffusers' documentation
does, with `export_to_video`; `--writer ffmpeg` is tuned by hand to the server's own ffmpeg command,
which is faster (13 ms instead of 37 for nine frames of 64x64) and gives the same bytes. Neither
syncs to disk, hashes or records anything, as a script would not.

With `--worker` it takes jobs as JSON lines and waits, idle, in between: so `compare.py` and
`single.py` can alternate between it and the server without loading it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import msgspec
import typer

import common
import workload
from safelight.config import EngineConfig
from safelight.models.registry import load_card
from safelight.output import video
from safelight.output.frames import SharedFrames
from workload import Job, Outcome, Report

Writer = Literal["diffusers", "ffmpeg"]
WriterOption = Annotated[Writer, typer.Option(help="How the loop writes clips; see its module.")]
_READY = b"ready\n"


class Loop:
    """The pipeline, loaded and warmed up. Lives in a process of its own."""

    def __init__(self, config: EngineConfig, directory: Path, writer: Writer) -> None:
        import torch
        from diffusers import WanPipeline

        from safelight.models.loading import device_of, dtypes_of

        torch.set_num_threads(config.model.cpu_threads or len(os.sched_getaffinity(0)))
        device = device_of(config.model)
        self._torch = torch
        self._card = load_card(config)
        self._directory = directory
        self._writer = writer
        self._pipeline: Any = WanPipeline.from_pretrained(
            self._card.path,
            dtype=dtypes_of(config.model, device),
            use_safetensors=True,
            local_files_only=True,
        ).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        for kind in ("clip", "frame", "image"):
            self.run(Job(index=-1, prompt="warm-up", steps=2, seed=0, kind=kind))

    def run(self, job: Job) -> Outcome:
        """One job, from the prompt to the file."""
        started = time.monotonic()
        frames = self._generate(job)
        generated = time.monotonic()
        path = self._directory / f"{job.index}.{'png' if job.kind == 'image' else 'mp4'}"
        self._save(frames, path)
        finished = time.monotonic()
        sha256 = workload.fingerprint(path.read_bytes())
        return Outcome(job, started, finished, sha256=sha256, writing=finished - generated)

    def _generate(self, job: Job) -> Any:
        """uint8 frames [T, H, W, 3]."""
        values: dict[str, Any] = {"num_inference_steps": job.steps}
        sampling = self._card.resolve(values if job.kind == "clip" else values | {"num_frames": 1})
        self._fps = sampling.fps
        result = self._pipeline(
            prompt=job.prompt,
            negative_prompt=sampling.negative_prompt,
            height=sampling.height,
            width=sampling.width,
            num_frames=sampling.num_frames,
            num_inference_steps=job.steps,
            guidance_scale=sampling.guidance_scale,
            max_sequence_length=sampling.max_sequence_length,
            generator=self._torch.Generator("cpu").manual_seed(job.seed),
            output_type="np",
        )
        return (result.frames[0] * 255).round().astype("uint8")

    def _save(self, frames: Any, path: Path) -> None:
        if path.suffix == ".png":
            from PIL import Image

            Image.fromarray(frames[0]).save(path)
        elif self._writer == "diffusers":
            from diffusers.utils import export_to_video

            export_to_video(list(frames / 255.0), str(path), fps=self._fps)
        else:
            # Only the shape is read from this: the frames come through the pipe.
            shape = SharedFrames(fd=-1, shape=frames.shape)
            command = video.command(shape, path, self._fps)
            subprocess.run(command, input=frames.tobytes(), check=True, stdout=subprocess.DEVNULL)


class LoopProcess:
    """A `Loop` in a process that is idle between calls. A context manager."""

    def __init__(self, config: EngineConfig, writer: Writer = "ffmpeg") -> None:
        model = config.model
        self._command = [
            *(sys.executable, __file__, "--worker", "--model-path", model.model_path),
            *("--writer", writer),
            *("--device", model.device, "--cpu-threads", str(model.cpu_threads)),
        ]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        try:
            if self._answers.readline() != _READY:
                raise RuntimeError("the plain loop did not start; see above")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        common.end(self._process, 5.0)

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Have it do `jobs`, one after another."""
        self._requests.write(msgspec.json.encode(jobs) + b"\n")
        self._requests.flush()
        if not (line := self._answers.readline()):
            raise RuntimeError("the plain loop ended; see above")
        return msgspec.json.decode(line, type=list[Outcome])


def _work(loop: Loop, requests: Any, answers: Any) -> None:
    answers.write(_READY)
    answers.flush()
    for line in requests:
        jobs = msgspec.json.decode(line, type=list[Job])
        answers.write(msgspec.json.encode([loop.run(job) for job in jobs]) + b"\n")
        answers.flush()


def main(
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
    jobs: workload.Jobs = 48,
    steps: workload.Steps = workload.DEFAULT_STEPS,
    images: workload.Images = 0.0,
    seed: common.Seed = 0,
    model_path: common.ModelPath = "builtin:shapes",
    device: common.Device = "auto",
    cpu_threads: common.Threads = 0,
    writer: WriterOption = "diffusers",
    name: common.Name = "diffusers_loop",
) -> None:
    """Latency and throughput of a plain loop around the diffusers pipeline."""
    config = common.engine_config(model_path, device, cpu_threads)
    with tempfile.TemporaryDirectory(prefix="safelight-bench-") as directory:
        if worker:
            answers = os.fdopen(os.dup(1), "wb")
            os.dup2(2, 1)  # what libraries print must not mix with the answers
            _work(Loop(config, Path(directory), writer), sys.stdin.buffer, answers)
            return
        loop = Loop(config, Path(directory), writer)
        work = workload.make_jobs(jobs, workload.parse_steps(steps), images=images, seed=seed)
        report = Report.of([loop.run(job) for job in work])
    common.table(f"{jobs} jobs, one after another", ("figure", "value"), report.rows())
    common.save(name, {"loop": report})


if __name__ == "__main__":
    common.run(main)
