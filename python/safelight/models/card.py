"""The model card: what a model can do, its defaults and limits. Needs no torch.

The entrypoint checks requests against it before anything is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from safelight import fields
from safelight.errors import ConfigError, InvalidRequest, UnknownField
from safelight.request import Sampling, Task


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Inclusive bounds and a grid: legal values are `min + k * step`."""

    min: int
    max: int
    step: int = 1

    def __contains__(self, value: int) -> bool:
        return self.min <= value <= self.max and (value - self.min) % self.step == 0

    def nearest(self, value: int) -> tuple[int, ...]:
        """The one or two legal values around `value`."""
        low = self.min + max(0, min(value, self.max) - self.min) // self.step * self.step
        return (low,) if low == value or low + self.step > self.max else (low, low + self.step)

    def around(self, value: int, reach: int) -> range:
        """The legal values at most `reach` steps from a legal one."""
        first = max(self.min, value - reach * self.step)
        return range(first, min(self.max, value + reach * self.step) + 1, self.step)

    def narrowed(self, low: int, high: int) -> Range:
        """The part of the range within [low, high], on the same grid."""
        first = self.min + max(0, math.ceil((low - self.min) / self.step)) * self.step
        return Range(first, min(high, self.max), self.step)


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One model as clients see it."""

    name: str
    family: str
    path: str
    tasks: tuple[Task, ...]
    defaults: dict[str, Any]
    """Values of `Sampling` fields that a request leaves out (without `seed`)."""
    width: Range
    height: Range
    num_frames: Range
    max_tokens: int
    """Most transformer tokens of one sample."""
    patch: tuple[int, int, int]
    """Frames, rows and columns of pixels behind one transformer token (time as the VAE
    compresses it: the first frame stands alone)."""
    shards: int = 1
    """Ranks that share the tokens of one sample."""
    even_shards: bool = False
    """Whether they must get equally many."""

    def tokens(self, sampling: Sampling) -> int:
        """Transformer tokens of one forward of one sample: the cost model's unit."""
        time, rows, columns = self.patch
        latent_frames = (sampling.num_frames - 1) // time + 1
        return latent_frames * (sampling.height // rows) * (sampling.width // columns)

    def batch_key(self, sampling: Sampling) -> str:
        """Samples with equal keys may share a forward, at whatever steps they are."""
        return (
            f"{self.name}/{sampling.num_frames}x{sampling.height}x{sampling.width}"
            f"/{sampling.max_sequence_length}"
        )

    def resolve(self, values: Mapping[str, Any], *, strict: bool = True) -> Sampling:
        """A full `Sampling` from what the user gave; the card's defaults fill the rest.

        Raises `UnknownField` or `InvalidRequest` with the field, the value and what would fit.
        """
        known = [f.name for f in fields.declared(Sampling)]
        fields.refuse_unknown(values, known, what="sampling parameter", error=UnknownField)
        given = {key: value for key, value in values.items() if value is not None}
        sampling = fields.convert(Sampling, {**self.defaults, **given}, strict=strict)
        self.check(sampling)
        return sampling

    def check(self, sampling: Sampling) -> None:
        """Raise `InvalidRequest` unless this model can make it."""
        for name in ("width", "height", "num_frames"):
            legal: Range = getattr(self, name)
            value: int = getattr(sampling, name)
            if value not in legal:
                near = " or ".join(str(v) for v in legal.nearest(value))
                raise InvalidRequest(
                    f"'{name}' is {value}; {self.name} takes {legal.min} to {legal.max} in steps "
                    f"of {legal.step}. Nearest: {near}.",
                    param=name,
                )
        if (tokens := self.tokens(sampling)) > self.max_tokens:
            raise InvalidRequest(
                f"{_described(sampling)} is {tokens} tokens; {self.name} takes at most "
                f"{self.max_tokens}. Ask for fewer frames or a smaller size.",
                param="size",
            )
        self._check_shards(sampling, tokens)

    def _check_shards(self, sampling: Sampling, tokens: int) -> None:
        """That the ranks can share the tokens as the layout wants them shared."""
        if self._shares(tokens):
            return
        how = "evenly " if self.even_shards else ""
        near = " or ".join(f"{w}x{h}" for w, h in self._sizes_that_share(sampling))
        raise InvalidRequest(
            f"{_described(sampling)} is {tokens} tokens, which {self.shards} ranks "
            f"(--ulysses-degree × --ring-degree) cannot share {how}here. Nearest sizes that "
            f"fit: {near or 'none; change num_frames'}.",
            param="size",
        )

    def _shares(self, tokens: int) -> bool:
        return tokens >= self.shards and not (self.even_shards and tokens % self.shards)

    def _sizes_that_share(self, sampling: Sampling) -> list[tuple[int, int]]:
        """The legal sizes of as many frames nearest to the one asked for, at most three."""
        reach = self.shards + 1
        found = []
        for width in self.width.around(sampling.width, reach):
            for height in self.height.around(sampling.height, reach):
                size = msgspec.structs.replace(sampling, width=width, height=height)
                tokens = self.tokens(size)
                if tokens <= self.max_tokens and self._shares(tokens):
                    distance = abs(width - sampling.width) + abs(height - sampling.height)
                    found.append((distance, (width, height)))
        return [size for _, size in sorted(found)[:3]]


def _described(sampling: Sampling) -> str:
    frames = "1 frame" if sampling.num_frames == 1 else f"{sampling.num_frames} frames"
    return f"{sampling.width}x{sampling.height} with {frames}"


class CardOverrides(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`safelight.json` in a model directory: what its author knows better than the family."""

    name: str | None = None
    defaults: dict[str, Any] = {}
    limits: dict[str, tuple[int, int]] = {}
    """`width`, `height`, `num_frames` -> [least, most]."""

    @staticmethod
    def read(directory: Path) -> CardOverrides:
        path = directory / "safelight.json"
        if not path.is_file():
            return CardOverrides()
        try:
            return msgspec.json.decode(path.read_bytes(), type=CardOverrides)
        except msgspec.DecodeError as failure:
            raise ConfigError(f"{path} is not valid: {failure}") from failure

    def apply(self, card: ModelCard) -> ModelCard:
        ranges = {}
        for name, bounds in self.limits.items():
            if name not in ("width", "height", "num_frames"):
                raise ConfigError(f"safelight.json limits '{name}', which has no range.")
            ranges[name] = getattr(card, name).narrowed(*bounds)
            if ranges[name].min > ranges[name].max:
                raise ConfigError(f"safelight.json leaves no legal '{name}'.")
        return msgspec.structs.replace(card, defaults={**card.defaults, **self.defaults}, **ranges)
