"""`safelight generate` with its real processes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from PIL import Image

from fakes import probe

PROMPT = "a red circle moving left on a black background"


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "safelight", "generate", "-p", PROMPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_files_are_written_and_named(tmp_path: Path) -> None:
    run = start(
        *("-p", "a blue square", "--n", "2", "--steps", "2", "--seed", "5"),
        *("--size", "32x32", "--num-frames", "5", "--fps", "12"),
        *("--output-path", str(tmp_path), "--output-file-name", "clip.mp4"),
    )
    out, errors = run.communicate()
    assert run.returncode == 0, errors
    lines = sorted(out.splitlines())
    assert len(lines) == 4
    for index, line in enumerate(lines, start=1):
        path, size, frames, seed, seconds = re.split(r"  ", line)
        assert path == str(tmp_path / f"clip-{index}.mp4")
        assert (size, frames) == ("32x32", "5 frames")
        assert seed == f"seed {5 + (index - 1) % 2}"
        assert re.fullmatch(r"\d+\.\d s", seconds)
        stream = probe.video(Path(path))
        assert (stream.width, stream.height, stream.fps) == (32, 32, 12)
        assert len(probe.decode(Path(path))) == 5
    assert len(list(tmp_path.iterdir())) == 4


def test_one_frame_is_a_picture_with_its_parameters(tmp_path: Path) -> None:
    run = start(
        *("--num-frames", "1", "--size", "32x32", "--num-inference-steps", "2", "--seed", "9"),
        *("-o", str(tmp_path)),
    )
    _, errors = run.communicate()
    assert run.returncode == 0, errors
    [path] = tmp_path.iterdir()
    assert path.suffix == ".png"
    with Image.open(path) as image:
        assert image.size == (32, 32)
        assert image.info["seed"] == "9"
        assert image.info["prompt"] == PROMPT


def test_ctrl_c_cancels_and_leaves_nothing(tmp_path: Path) -> None:
    """One of ten outputs is written when it comes: the job is not whole, so that one goes too."""
    outputs = tmp_path / "outputs"
    run = start(
        *("--n", "10", "--num-frames", "1", "--steps", "50", "--max-running-samples", "1"),
        *("-o", str(outputs), "--log-level", "debug"),
    )
    assert run.stderr is not None
    while "wrote" not in (said := run.stderr.readline()):
        assert said, "it ended before it had written anything"
    assert outputs.exists()
    run.send_signal(signal.SIGINT)
    out, _ = run.communicate()
    assert run.returncode == 130
    assert out == ""
    assert not outputs.exists()
    assert processes_of(run.pid) == []


def processes_of(session: int) -> list[str]:
    """Command lines of Safelight processes that name the ended command as their parent."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it has just ended
                continue
            if "--parent" in words and words[words.index("--parent") + 1] == str(session):
                found.append(" ".join(words))
    return found
