"""`safelight batch` with its real processes: killed, interrupted, gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from fakes.server import serving

LINES = 10
STILL = ("--num-frames", "1", "--num-inference-steps", "20", "--size", "32x32")


def write(path: Path, count: int = LINES) -> Path:
    rows = [{"id": f"line-{i}", "prompt": "a red circle", "seed": i} for i in range(count)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def start(source: Path, to: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "safelight", "batch", "--input", str(source)),
            *("--output-path", str(to), "--device", "cpu", "--cpu-threads", "1", *flags),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(run: subprocess.Popen[str]) -> tuple[str, str]:
    out, errors = run.communicate()
    return out, errors


def until_written(run: subprocess.Popen[str], files: int) -> None:
    """Until so many files have been written; `run` logs at debug level."""
    assert run.stderr is not None
    while files:
        said = run.stderr.readline()
        assert said, "it ended before"
        files -= "wrote" in said


def results(to: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (to / "results.jsonl").read_text().splitlines()]


def check_whole(to: Path) -> None:
    """Every line is done exactly once, and its file is a picture of that line."""
    rows = results(to)
    assert sorted(row["id"] for row in rows) == sorted(f"line-{i}" for i in range(LINES))
    for row in rows:
        assert row["status"] == "completed"
        with Image.open(to / f"{row['id']}.png") as picture:
            picture.load()
            assert picture.info["seed"] == row["id"].removeprefix("line-")
    assert len(list(to.iterdir())) == LINES + 1


def test_killed_half_way_and_resumed_each_line_is_done_once(tmp_path: Path) -> None:
    source, to = write(tmp_path / "in.jsonl"), tmp_path / "out"
    flags = (*STILL, "--in-flight", "2", "--log-level", "debug")
    run = start(source, to, *flags)
    until_written(run, 4)
    os.killpg(run.pid, signal.SIGKILL)
    finish(run)
    before = {row["id"] for row in results(to)}
    assert 0 < len(before) < LINES
    kept = {name: (to / f"{name}.png").stat().st_mtime_ns for name in before}

    refused = start(source, to, *STILL)
    assert "Give --resume" in finish(refused)[1]
    assert refused.returncode == 2

    again = start(source, to, *STILL, "--resume")
    out, errors = finish(again)
    assert again.returncode == 0, errors
    assert f"{LINES - len(before)} made, 0 failed, {len(before)} done before, 0 left" in out
    check_whole(to)
    assert kept == {name: (to / f"{name}.png").stat().st_mtime_ns for name in before}


def test_ctrl_c_stops_it_and_it_can_be_resumed(tmp_path: Path) -> None:
    source, to = write(tmp_path / "in.jsonl"), tmp_path / "out"
    run = start(source, to, *STILL, "--in-flight", "2", "--log-level", "debug")
    until_written(run, 3)
    run.send_signal(signal.SIGINT)
    out, _ = finish(run)
    assert run.returncode == 130
    assert " left: " in out
    assert " 0 left: " not in out
    made = len(results(to))

    again = start(source, to, *STILL, "--resume")
    out, errors = finish(again)
    assert again.returncode == 0, errors
    assert f"{made} done before" in out
    check_whole(to)


def test_a_file_that_cannot_be_written_fails_its_line_alone(tmp_path: Path) -> None:
    source, to = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text('{"id": "a", "prompt": "a"}\n{"id": "b", "prompt": "b"}\n')
    (to / "a.png" / "in-the-way").mkdir(parents=True)
    run = start(source, to, *STILL)
    _, errors = finish(run)
    assert run.returncode == 1, errors
    codes = {row["id"]: row["error"] and row["error"]["code"] for row in results(to)}
    assert codes == {"a": "write_failed", "b": None}


def test_wrong_lines_are_named_before_a_process_starts(tmp_path: Path) -> None:
    source, to = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text('{"prompt": "a"}\n{"prompt": "b", "width": 65}\n{"prompt": "c", "n": 99}\n')
    run = start(source, to, "--log-level", "debug")
    out, errors = finish(run)
    assert (run.returncode, out) == (2, "")
    assert "line 2: 'width' is 65; shapes takes 32 to 128" in errors
    assert "line 3: 'n' is 99" in errors
    assert "ready" not in errors
    assert list(to.iterdir()) == []


def test_a_running_server_makes_them(tmp_path: Path) -> None:
    source, to = write(tmp_path / "in.jsonl"), tmp_path / "out"
    with serving(tmp_path / "data") as server:
        run = start(source, to, *STILL, "--server", server.base_url)
        _, errors = finish(run)
    assert run.returncode == 0, errors
    check_whole(to)
