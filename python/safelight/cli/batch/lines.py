"""The lines of a batch: CSV, JSONL or prompts, read and checked before anything runs.

A line has the options of `safelight generate` and the sampling parameters, under all of their
names, and those of `LineOptions`. A line of OpenAI's Batch format is read as its body.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from safelight import fields
from safelight.cli import naming, options
from safelight.cli.generate import GenerateOptions
from safelight.errors import ConfigError, InvalidRequest
from safelight.fields import Field, declared
from safelight.manager.wanted import wanted
from safelight.request import MediaFormat, Output, Sampling

Format = Literal["csv", "jsonl", "txt"]
Raw = Mapping[str, Any]

FORMATS: Mapping[str, Format] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "txt",
}
"""Extension of an input file -> how it is read."""

MAX_SHOWN = 20  # wrong lines in one message
MAX_CELL = 32 * 2**20  # characters: a picture may stand in a cell, as a data URL


class LineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a line may say beside the options of `generate`."""

    id: Annotated[
        str | None,
        Meta(
            description="By which the line is found again; by default made of what it says.",
            extra={"aliases": ("custom_id",)},
        ),
    ] = None
    prompt: Annotated[str, Meta(min_length=1, description="What to generate.")]
    model: Annotated[str | None, Meta(description="Name of one of several models.")] = None
    output: Annotated[
        Output | None, Meta(description="By default a video, where the model makes them.")
    ] = None
    output_format: Annotated[
        MediaFormat | None, Meta(description="By default mp4 for videos, png for pictures.")
    ] = None


SHARED = tuple(
    field
    for field in declared(GenerateOptions)
    if field.name not in ("prompt", "prompt_file", "output_path", "output_file_name", "save_output")
)
"""Options of `generate` that a line may have; on the command line they hold for all lines."""

FIELDS: Mapping[str, Field] = {
    field.name: field for field in (*declared(LineOptions), *SHARED, *declared(Sampling))
}
_SAMPLING = frozenset(field.name for field in declared(Sampling))

ROUTES: Mapping[str, Output] = {
    "/v1/images/generations": "image",
    "/v1/images/edits": "image",
    "/v1/videos": "video",
}
"""What of OpenAI's Batch format is understood."""


_PICTURES = ("image", "images", "input_reference", "image_reference")
"""Where OpenAI's bodies have input pictures."""


@dataclass(frozen=True)
class Item:
    """One line, typed and complete."""

    id: str
    number: int
    """Of the line in the file; the first is 1."""
    line: LineOptions
    options: GenerateOptions
    sampling: dict[str, Any]
    ignored: tuple[str, ...] = ()
    """Fields of an OpenAI body that have no meaning here."""

    @property
    def kind(self) -> Output | None:
        """What it shall become, as far as it says so."""
        if self.line.output is not None or self.line.output_format is None:
            return self.line.output or ("image" if self.sampling.get("num_frames") == 1 else None)
        return "video" if self.line.output_format == "mp4" else "image"

    @property
    def stem(self) -> str:
        """Of its files' names: the same for the same id, never that of another one."""
        digest = _digest(self.id)
        said = naming.slug(self.id)
        if said == self.id:
            return said
        return f"{said or naming.slug(self.line.prompt) or 'output'}-{digest}"

    def names(self, extension: str) -> list[str]:
        """Of its files. No stem has two dashes in a row, so an index is never part of one."""
        if self.options.n == 1:
            return [self.stem + extension]
        return [f"{self.stem}--{index}{extension}" for index in range(1, self.options.n + 1)]


def read(path: Path, format: Format | None, common: Raw) -> list[Item]:
    """The lines of a file; `common` are typed options that hold where a line says nothing else.

    Raises `ConfigError` naming every line that cannot be used, and what would fit.
    """
    found: list[Item] = []
    wrong: list[str] = []
    for number, raw in _rows(path, format or _format(path)):
        try:
            found.append(_item(number, raw, common, path.parent))
        except ConfigError as failure:
            wrong.append(f"line {number}: {failure.message}")
    wrong += _repeated(found)
    refuse(path, wrong)
    if not found:
        raise ConfigError(f"{path} has no lines.", param="input")
    return _distinct(found)


def refuse(path: Path, wrong: Sequence[str]) -> None:
    """Raise all that is wrong with a file as one `ConfigError`."""
    if not wrong:
        return
    more = len(wrong) - MAX_SHOWN
    lines = [*wrong[:MAX_SHOWN], *([f"and {more} more"] if more > 0 else [])]
    raise ConfigError(f"{path} cannot be used, nothing was run:\n  " + "\n  ".join(lines))


# ------------------------------------------------------------------------------------------ files


def _format(path: Path) -> Format:
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"--input: {path.name} does not say what it is; give --input-format csv, jsonl or "
            "txt (one prompt a line).",
            param="input_format",
        )
    return FORMATS[path.suffix.lower()]


def _rows(path: Path, format: Format) -> Iterator[tuple[int, Raw | str]]:
    """(line number, what it says, or as a text why that cannot be read)."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as failure:
        raise ConfigError(f"--input: cannot read {path}: {failure.strerror}.") from failure
    except UnicodeDecodeError as failure:
        raise ConfigError(f"--input: {path} is not UTF-8.") from failure
    if format == "csv":
        yield from _csv(text)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, {"prompt": line.strip()} if format == "txt" else _json(line)


def _csv(text: str) -> Iterator[tuple[int, Raw | str]]:
    """Columns are named by the first row; an empty cell says nothing."""
    csv.field_size_limit(MAX_CELL)
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        for row in reader:
            if None in row:
                yield reader.line_num, "there are more cells than columns"
            else:
                yield reader.line_num, {name: cell for name, cell in row.items() if cell}
    except csv.Error as failure:
        yield reader.line_num, f"it is not CSV: {failure}"


def _json(line: str) -> Raw | str:
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as failure:
        return f"it is not JSON: {failure}"
    return value if isinstance(value, dict) else "a JSON object is needed"


# ------------------------------------------------------------------------------------------ lines


def _item(number: int, raw: Raw | str, common: Raw, directory: Path) -> Item:
    if isinstance(raw, str):
        raise ConfigError(f"{raw[0].upper()}{raw[1:]}.")
    values, ignored = _unpacked(raw)
    values = {name.strip().replace("-", "_"): v for name, v in values.items() if v is not None}
    values = fields.canonical(values, FIELDS.values())
    fields.refuse_unknown(values, FIELDS, what="field", error=ConfigError)
    if "lora" in values:
        values["lora"] = _lora(values["lora"])
    own = options.layer(values, FIELDS, lambda field: field.name)
    merged = {**common, **own}
    named = {field.name for field in declared(LineOptions)}
    return Item(
        id=own.get("id") or _digest(json.dumps(values, sort_keys=True)),
        number=number,
        line=fields.convert(
            LineOptions, {k: v for k, v in merged.items() if k in named}, error=ConfigError
        ),
        options=_options(merged, named, directory),
        sampling={name: value for name, value in merged.items() if name in _SAMPLING},
        ignored=ignored,
    )


def _options(merged: Raw, named: set[str], directory: Path) -> GenerateOptions:
    """Paths of a line are relative to its file."""
    rest = {k: v for k, v in merged.items() if k not in named and k not in _SAMPLING}
    found = fields.convert(GenerateOptions, rest, error=ConfigError)
    return msgspec.structs.replace(
        found,
        image_path=[_beside(one, directory) for one in found.image_path],
        mask_path=None if found.mask_path is None else _beside(found.mask_path, directory),
    )


def _lora(value: Any) -> list[str]:
    """As on the command line; a line may also have objects, as over HTTP."""
    try:
        adapters = wanted(value)
    except InvalidRequest as failure:
        raise ConfigError(failure.message) from failure
    for one in adapters:
        if one.target != "all":
            raise ConfigError(f"'lora': a batch takes no target; leave that of {one.name} out.")
    return [f"{one.name}:{one.scale}" for one in adapters]


def _beside(path: str, directory: Path) -> str:
    if path.startswith("data:"):
        return path
    return str(directory.absolute() / Path(path).expanduser())


def _unpacked(raw: Raw) -> tuple[Raw, tuple[str, ...]]:
    """The body of a line of OpenAI's Batch format, and the fields of it that mean nothing here;
    any other line as it is. Raises `ConfigError` for a route that makes no pictures or videos."""
    if not {"body", "url"} <= raw.keys():
        return raw, ()
    if raw["url"] not in list(ROUTES) or not isinstance(raw["body"], dict):
        raise ConfigError(f"'url' is {raw['url']!r:.80}; {', '.join(ROUTES)} are understood.")
    given = dict(raw["body"])
    pictures = [one for name in _PICTURES if name in given for one in _pictures(given.pop(name))]
    known = {name for field in FIELDS.values() for name in (field.name, *field.aliases)}
    body = {name: value for name, value in given.items() if name in known}
    if body.get("size") == "auto":
        del body["size"]
    if "mask" in body:
        body["mask"] = _pictures([body["mask"]])[0]
    told = {"id": raw.get("custom_id"), "output": ROUTES[raw["url"]], "image_path": pictures}
    return {**body, **told}, tuple(sorted(given.keys() - known))


def _pictures(value: Any) -> list[str]:
    """The pictures of an OpenAI body: paths or data URLs, alone, listed, or in objects."""
    found: list[Any] = [
        one.get("image_url") or one.get("url") if isinstance(one, dict) else one
        for one in (value if isinstance(value, list) else [value])
    ]
    for one in found:
        if not isinstance(one, str) or one.startswith(("http://", "https://")):
            raise ConfigError(f"{one!r:.80} is neither the path of a picture nor a data URL.")
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _repeated(items: Sequence[Item]) -> list[str]:
    """A sentence for each line whose id another one has said before."""
    seen: dict[str, int] = {}
    wrong = []
    for item in items:
        if item.line.id is not None and seen.setdefault(item.id, item.number) != item.number:
            wrong.append(f"line {item.number}: the id '{item.id}' is that of line {seen[item.id]}.")
    return wrong


def _distinct(items: Sequence[Item]) -> list[Item]:
    """Lines that say the same are as many requests: the second has an id of its own."""
    count: Counter[str] = Counter()
    result = []
    for item in items:
        count[item.id] += 1
        again = count[item.id] > 1
        result.append(replace(item, id=f"{item.id}-{count[item.id]}") if again else item)
    return result
