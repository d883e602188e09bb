"""The supervisor without processes: what it leaves behind, and models that come and go."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safelight.config import build
from safelight.errors import ConfigError
from safelight.launch.process import Program
from safelight.launch.programs import Programs
from safelight.launch.supervisor import Supervisor
from safelight.wire import messages as m


@pytest.mark.parametrize(
    "settings",
    [{"num_gpus": 3, "ulysses_degree": 2}, {"device": "cpu", "gpu_ids": "0"}],
)
def test_a_refused_layout_leaves_no_directory(
    settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not tmp_path: a long path would not be used for sockets.
    with tempfile.TemporaryDirectory(prefix="safelight-test-", dir="/tmp") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        with pytest.raises(ConfigError):
            Supervisor(build({"api_key": "hush", **settings}), http=True)
        assert list(Path(base).iterdir()) == []


class Stub:
    """A process that ends when the test says so."""

    def __init__(self, program: Program) -> None:
        self.program, self.name = program, program.name
        self.ready = False
        self.retired: float | None = None
        self.killed = False
        self.last_words = "out of luck"

    def kill(self) -> None:
        """Ends later."""
        self.killed = True

    def read(self) -> list[str]:
        return []


class Host:
    """A supervisor of two models, two groups of `a` and one of `b`, and what it says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = build({"device": "cpu", "models": [{"name": "a", "dp_size": 2}, {"name": "b"}]})
        self.supervisor = Supervisor(config, http=False)
        self.processes: dict[str, Any] = self.supervisor._processes
        self.said: list[tuple[str, str]] = []
        self.lost: list[str] = []
        self.supervisor._started = True
        monkeypatch.setattr(self.supervisor, "_spawn", self._spawn)
        monkeypatch.setattr(self.supervisor, "_bury", self._bury)
        monkeypatch.setattr(self.supervisor, "_send", self._send)

    def _spawn(self, program: Program) -> None:
        self.processes[program.name] = Stub(program)

    def _bury(self, process: Any) -> int:
        del self.processes[process.name]
        return 1

    def _send(self, name: str, message: m.FromSupervisor) -> None:
        if isinstance(message, m.ModelState):
            self.said.append((message.model, message.state))
        elif isinstance(message, m.PeerRestarted) and name == "scheduler":
            self.lost.append(message.process)

    def ask(self, message: m.ToSupervisor) -> None:
        self.supervisor._react(message)

    def ready(self, *names: str) -> None:
        for name in names:
            self.ask(m.Ready(process=name, pid=1))

    def end(self, name: str) -> None:
        self.supervisor._ended(self.processes[name])


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    made = Host(monkeypatch)
    yield made
    made.processes.clear()
    made.supervisor.close()


def test_a_model_is_loaded_when_all_its_groups_are(host: Host) -> None:
    host.ask(m.LoadModel(model="a"))
    host.ready("workers-0")
    assert host.said == []
    host.ready("workers-1")
    assert host.said == [("a", "loaded")]


def test_a_model_may_be_asked_for_again_while_its_failure_is_cleared_away(host: Host) -> None:
    host.ask(m.LoadModel(model="a"))
    host.ready("workers-0")
    host.end("workers-1")
    assert host.said == [("a", "failed")]
    assert host.lost == ["workers-1"]  # the scheduler may have heard of it
    assert host.supervisor._next_deadline() is None  # else it would be killed again and again
    host.ask(m.LoadModel(model="a"))  # the other group has not ended yet
    host.end("workers-0")
    assert set(host.processes) == {"workers-0", "workers-1"}
    host.ready("workers-0", "workers-1")
    assert host.said == [("a", "failed"), ("a", "loaded")]
    assert host.lost == ["workers-1", "workers-0"]


def test_a_model_that_is_being_unloaded_is_not_said_to_be_loaded(host: Host) -> None:
    host.ask(m.LoadModel(model="b"))
    host.ready("workers-2")
    host.ask(m.UnloadModel(model="b"))
    host.said.clear()
    host.ask(m.LoadModel(model="b"))  # by a manager that has just been started
    assert host.said == []
    host.end("workers-2")
    host.ready("workers-2")
    assert host.said == [("b", "loaded")]


def test_what_is_asked_for_while_the_others_start_is_loaded_after_them(host: Host) -> None:
    """The entrypoint resubmits the jobs of an earlier server before it says that it is ready."""
    host.supervisor._started = False
    host.ask(m.LoadModel(model="b"))
    assert host.processes == {}
    host.supervisor._programs = Programs((), host.supervisor._programs.models)
    host.supervisor.start()
    assert set(host.processes) == {"workers-2"}


def test_a_new_manager_is_told_what_has_become_of_the_models_of_the_start(host: Host) -> None:
    """`a` has made room for `b`; loading it again would be one too many."""
    host.ask(m.LoadModel(model="b"))
    host.ready("workers-2")
    host.said.clear()
    host.ask(m.LoadModel(model="a", wanted=False))
    assert host.said == [("b", "loaded"), ("a", "unloaded")]
    assert set(host.processes) == {"workers-2"}


def test_models_of_the_start_are_not_said_to_be_gone_before_they_came(host: Host) -> None:
    host.supervisor._started = False
    host.ask(m.LoadModel(model="a", wanted=False))
    assert host.said == []
    assert host.supervisor._asked == set()
