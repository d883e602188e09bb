"""Whether a provider of sequence-parallel attention can be used. Needs no torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from packaging.version import Version

XFUSER = (0, 7)
"""The minor version of xfuser that `xfuser_backend` is written against."""


def refusal(backend: str, device: str) -> str | None:
    """Why `--sequence-parallel-backend` cannot be `backend`, with what would do; None if it may.

    `device` is as in `--device`: what "auto" and "cuda" find can be said only with torch, in
    `xfuser_backend.available`.
    """
    if backend != "xfuser":
        return None
    if device == "cpu":
        return refused("needs CUDA: it does not run with --device cpu")
    return _package()


def refused(why: str) -> str:
    """The sentence that says so."""
    return f"--sequence-parallel-backend xfuser {why}; use --sequence-parallel-backend diffusers."


def _package() -> str | None:
    """What is missing of the packages. flash-attn is not: xfuser falls back to torch's kernels."""
    wanted = ".".join(map(str, XFUSER))
    install = "pip install 'safelight[xfuser]'"
    try:
        version = importlib.metadata.version("xfuser")
    except importlib.metadata.PackageNotFoundError:
        return refused(f"needs its package, which is not installed: {install}")
    if Version(version).release[:2] != XFUSER:
        return refused(f"needs xfuser {wanted}, and {version} is installed: {install}")
    if importlib.util.find_spec("triton") is None:
        return refused(f"needs Triton, which xfuser does not install: {install}")
    return None
