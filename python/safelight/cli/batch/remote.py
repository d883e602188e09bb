"""A batch made by a running server, ours or another that speaks OpenAI's protocol."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

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

_POLL_MS = 1000  # if the server does not say
_HOLD_S = 30  # how long ours may hold an answer
_MAGIC: Mapping[bytes, MediaFormat] = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpeg",
    b"RIFF": "webp",
}
_DONE = "completed"
_BUSY = (429, 502, 503, 504)


class RemoteServer:
    """Lines as requests to a server."""

    def __init__(self, url: str, api_key: str | None, source: Path) -> None:
        """`source` is where the lines are from."""
        root = url.rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            # Pictures take as long as they take: only connecting has a limit.
            self._client = httpx2.AsyncClient(
                base_url=root, headers=headers, timeout=httpx2.Timeout(None, connect=10.0)
            )
        except (httpx2.InvalidURL, ValueError) as failure:
            raise ConfigError(f"--server {url} is no URL: {failure}", param="server") from failure
        self._url = url
        self._source = source
        self._tasks: dict[str, Sequence[str]] = {}

    async def open(self, items: Sequence[Item]) -> None:
        """Ask what it serves, and read the pictures once: the rest is the server's to judge.

        Raises `ConfigError`, also if it is not there or refuses the key.
        """
        await self._ask()
        wrong = await asyncio.to_thread(_unreadable, items)
        lines.refuse(self._source, wrong)

    async def _ask(self) -> None:
        try:
            reply = await self._client.get("/v1/models")
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
        models = _json(reply).get("data", [])
        self._tasks = {str(model.get("id")): model.get("tasks", ()) for model in models}

    async def close(self) -> None:
        await self._client.aclose()

    async def make(self, item: Item, directory: Path) -> Made:
        try:
            if self._kind(item) == "video":
                return await self._video(item, directory)
            return await self._images(item, directory)
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
        answer = _json(await self._send(route, body, uploads))
        data = answer.get("data") or []
        if len(data) != item.options.n:
            raise GenerationFailed(f"The server made {len(data)} of {item.options.n} images.")
        contents = [await self._content(one) for one in data]
        extension = naming.extension_of(_format(contents[0]))
        seeds = answer.get("seeds") or [None] * len(contents)
        paths = [directory / name for name in item.names(extension)]
        for path, content in zip(paths, contents, strict=True):
            await asyncio.to_thread(_write, path, content)
        files = (File(path=str(p), seed=s) for p, s in zip(paths, seeds, strict=True))
        return Made(tuple(files), answer.get("model"))

    async def _content(self, image: Mapping[str, Any]) -> bytes:
        if image.get("b64_json"):
            return base64.b64decode(image["b64_json"])
        return (_checked(await self._client.get(image["url"]))).content

    # ------------------------------------------------------------------------------------- videos

    async def _video(self, item: Item, directory: Path) -> Made:
        if item.options.n > 1:
            raise InvalidRequest("A server makes one video a request: write more lines.", param="n")
        uploads = await asyncio.to_thread(_uploads, item, "input_reference")
        video = _json(await self._send("/v1/videos", _body(item, "video"), uploads))
        try:
            video = await self._ended(str(video["id"]))
        except asyncio.CancelledError:
            await asyncio.shield(self._client.delete(f"/v1/videos/{video['id']}"))
            raise
        if video["status"] != _DONE:
            error = video.get("error") or {}
            raise GenerationFailed(
                str(error.get("message") or "The video failed."), code=error.get("code")
            )
        reply = _checked(await self._client.get(f"/v1/videos/{video['id']}/content"))
        [name] = item.names(".mp4")
        await asyncio.to_thread(_write, directory / name, reply.content)
        file = File(
            path=str(directory / name), seed=video.get("seed"), num_frames=video.get("num_frames")
        )
        return Made((file,), video.get("model"))

    async def _ended(self, video_id: str) -> dict[str, Any]:
        """The video once it has; held by a server that can, polled as it says otherwise."""
        while True:
            reply = await self._client.get(
                f"/v1/videos/{video_id}", headers={"prefer": f"wait={_HOLD_S}"}
            )
            video = _json(_checked(reply))
            if video.get("status") not in ("queued", "in_progress"):
                return video
            if "preference-applied" not in reply.headers:
                wait = reply.headers.get("openai-poll-after-ms", "")
                await asyncio.sleep((int(wait) if wait.isdecimal() else _POLL_MS) / 1000)

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
    return [(field if n == name else n, (Path(one).name, _bytes(one))) for n, one in found]


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
        after = reply.headers.get("retry-after", "")
        raise Overloaded(message, retry_after_s=int(after) if after.isdecimal() else int(PATIENCE))
    raise _Refused(message, code=_error(reply).get("code"))


class _Refused(SafelightError):
    """What the server said to a request."""


def _message(reply: httpx2.Response) -> str:
    return str(_error(reply).get("message") or reply.text[:300] or reply.reason_phrase)


def _error(reply: httpx2.Response) -> dict[str, Any]:
    try:
        found = reply.json().get("error")
    except (ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def _json(reply: httpx2.Response) -> dict[str, Any]:
    try:
        value = reply.json()
    except ValueError as failure:
        raise GenerationFailed("The server's answer is not JSON.") from failure
    if not isinstance(value, dict):
        raise GenerationFailed("The server's answer is no JSON object.")
    return value


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
