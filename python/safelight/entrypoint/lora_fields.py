"""The adapters that a body asks for, from the fields of any dialect."""

from __future__ import annotations

from safelight.entrypoint.schema import LoraFields
from safelight.errors import InvalidRequest
from safelight.manager.wanted import IN_FORCE, named, wanted
from safelight.request import Adapter


def adapters_of(own: LoraFields, *, strict: bool) -> tuple[Adapter, ...]:
    """By their names. Raises `InvalidRequest`."""
    fields = {"lora": own.lora, "loras": own.loras, "lora_name": own.lora_name}
    given = [name for name, value in fields.items() if value not in (None, "")]
    if len(given) > 1:
        raise InvalidRequest(
            f"'{given[0]}' and '{given[1]}' both say which adapters; give one of them.",
            param=given[1],
        )
    if not given:
        return IN_FORCE
    if own.lora_name:
        scale = 1.0 if own.lora_weight is None else own.lora_weight
        return (named(own.lora_name, scale, param="lora_name"),)
    return wanted(fields[given[0]], strict=strict)
