"""Models that ship inside the package.

This module imports neither PyTorch nor diffusers: it only answers where the
packaged weights are. How they were made is in :mod:`safelight.builtin.training`.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["KNOWN", "builtin_model"]

KNOWN: tuple[str, ...] = ("shapes",)


def builtin_model(name: str) -> Path:
    """Return the directory of the packaged model ``name`` (diffusers layout).

    Raises:
        ValueError: there is no built-in model of that name.
        FileNotFoundError: the model is known, but its weights were not installed.
    """
    if name not in KNOWN:
        known = ", ".join(f"builtin:{known}" for known in KNOWN)
        raise ValueError(f"unknown built-in model {name!r}; the known ones are: {known}")
    directory = Path(__file__).resolve().parent / name
    if not (directory / "model_index.json").is_file():
        raise FileNotFoundError(f"the weights of built-in model {name!r} are missing: {directory}")
    return directory
