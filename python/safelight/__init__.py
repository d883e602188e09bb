"""Safelight serves diffusion models, one denoising step at a time.

Importing this package is cheap: nothing heavy is loaded until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Engine", "EngineConfig", "__version__", "builtin_model"]

if TYPE_CHECKING:
    from safelight.builtin import builtin_model
    from safelight.config import EngineConfig
    from safelight.engine import Engine

_HOMES = {
    "Engine": "safelight.engine",
    "EngineConfig": "safelight.config",
    "builtin_model": "safelight.builtin",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'safelight' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
