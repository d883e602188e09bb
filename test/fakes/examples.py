"""Packages of `docs/`, built and installed as their pages say, into a directory of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools.documents import DOCS

DOTS = DOCS / "examples" / "safelight-dots"


def environment(packages: Path) -> dict[str, str]:
    """In which `pip install` asks no network and installs nothing but what it is told, into
    `packages`, where Python then finds it."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(packages),
        "PIP_TARGET": str(packages),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as the value of --build-isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }


def run(script: str, folder: Path, packages: Path) -> str:
    """A shell script in `folder`; what it printed. Raises `AssertionError` if it fails."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        check=False,
        cwd=folder,
        env=environment(packages),
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(source: Path, folder: Path) -> Path:
    """Build and install a package; the directory that has it then. Nothing is left in `source`."""
    packages = folder / "packages"
    shutil.copytree(source, folder / source.name)
    run(f"pip install ./{source.name}", folder, packages)
    return packages
