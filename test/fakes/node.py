"""Node packages for tests, installed once into a cache outside the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parents[1] / "conformance" / "clients"


def cache() -> Path:
    """Where what tests download lies."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "safelight-tests"


def packages(name: str) -> Path:
    """The directory of `clients/<name>` with its `node_modules`, as the lock file says.

    Skips the test with SAFELIGHT_OFFLINE=1 where they are not there yet; fails if npm does.
    """
    source = CLIENTS / name
    state = b"".join(path.read_bytes() for path in sorted(source.iterdir()))
    target = cache() / f"{name}-{hashlib.sha256(state).hexdigest()[:16]}"
    if not target.is_dir():
        if os.environ.get("SAFELIGHT_OFFLINE") == "1":
            pytest.skip(f"{target} is not there, and SAFELIGHT_OFFLINE=1 forbids to install it")
        _install(source, target)
    return target


def _install(source: Path, target: Path) -> None:
    """Beside its place and then renamed, so that what is there is whole."""
    if shutil.which("npm") is None:
        pytest.fail("npm is not here: install Node.js 20 or later, or set SAFELIGHT_OFFLINE=1.")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent))
    shutil.copytree(source, aside, dirs_exist_ok=True)
    command = ["npm", "ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=aside, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"npm ci failed; set SAFELIGHT_OFFLINE=1 to do without:\n{done.stderr}")
    try:
        aside.rename(target)
    except OSError:  # another run was quicker
        shutil.rmtree(aside)


def beside_packages(script: Path, name: str, directory: Path) -> Path:
    """A script of `clients/` copied to where it finds the packages of `clients/<name>`."""
    (directory / "node_modules").symlink_to(packages(name) / "node_modules")
    return Path(shutil.copy(script, directory))


def javascript(text: str, directory: Path) -> Path:
    """TypeScript as a module in `directory` that finds the packages; its path."""
    there = packages("node")
    done = subprocess.run(
        ["node", "strip.mjs"], cwd=there, input=text, capture_output=True, text=True, check=True
    )
    script = directory / "example.mjs"
    script.write_text(done.stdout)
    (directory / "node_modules").symlink_to(there / "node_modules")
    return script
