"""The process as the supervisor starts it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fakes.engine_peer import EnginePeer
from fakes.supervisor import Supervised, supervised
from safelight import config as configuration
from safelight.config import EngineConfig
from safelight.wire import messages as m


def config(data: Path, **settings: Any) -> EngineConfig:
    return configuration.build({"data_dir": str(data), "port": 0, **settings})


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread, for the peer."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


class Peer:
    """An `EnginePeer` for synchronous tests."""

    def __init__(self, run_dir: Path, loop: asyncio.AbstractEventLoop, automatic: bool) -> None:
        self.peer = EnginePeer(run_dir, automatic=automatic)
        self._loop = loop

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


@contextlib.contextmanager
def engine(
    child: Supervised, loop: asyncio.AbstractEventLoop, *, automatic: bool = True
) -> Iterator[Peer]:
    peer = Peer(child.run_dir, loop, automatic)
    peer.call(peer.peer.start())
    try:
        yield peer
    finally:
        peer.call(peer.peer.close())


def test_it_is_ready_when_it_listens_and_leaves_when_told(
    tmp_path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    with supervised("safelight.entrypoint", config(tmp_path)) as child, engine(child, loop):
        ready = child.wait_ready()
        assert (ready.process, ready.pid) == ("entrypoint", child.process.pid)
        with httpx2.Client(base_url=ready.detail, timeout=30) as client:
            assert client.get("/v1/models").json()["data"][0]["id"] == "shapes"
            assert client.get("/health/live").status_code == 200
        child.process.send_signal(signal.SIGINT)  # the terminal's; the supervisor answers it
        child.say(m.Stop(grace=5.0))
        assert child.process.wait(30) == 0


def test_a_stop_lets_a_waiting_answer_finish(
    tmp_path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    with (
        supervised("safelight.entrypoint", config(tmp_path)) as child,
        engine(child, loop, automatic=False) as engine_side,
    ):
        url = child.wait_ready().detail
        answers: list[httpx2.Response] = []

        def ask() -> None:
            body = {"prompt": "a cat"}
            answers.append(httpx2.post(f"{url}/v1/images/generations", json=body, timeout=60))

        client = threading.Thread(target=ask)
        client.start()
        (spec,) = engine_side.call(engine_side.peer.submitted())
        child.say(m.Stop(grace=40.0))
        host, port = url.removeprefix("http://").split(":")
        _until_refused(host, int(port))
        engine_side.call(engine_side.peer.deliver(spec))
        client.join()
        assert answers[0].status_code == 200
        assert child.process.wait(30) == 0


def _until_refused(host: str, port: int) -> None:
    while True:
        try:
            socket.create_connection((host, port)).close()
        except ConnectionRefusedError:
            return


def test_killed_and_started_again_it_goes_on_with_its_jobs(
    tmp_path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    with (
        supervised("safelight.entrypoint", config(tmp_path)) as child,
        engine(child, loop, automatic=False) as engine_side,
    ):
        url = child.wait_ready().detail
        video = httpx2.post(f"{url}/v1/videos", json={"prompt": "a cat"}, timeout=30).json()
        (spec,) = engine_side.call(engine_side.peer.submitted())
        assert spec.attempt == 1
        child.process.kill()
        child.process.wait()
    with (
        supervised("safelight.entrypoint", config(tmp_path)) as child,
        engine(child, loop, automatic=False) as engine_side,
    ):
        url = child.wait_ready().detail
        (spec,) = engine_side.call(engine_side.peer.submitted())
        assert (spec.id, spec.attempt) == (f"{video['id']}.0", 2)
        child.say(m.PeerRestarted(process="scheduler"))
        (spec,) = engine_side.call(engine_side.peer.submitted())
        assert spec.attempt == 3
        engine_side.call(engine_side.peer.deliver(spec))
        engine_side.call(engine_side.peer.next(m.Written))
        done = httpx2.get(f"{url}/v1/videos/{video['id']}").json()
        assert done["status"] == "completed"


def test_a_data_directory_in_use_is_told_by_the_exit_status(
    tmp_path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    with supervised("safelight.entrypoint", config(tmp_path)) as first, engine(first, loop):
        first.wait_ready()
        with supervised("safelight.entrypoint", config(tmp_path)) as second:
            assert second.process.wait(60) == 2


def test_a_taken_port_is_told_by_the_exit_status(
    tmp_path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = config(tmp_path, port=port)
        with supervised("safelight.entrypoint", settings) as child, engine(child, loop):
            assert child.process.wait(60) == 1
