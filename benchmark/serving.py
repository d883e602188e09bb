"""Load generator: jobs over OpenAI's API against a running server, or one started here.

    python benchmark/serving.py --start --concurrency 16 --jobs 48
    python benchmark/serving.py --base-url http://127.0.0.1:30000 --rate 2 --jobs 100

A clip is `POST /v1/videos`, polls of `GET /v1/videos/{id}` until it is completed, and
`GET /v1/videos/{id}/content`; a still image is one `POST /v1/images/generations` that waits.
Latency runs from the first byte sent to the last byte of the file received.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Self

import httpx2
import typer

import common
import workload
from server import Server
from workload import Job, Outcome, Report

JOB_TIMEOUT = 900.0

Poll = Annotated[
    int,
    typer.Option(
        "--poll-ms", min=0, help="Poll interval; 0 asks to be answered at the end (Prefer: wait)."
    ),
]


class JobFailed(Exception):
    """The server said that it will not finish the job."""


class Client:
    """A user's program. An asynchronous context manager."""

    def __init__(self, base_url: str, *, poll_ms: int = 0) -> None:
        self._poll_ms = poll_ms
        self._http = httpx2.AsyncClient(
            base_url=base_url,
            timeout=JOB_TIMEOUT,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *details: Any) -> None:
        await self._http.__aexit__(*details)

    async def run(self, job: Job) -> Outcome:
        """Do one job. What the server does wrong is not raised: it is the outcome's error."""
        work = self._image if job.kind == "image" else self._video
        started = time.monotonic()
        try:
            async with asyncio.timeout(JOB_TIMEOUT):
                data = await work(job)
        except httpx2.HTTPStatusError as failure:
            error = f"status {failure.response.status_code}: {failure.response.text[:200]}"
        except (httpx2.HTTPError, JobFailed, TimeoutError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        else:
            finished = time.monotonic()
            return Outcome(job, started, finished, sha256=workload.fingerprint(data))
        return Outcome(job, started, time.monotonic(), error=error)

    async def _video(self, job: Job) -> bytes:
        body = _body(job) | ({"num_frames": 1} if job.kind == "frame" else {})
        answer = await self._call("POST", "/v1/videos", json=body)
        video = answer.json()
        path = f"/v1/videos/{video['id']}"
        while video["status"] not in ("completed", "failed"):
            if self._poll_ms:
                await asyncio.sleep(self._poll_ms / 1000)
            headers = {} if self._poll_ms else {"Prefer": "wait=60"}
            answer = await self._call("GET", path, headers=headers)
            video = answer.json()
        if video["status"] == "failed":
            raise JobFailed(str(video["error"]))
        return (await self._call("GET", f"{path}/content")).content

    async def _image(self, job: Job) -> bytes:
        body = _body(job) | {"response_format": "b64_json"}
        answer = await self._call("POST", "/v1/images/generations", json=body)
        return base64.b64decode(answer.json()["data"][0]["b64_json"])

    async def _call(self, method: str, path: str, **content: Any) -> httpx2.Response:
        answer = await self._http.request(method, path, **content)
        answer.raise_for_status()
        return answer


def _body(job: Job) -> dict[str, Any]:
    return {"prompt": job.prompt, "seed": job.seed, "num_inference_steps": job.steps}


# ------------------------------------------------------------------------------------------- load

Run = Callable[[Job], Awaitable[Outcome]]


async def closed_loop(run: Run, jobs: Sequence[Job], concurrency: int) -> list[Outcome]:
    """`concurrency` clients, each of which asks for its next job when it has the last one."""
    left = iter(jobs)

    async def client() -> list[Outcome]:
        return [await run(job) for job in left]

    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(client()) for _ in range(concurrency)]
    return sorted((o for c in clients for o in c.result()), key=lambda o: o.job.index)


async def open_loop(run: Run, jobs: Sequence[Job], arrivals: Sequence[float]) -> list[Outcome]:
    """Job i starts `arrivals[i]` seconds from now, whatever became of those before it."""
    begin = time.monotonic()

    async def later(job: Job, at: float) -> Outcome:
        await asyncio.sleep(begin + at - time.monotonic())
        return await run(job)

    async with asyncio.TaskGroup() as group:
        pairs = zip(jobs, arrivals, strict=True)
        tasks = [group.create_task(later(job, at)) for job, at in pairs]
    return [task.result() for task in tasks]


def load(
    base_url: str,
    jobs: Sequence[Job],
    *,
    concurrency: int = 16,
    arrivals: Sequence[float] | None = None,
    poll_ms: int = 0,
) -> list[Outcome]:
    """Outcomes of `jobs`, in their order; a closed loop unless there are `arrivals`."""

    async def everything() -> list[Outcome]:
        async with Client(base_url, poll_ms=poll_ms) as client:
            if arrivals is None:
                return await closed_loop(client.run, jobs, concurrency)
            return await open_loop(client.run, jobs, arrivals)

    return asyncio.run(everything())


# ---------------------------------------------------------------------------------- command line


def main(
    base_url: Annotated[str | None, typer.Option(help="A running server.")] = None,
    start: Annotated[bool, typer.Option("--start", help="Start a server, and end it.")] = False,
    jobs: workload.Jobs = 48,
    concurrency: Annotated[int, typer.Option(min=1, help="Clients of the closed loop.")] = 16,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Poisson arrivals a second, no closed loop.")
    ] = None,
    steps: workload.Steps = workload.DEFAULT_STEPS,
    images: workload.Images = 0.0,
    seed: common.Seed = 0,
    poll_ms: Poll = 0,
    model_path: common.ModelPath = "builtin:shapes",
    device: common.Device = "auto",
    cpu_threads: common.Threads = 0,
    name: common.Name = "serving",
) -> None:
    """Latency and throughput of a server under load."""
    if start == (base_url is not None):
        raise typer.BadParameter("give one of --base-url and --start")
    work = workload.make_jobs(jobs, workload.parse_steps(steps), images=images, seed=seed)
    arrivals = None if rate is None else workload.poisson_arrivals(jobs, rate, seed)

    def measure(url: str) -> list[Outcome]:
        return load(url, work, concurrency=concurrency, arrivals=arrivals, poll_ms=poll_ms)

    cpu: dict[str, float] = {}
    if base_url is not None:
        outcomes = measure(base_url)
    else:
        config = common.engine_config(model_path, device, cpu_threads)
        with Server(config) as server:
            before = server.cpu_seconds()
            outcomes = measure(server.base_url)
            cpu = {name: used - before.get(name, 0) for name, used in server.cpu_seconds().items()}
    report = Report.of(outcomes)
    how = f"{concurrency} clients" if rate is None else f"{rate:g} jobs a second"
    common.table(f"{jobs} jobs, {how}", ("figure", "value"), report.rows())
    common.save(name, {"load": how, "poll_ms": poll_ms, "server": report, "cpu_seconds": cpu})
    if report.failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    common.run(main)
