"""An example of every JSON body, by the path of its route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEElEQVR4nGNowApgJIwJAD"
    "YzC8Dw0nqSAAAAAElFTkSuQmCC"
)
"""Two by two pixels."""

EXAMPLES: Mapping[str, dict[str, Any]] = {
    "/generate": {
        "prompt": "A blue square on a white background",
        "width": 64,
        "height": 64,
        "num_frames": 1,
        "num_inference_steps": 4,
        "seed": 42,
        "include_stats": True,
    },
    "/load-model": {},
    "/v1/images/edits": {
        "prompt": "The same at night",
        "image": _PICTURE,
        "response_format": "b64_json",
    },
    "/v1/images/generations": {
        "prompt": "A blue square on a white background",
        "size": "auto",
        "n": 1,
        "seed": 42,
        "response_format": "b64_json",
    },
    "/v1/models/load": {"model": "shapes"},
    "/v1/models/unload": {"model": "shapes"},
    "/v1/videos": {
        "prompt": "A red circle moving left on a black background",
        "seed": 42,
    },
}
