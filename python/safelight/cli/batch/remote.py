"""A batch made by a running server, ours or another that speaks OpenAI's protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import msgspec

from safelight.cli import naming
from safelight.cli.batch import lines
from safelight.cli.batch.backend import PATIENCE, Made, picture
from safelight.cli.batch.lines import Item
from safelight.cli.batch.results import File
from safelight.cli.generate import compression_of
from safelight.errors import (
    ConfigError,
    GenerationFailed,
    InvalidRequest,
    Overloaded,
    SafelightError,
    Unavailable,
)
from safelight.manager.wanted import wanted
from safelight.output import writing
from safelight.request import TASKS, MediaFormat, Output

T = TypeVar("T")

_POLL_MS = 1000  # if the server does not say
_HOLD_S = 30  # how long ours may hold an answer
_CONNECT_S = 10.0
_STOP_S = 10.0  # how long an interrupted batch waits for a server to hear of it
# Making a picture takes as long as it takes: only connecting has a limit.
_MAKING = httpx2.Timeout(None, connect=_CONNECT_S)
# Asking how far a video is does not; places among the connections do.
_ASKING = httpx2.Timeout(_HOLD_S + 60, connect=_CONNECT_S, pool=None)
_MAGIC: Mapping[bytes, MediaFormat] = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpeg",
    b"RIFF": "webp",
}
_DONE = "completed"
_BUSY = (429, 502, 503, 504)
_GONE = 404


class _Image(msgspec.Struct, frozen=True):
    b64_json: bytes | None = None
    url: str | None = None


class _Images(msgspec.Struct, frozen=True):
    data: list[_Image]
    seeds: list[int | None] | None = None
    model: str | None = None


class _Fault(msgspec.Struct, frozen=True):
    message: str | None = None
    code: str | int | None = None


class _Video(msgspec.Struct, frozen=True):
    id: str
    status: str
    error: _Fault | None = None
    seed: int | None = None
    num_frames: int | None = None
    model: str | None = None


class _Model(msgspec.Struct, frozen=True):
    id: str
    tasks: list[str] = []
    """Of ours; others do not say."""


class _Models(msgspec.Struct, frozen=True):
    data: list[_Model]


class RemoteServer:
    """Lines as requests to a server."""

    def __init__(self, url: str, api_key: str | None, source: Path) -> None:
        """`source` is where the lines are from."""
        root = url.rstrip("/").removesuffix("/v1")
        headers = {b"authorization": b"Bearer " + api_key.encode()} if api_key else {}
        try:
            self._client = httpx2.AsyncClient(base_url=root, headers=headers, timeout=_MAKING)
        except (httpx2.InvalidURL, ValueError) as failure:
            raise ConfigError(f"--server {url} is no URL: {failure}", param="server") from failure
        self._url = url
        self._source = source
        self._tasks: dict[str, Sequence[str]] = {}
        self._begun: dict[str, str] = {}
        """Line -> the video that the server is making of it: one that was lost sight of is looked
        for again, not made again."""

    async def open(self, items: Sequence[Item]) -> None:
        """Ask what it serves, and read the pictures once: the rest is the server's to judge.

        Raises `ConfigError`, also if it is not there or refuses the key.
        """
        await self._ask()
        wrong = await asyncio.to_thread(_unreadable, items)
        lines.refuse(self._source, wrong)

    async def _ask(self) -> None:
        try:
            reply = await self._client.get("/v1/models", timeout=_ASKING)
        except (httpx2.HTTPError, httpx2.InvalidURL) as failure:
            reason = str(failure) or type(failure).__name__
            raise ConfigError(
                f"--server {self._url} cannot be reached: {reason}", param="server"
            ) from failure
        if reply.status_code != 200:
            raise ConfigError(
                f"--server {self._url} answers {reply.status_code}: {_message(reply)}",
                param="server",
            )
        self._tasks = {model.id: model.tasks for model in _read(reply, _Models).data}

    async def close(self) -> None:
        await self._client.aclose()

    async def make(self, item: Item, directory: Path) -> Made:
        try:
            if self._kind(item) == "video":
                return await self._video(item, directory)
            return await self._images(item, directory)
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as failure:
            raise GenerationFailed("The server names no address of a picture.") from failure
        except httpx2.HTTPError as failure:
            reason = str(failure) or type(failure).__name__
            raise Unavailable(f"{self._url} cannot be reached: {reason}") from failure

    def _kind(self, item: Item) -> Output:
        """As the line says, else as the server's model does: videos where it makes them."""
        if item.kind is not None:
            return item.kind
        named = item.line.model
        tasks = [t for name, all in self._tasks.items() if named in (None, name) for t in all]
        wanted = TASKS["video"][1 if item.options.image_path else 0]
        return "video" if wanted in tasks else "image"

    # ----------------------------------------------------------------------------------- pictures

    async def _images(self, item: Item, directory: Path) -> Made:
        uploads = await asyncio.to_thread(_uploads, item)
        route = "/v1/images/edits" if uploads else "/v1/images/generations"
        body = {**_body(item, "image"), "n": item.options.n, "response_format": "b64_json"}
        answer = _read(await self._send(route, body, uploads), _Images)
        made = len(answer.data)
        if made != item.options.n:
            raise GenerationFailed(f"The server made {made} of {item.options.n} images.")
        contents = [await self._content(one) for one in answer.data]
        extension = naming.extension_of(_format(contents[0]))
        said = answer.seeds or ()
        seeds = said if len(said) == made else [None] * made
        paths = [directory / name for name in item.names(extension)]
        for path, content in zip(paths, contents, strict=True):
            await asyncio.to_thread(_write, path, content)
        files = (File(path=str(p), seed=s) for p, s in zip(paths, seeds, strict=True))
        return Made(tuple(files), answer.model)

    async def _content(self, image: _Image) -> bytes:
        if image.b64_json is not None:
            return image.b64_json
        if image.url is None:
            raise GenerationFailed("The server sent neither a picture nor its address.")
        return await self._fetched(image.url)

    async def _fetched(self, url: str) -> bytes:
        """A file, wherever the server keeps it; the key is the server's alone."""
        request = self._client.build_request("GET", url, timeout=_ASKING)
        if _origin(request.url) != _origin(self._client.base_url):
            request.headers.pop("authorization", None)
        return _checked(await self._client.send(request, follow_redirects=True)).content

    # ------------------------------------------------------------------------------------- videos

    async def _video(self, item: Item, directory: Path) -> Made:
        if item.options.n > 1:
            raise InvalidRequest("A server makes one video a request: write more lines.", param="n")
        if item.id not in self._begun:
            self._begun[item.id] = await self._begin(item)
        video_id = self._begun[item.id]
        try:
            video = await self._ended(item, video_id)
        except asyncio.CancelledError:
            await asyncio.shield(self._stop(video_id))
            raise
        if video.status != _DONE:
            error = video.error or _Fault()
            raise GenerationFailed(error.message or "The video failed.", code=_code(error))
        content = await self._fetched(f"/v1/videos/{video_id}/content")
        [name] = item.names(".mp4")
        await asyncio.to_thread(_write, directory / name, content)
        file = File(path=str(directory / name), seed=video.seed, num_frames=video.num_frames)
        return Made((file,), video.model)

    async def _begin(self, item: Item) -> str:
        """The id of its video. Cancelled, it waits for the answer, so as to stop that one too."""
        asking = asyncio.ensure_future(self._create(item))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            with contextlib.suppress(SafelightError, httpx2.HTTPError, TimeoutError):
                await self._stop(await asyncio.wait_for(asking, _STOP_S))
            raise

    async def _create(self, item: Item) -> str:
        uploads = await asyncio.to_thread(_uploads, item, "input_reference")
        return _read(await self._send("/v1/videos", _body(item, "video"), uploads), _Video).id

    async def _stop(self, video_id: str) -> None:
        """As far as the server can be reached: nobody waits for it any longer."""
        with contextlib.suppress(httpx2.HTTPError, TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self._client.delete(f"/v1/videos/{video_id}")

    async def _ended(self, item: Item, video_id: str) -> _Video:
        """The video once it has; held by a server that can, polled as it says otherwise."""
        headers = {"prefer": f"wait={_HOLD_S}"}
        while True:
            reply = await self._client.get(
                f"/v1/videos/{video_id}", headers=headers, timeout=_ASKING
            )
            if reply.status_code == _GONE:
                del self._begun[item.id]
                raise Unavailable("The server has forgotten the video.")
            video = _read(_checked(reply), _Video)
            if video.status not in ("queued", "in_progress"):
                return video
            if "preference-applied" not in reply.headers:
                await asyncio.sleep(_number(reply, "openai-poll-after-ms", _POLL_MS) / 1000)

    async def _send(
        self, route: str, body: Mapping[str, Any], uploads: Sequence[tuple[str, tuple[str, bytes]]]
    ) -> httpx2.Response:
        if not uploads:
            return _checked(await self._client.post(route, json=body))
        form = {k: v if isinstance(v, str) else json.dumps(v) for k, v in body.items()}
        return _checked(await self._client.post(route, data=form, files=list(uploads)))


# ---------------------------------------------------------------------------------------- requests


def _body(item: Item, kind: Output) -> dict[str, Any]:
    """The fields of the request, but for its pictures; what the line leaves out the server fills
    in."""
    own = item.options
    body: dict[str, Any] = {"prompt": item.line.prompt, **item.sampling}
    if {"width", "height"} <= body.keys():
        # Other servers know no width; ours takes both.
        body["size"] = f"{body['width']}x{body['height']}"
    told = {
        "model": item.line.model,
        "output_format": item.line.output_format if kind == "image" else None,
        "output_compression": compression_of(own, kind),
        "priority": own.priority or None,
        "round_size": own.round_size or None,
        "lora": [{"name": one.name, "scale": one.scale} for one in wanted(own.lora)] or None,
    }
    return body | {name: value for name, value in told.items() if value is not None}


def _uploads(item: Item, name: str = "image") -> list[tuple[str, tuple[str, bytes]]]:
    """(field, (file name, content)) of its pictures. Raises `InvalidRequest`."""
    found = [(name, one) for one in item.options.image_path]
    if item.options.mask_path is not None:
        found.append(("mask", item.options.mask_path))
    field = f"{name}[]" if len(item.options.image_path) > 1 else name
    return [(field if n == name else n, (_name(one), _bytes(one))) for n, one in found]


def _name(source: str) -> str:
    return "picture" if source.startswith("data:") else Path(source).name


def _unreadable(items: Sequence[Item]) -> list[str]:
    """A sentence for each line with a picture that cannot be read."""
    wrong = []
    for item in items:
        try:
            _uploads(item)
        except InvalidRequest as failure:
            wrong.append(f"line {item.number}: {failure.message}")
    return wrong


def _bytes(source: str) -> bytes:
    data = picture(source)
    if isinstance(data, bytes):
        return data
    try:
        return Path(data).read_bytes()
    except OSError as failure:
        raise InvalidRequest(
            f"The image {data} cannot be read: {failure.strerror}.", param="image"
        ) from failure


# ----------------------------------------------------------------------------------------- answers


def _checked(reply: httpx2.Response) -> httpx2.Response:
    """Raises what a client of it may do: ask again, or give up."""
    if reply.is_success:
        return reply
    message = f"{reply.status_code}: {_message(reply)}"
    if reply.status_code in _BUSY:
        raise Overloaded(message, retry_after_s=_number(reply, "retry-after", PATIENCE))
    raise _Refused(message, code=_code(_error(reply)))


def _number(reply: httpx2.Response, header: str, default: int) -> int:
    """Of up to nine digits; the default for anything else."""
    said = reply.headers.get(header, "")
    return int(said) if said.isdecimal() and len(said) < 10 else default


class _Refused(SafelightError):
    """What the server said to a request."""


def _message(reply: httpx2.Response) -> str:
    return _error(reply).message or reply.text[:300] or reply.reason_phrase


class _Envelope(msgspec.Struct, frozen=True):
    error: _Fault


def _error(reply: httpx2.Response) -> _Fault:
    try:
        return msgspec.json.decode(reply.content, type=_Envelope).error
    except msgspec.DecodeError:
        return _Fault()


def _code(error: _Fault) -> str | None:
    return None if error.code is None else str(error.code)


def _read(reply: httpx2.Response, kind: type[T]) -> T:
    try:
        # Not strict: the numbers of some servers are strings.
        return msgspec.json.decode(reply.content, type=kind, strict=False)
    except msgspec.DecodeError as failure:
        raise GenerationFailed(f"The server's answer cannot be read: {failure}.") from failure


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _format(content: bytes) -> MediaFormat:
    """By the first bytes: not every server does as it is asked."""
    for magic, format in _MAGIC.items():
        if content.startswith(magic):
            return format
    raise GenerationFailed("The server sent something else than a picture.")


def _write(path: Path, content: bytes) -> None:
    writing.write(path, lambda temporary: _fill(temporary, content))


def _fill(path: Path, content: bytes) -> None:
    path.write_bytes(content)
