"""Messages to bytes and back: MessagePack, through typed decoders that refuse everything else."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from safelight.errors import WireError

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    return _encoder.encode(message)


class Decoder(Generic[M]):
    """Decodes one union and nothing else."""

    def __init__(self, union: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(union)

    def __call__(self, data: bytes) -> M:
        """Raises `WireError` for bytes that are not a message of this union."""
        try:
            return self._decoder.decode(data)
        except msgspec.DecodeError as failure:
            raise WireError(f"Refused a message of {len(data)} bytes: {failure}") from failure
