"""What a file says of how its weights are to be used: peft takes it as it is, so it is read first.

Some of what peft can be told changes the model's own weights (`init_lora_weights: olora`), adds
layers to it, or is a regular expression.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig

HARMLESS = frozenset(
    (
        *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "fan_in_fan_out"),
        *("inference_mode", "lora_alpha", "lora_bias", "lora_dropout", "peft_type"),
        *("peft_version", "r", "rank_pattern", "revision", "target_modules", "task_type"),
        *("use_dora", "use_rslora"),
    )
)
"""Fields of peft's `LoraConfig` that say how the weights were trained, and no more."""

OFF: tuple[Any, ...] = (None, False, "none", 0, {}, [])
STARTS = (True, False, "gaussian")
"""Of `init_lora_weights`: what only fills the adapter, before the file's weights do."""

_NAME = re.compile(r"\^?[\w.\-]+\$?")


def complaint(told: Mapping[str, str] | None) -> str:
    """What of a file's metadata cannot be done, for people; empty if all can."""
    text = (told or {}).get(LORA_ADAPTER_METADATA_KEY)
    if not text:
        return ""
    try:
        fields = json.loads(text)
    except ValueError:
        return "its metadata are no JSON"
    if not isinstance(fields, dict):
        return "its metadata are no JSON object"
    wrong = (key for key, value in fields.items() if not _fits(key.rpartition(".")[2], value))
    return f"its metadata ask for {key}, which is not done" if (key := next(wrong, "")) else ""


def _fits(field: str, value: Any) -> bool:
    if field == "init_lora_weights":
        return value in STARTS
    if field in ("rank_pattern", "alpha_pattern"):
        return isinstance(value, dict) and all(map(_NAME.fullmatch, value))
    if field == "target_modules" and isinstance(value, str):
        return _NAME.fullmatch(value) is not None  # a regular expression, if it were more
    return field in HARMLESS or value in OFF or value == _usual().get(field)


@cache
def _usual() -> dict[str, Any]:
    """What peft does by itself."""
    return dict(LoraConfig().to_dict())
