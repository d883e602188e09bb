"""The janitor ends what is left and removes the run directory, whatever became of its parent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from safelight.launch.process import Janitor


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
    )


def test_another_one_takes_over_from_one_that_was_killed(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    first, second = sleeper(), sleeper()
    try:
        janitor = Janitor(run_dir)
        janitor.watch(first.pid)
        janitor._popen.kill()
        janitor._popen.wait()
        janitor.watch(second.pid)
        janitor.close()
        assert (first.wait(5), second.wait(5)) == (-9, -9)
        assert not run_dir.exists()
    finally:
        for process in (first, second):
            process.kill()
            process.wait()


def test_it_ends_the_watched_and_spares_the_forgotten(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "x.sock").touch()
    watched, forgotten = sleeper(), sleeper()
    try:
        janitor = Janitor(run_dir)
        janitor.watch(watched.pid)
        janitor.watch(forgotten.pid)
        janitor.forget(forgotten.pid)
        janitor.close()
        assert watched.wait(5) == -9
        assert forgotten.poll() is None
        assert not run_dir.exists()
    finally:
        for process in (watched, forgotten):
            process.kill()
            process.wait()
