"""Python clients in environments of their own, installed once into a cache outside the repository.

Their requirements contradict each other's and ours: LiteLLM wants another SDK than the tests."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import pytest

from fakes.node import CLIENTS, cache


def interpreter(name: str) -> Path:
    """The Python of `clients/<name>/requirements.txt`.

    Skips the test with SAFELIGHT_OFFLINE=1 where it is not there yet; fails if pip does.
    """
    wanted = CLIENTS / name / "requirements.txt"
    digest = hashlib.sha256(wanted.read_bytes() + sys.version.encode()).hexdigest()[:16]
    target = cache() / f"{name}-{digest}"
    if not target.is_dir():
        if os.environ.get("SAFELIGHT_OFFLINE") == "1":
            pytest.skip(f"{target} is not there, and SAFELIGHT_OFFLINE=1 forbids to install it")
        _install(wanted, target)
    return target / "bin" / "python"


def _install(wanted: Path, target: Path) -> None:
    """Beside its place and then renamed, so that what is there is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent))
    venv.create(aside, with_pip=True, symlinks=True)
    command = [aside / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"pip failed; set SAFELIGHT_OFFLINE=1 to do without:\n{done.stderr}")
    try:
        aside.rename(target)
    except OSError:  # another run was quicker
        shutil.rmtree(aside)
