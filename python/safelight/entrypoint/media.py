"""Serving finished files."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send

from safelight.entrypoint import envelope
from safelight.errors import NotFound
from safelight.manager.events import JobView
from safelight.manager.manager import RequestManager
from safelight.store.jobs import Output
from safelight.store.tables import Status


class MediaResponse(FileResponse):
    """A file, whole or by ranges; a range that cannot be served is an error like all others."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _known(Headers(scope=scope).get("if-none-match"), self.headers["etag"]):
            kept = {name: self.headers[name] for name in ("etag", "last-modified")}
            await Response(status_code=304, headers=kept)(scope, receive, send)
            return
        refused: Message | None = None

        async def send_unless_refused(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] >= 400:
                refused = message
            elif refused is None:
                await send(message)

        await super().__call__(scope, receive, send_unless_refused)
        if refused is not None:
            text = "The Range header asks for what the file does not have."
            size = self.headers["content-length"]
            headers = {"content-range": f"bytes */{size}"} if refused["status"] == 416 else None
            answer = envelope.from_status(refused["status"], text, headers)
            await answer(scope, receive, send)


def _known(given: str | None, etag: str) -> bool:
    """Whether an `If-None-Match` names the tag (RFC 9110, 13.1.2: weak tags compare equal)."""
    tags = [tag.strip().removeprefix("W/") for tag in (given or "").split(",")]
    return etag in tags or "*" in tags


def finished_output(view: JobView, index: int) -> Output:
    """Output `index` of the job. Raises `NotFound` with a code that says why it is not there."""
    if view.status is not Status.COMPLETED:
        raise _not_there(view)
    if not 0 <= index < len(view.outputs):
        raise NotFound(
            f"'index' is {index}; {view.id} has {len(view.outputs)} outputs, counted from 0.",
            param="index",
        )
    return view.outputs[index]


async def media_response(manager: RequestManager, view: JobView, index: int) -> MediaResponse:
    """Output `index` of the job. Raises `NotFound` with a code that says why it is not there."""
    output = finished_output(view, index)
    path = Path(output.path)
    stat: os.stat_result = await asyncio.to_thread(manager.content_store.stat, path)
    return MediaResponse(
        path,
        media_type=output.media_type,
        filename=name_of(view, index) + path.suffix,
        content_disposition_type="inline",
        stat_result=stat,
        headers={"etag": f'"{output.sha256}"'},
    )


def name_of(view: JobView, index: int) -> str:
    """What a client may call the file, without its extension."""
    return view.id if len(view.outputs) == 1 else f"{view.id}-{index}"


def _not_there(view: JobView) -> NotFound:
    if view.status.final:
        text = f"{view.id} has no content: {view.error_message}"
        return NotFound(text, code=view.error_code or "failed")
    return NotFound(
        f"{view.id} is {view.status} ({view.progress}%); its content is there when it is "
        "completed.",
        code="not_ready",
    )
