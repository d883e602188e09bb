"""An example of every JSON body, by the path of its route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mM8oRHAgA"
    "0wMeAAg1MCAP8AAVCJxGKTAAAAAElFTkSuQmCC"
)
"""Eight by eight pixels of one colour."""
_IMAGE = {"prompt": "A blue square on a white background", "size": "auto", "n": 1, "seed": 42}
_VIDEO = {"prompt": "A red circle moving left on a black background", "seed": 42}
_EDIT = {"prompt": "The same at night", "image": _PICTURE}
_ADAPTER = {"lora_name": "watercolour", "lora_weight": 0.8}

EXAMPLES: Mapping[str, dict[str, Any]] = {
    "/apply-lora": _ADAPTER,
    "/generate": _IMAGE | {"num_frames": 1, "num_inference_steps": 4, "include_stats": True},
    "/load-model": {},
    "/openai/deployments/{model}/images/edits": _EDIT,
    "/openai/deployments/{model}/images/generations": _IMAGE,
    "/remove-lora": {"lora_name": "watercolour"},
    "/v1/images/edits": _EDIT | {"response_format": "b64_json"},
    "/v1/images/generations": _IMAGE | {"response_format": "b64_json"},
    "/v1/images/variations": {"image": _PICTURE, "n": 1},
    "/v1/merge_lora_weights": {"target": "all", "strength": 0.8},
    "/v1/models/load": {"model": "shapes"},
    "/v1/models/unload": {"model": "shapes"},
    "/v1/set_lora": {"lora_nickname": "watercolour", "target": "all", "strength": 0.8},
    "/v1/unmerge_lora_weights": {},
    "/v1/videos": _VIDEO,
    "/v1/videos/edits": {"prompt": "The same circle, but green", "video": {"id": "video_1"}},
    "/v1/videos/extensions": {
        "prompt": "The circle goes on",
        "video": {"id": "video_1"},
        "seconds": 2,
    },
    "/v1/videos/sync": _VIDEO,
    "/v1/videos/{video_id}/remix": {"prompt": "The same circle, but green"},
    "/v1/webhook_endpoints": {
        "name": "jobs",
        "url": "https://receiver.example/hook",
        "event_types": ["video.completed", "video.failed"],
    },
    "/v1/webhook_endpoints/{webhook_endpoint_id}": {"name": "all jobs"},
    "/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret": {
        "keep_old_secret_active_for_24_hours": True
    },
    "/v1/webhook_endpoints/{webhook_endpoint_id}/test": {"event_type": "video.completed"},
}
