"""`safelight batch` when whoever makes the files is gone."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from safelight.cli import app
from safelight.cli.batch import command
from safelight.cli.batch.backend import Lost, Made
from safelight.cli.batch.lines import Item, read
from safelight.cli.batch.local import LocalEngine
from safelight.cli.batch.results import File
from safelight.config import build
from safelight.engine import Engine


class Dying:
    """Makes one file, then nothing more."""

    def __init__(self, *, interrupted: bool = False) -> None:
        """`interrupted`: it makes nothing, and whoever waits presses Ctrl-C."""
        self.asked = 0
        self.interrupted = interrupted

    async def open(self, items: Sequence[Item]) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """As if Ctrl-C were pressed again meanwhile."""
        if self.interrupted:
            signal.raise_signal(signal.SIGINT)
            await asyncio.Event().wait()

    async def make(self, item: Item, directory: Path) -> Made:
        self.asked += 1
        if self.interrupted:
            signal.raise_signal(signal.SIGINT)
            await asyncio.Event().wait()
        if self.asked > 1:
            raise Lost("The engine has stopped.")
        path = directory / "a.png"
        path.touch()
        return Made((File(path=str(path)),), None)


def written(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"prompt": str(i)}) + "\n" for i in range(count)))
    return path


def test_what_is_left_when_the_engine_dies_is_left_for_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dying = Dying()
    monkeypatch.setattr(command, "_backend", lambda *_: dying)
    source, to = written(tmp_path / "in.jsonl", 50), tmp_path / "out"
    words = ["batch", "--input", str(source), "--output-path", str(to), "--in-flight", "1"]
    assert app.run(words) == 1
    out, errors = capsys.readouterr()
    assert dying.asked == 2
    assert "1 made, 0 failed, 0 done before, 49 left" in out
    assert "safelight: The engine has stopped." in errors
    [row] = (to / "results.jsonl").read_text().splitlines()
    assert json.loads(row)["status"] == "completed"


def test_ctrl_c_pressed_twice_ends_it_like_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_backend", lambda *_: Dying(interrupted=True))
    source = written(tmp_path / "in.jsonl", 2)
    words = ["batch", "--input", str(source), "--output-path", str(tmp_path / "out")]
    assert app.run(words) == 130
    assert "0 made, 0 failed, 0 done before, 2 left" in capsys.readouterr().out


def test_an_engine_that_does_not_run_makes_nothing_more(tmp_path: Path) -> None:
    config = build({})
    backend = LocalEngine(config)
    backend._engine = Engine(config)
    [item] = read(written(tmp_path / "in.jsonl", 1), None, {})
    with pytest.raises(Lost, match="not running"):
        asyncio.run(backend.make(item, tmp_path))
    backend._engine.close()
