"""Start, stop, kill: nothing is left behind and nothing accepted is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from fakes.server import Server, serving

MODULES = {
    "safelight.entrypoint",
    "safelight.scheduler",
    "safelight.output",
    "safelight.launch.ranks",
    "safelight.worker",
    "janitor",
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "data") as running:
        yield running


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def gone(processes: list[psutil.Process], timeout: float) -> bool:
    """Whether all have ended. A zombie has: who reaps orphans is the system's affair."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
            return True
        time.sleep(0.01)
    return False


def wait_idle(server: Server) -> None:
    """Until the scheduler has nothing left."""
    deadline = time.monotonic() + 10
    while server.client.get("/health").json()["unfinished"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_sigterm_during_work_stops_everything_and_the_job_goes_on_afterwards(
    tmp_path: Path,
) -> None:
    before = shared_memory()
    with serving(tmp_path / "data") as server:
        finished = server.create(seed=1)
        assert server.wait(finished)["status"] == "completed"
        content = server.client.get(f"/v1/videos/{finished}/content").content
        running = server.create(seed=2, num_inference_steps=300)
        server.wait_progress(running)
        children = server.children()
        run_dir = server.run_dir
        assert set(children) == MODULES
        assert run_dir.stat().st_mode & 0o777 == 0o700
        started = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - started < 10
        assert not [p for p in children.values() if p.is_running()]
        assert not run_dir.exists()
        assert shared_memory() == before
    with serving(tmp_path / "data") as server:
        assert server.video(finished)["status"] == "completed"
        assert server.client.get(f"/v1/videos/{finished}/content").content == content
        assert server.wait(running)["status"] == "completed"


def test_kill_9_of_the_supervisor_ends_everything_within_a_second(server: Server) -> None:
    before = shared_memory()
    server.create(num_inference_steps=300)
    children, run_dir = list(server.children().values()), server.run_dir
    server.process.kill()
    assert gone(children, 1.0), [p for p in children if p.is_running()]
    assert not run_dir.exists()
    assert shared_memory() == before


@pytest.mark.parametrize(
    "victim",
    [
        "janitor",
        "safelight.worker",
        "safelight.scheduler",
        "safelight.output",
        "safelight.entrypoint",
    ],
)
def test_kill_9_of_any_process_loses_no_job(server: Server, victim: str) -> None:
    jobs = [server.create(seed=i, num_inference_steps=60) for i in range(3)]
    server.wait_progress(jobs[0])
    server.children()[victim].kill()
    deadline = time.monotonic() + 120
    for job in jobs:
        while True:  # the entrypoint itself may be away for a moment
            assert time.monotonic() < deadline, server.log.read_text()
            try:
                video = server.video(job)
            except httpx2.TransportError:
                time.sleep(0.1)
                continue
            if video["status"] not in ("queued", "in_progress"):
                break
            time.sleep(0.1)
        assert video["status"] == "completed", (video, server.log.read_text())
    assert server.terminate() == 0


def test_a_process_that_keeps_dying_ends_the_server(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--max-restarts", "1") as server:
        for _ in range(2):
            deadline = time.monotonic() + 60
            while "safelight.output" not in server.children():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            victim = server.children()["safelight.output"]
            victim.kill()
            victim.wait(10)
        assert server.process.wait(30) == 1
        assert "output" in server.log.read_text()


def test_deleting_a_running_job_frees_the_ranks(server: Server) -> None:
    long = server.create(num_inference_steps=1000)
    server.wait_progress(long)
    reply = server.client.delete(f"/v1/videos/{long}")
    assert reply.json() == {"id": long, "object": "video.deleted", "deleted": True}
    assert server.client.get(f"/v1/videos/{long}").status_code == 404
    wait_idle(server)


def test_a_client_that_hangs_up_cancels_its_image(server: Server) -> None:
    body = {"prompt": "a red circle", "num_inference_steps": 1000}
    with pytest.raises(httpx2.ReadTimeout):
        server.client.post("/v1/images/generations", json=body, timeout=1.5)
    wait_idle(server)


def test_two_servers_do_not_share_a_data_directory(server: Server) -> None:
    second = Server(server.data_dir)
    try:
        assert second.process.wait(60) != 0
        assert "data" in second.log.read_text()
        assert server.video(server.create())["status"] in ("queued", "in_progress")
    finally:
        second.close()


def test_a_wrong_model_path_is_one_clear_line() -> None:
    command = [sys.executable, "-m", "safelight", "serve", "--model-path", "/nowhere"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "model_index.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_while_starting_leaves_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path / "data")
    try:
        deadline = time.monotonic() + 60
        while "safelight.launch.ranks" not in server.children():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children, run_dir = list(server.children().values()), server.run_dir
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) != 0
        assert gone(children, 1.0)
        assert not run_dir.exists()
    finally:
        server.close()
