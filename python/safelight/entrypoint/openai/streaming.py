"""`stream=true` of images: partial images, then one finished image after another.

The events are OpenAI's, with the fields that the SDKs expect and no others of their own making:
unknown types would be taken for partial images. Only values are added that help with several
images: `image_index` and the seed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Literal

from starlette.responses import StreamingResponse

from safelight.entrypoint import sse
from safelight.entrypoint.openai.events import encoded
from safelight.entrypoint.waiting import raise_unless_completed
from safelight.errors import GenerationFailed
from safelight.manager.events import JobView
from safelight.manager.manager import RequestManager
from safelight.request import GenerationRequest
from safelight.store.jobs import Output
from safelight.store.journal import Preview

Kind = Literal["image_generation", "image_edit"]


def respond(
    manager: RequestManager, request: GenerationRequest, kind: Kind, answer: dict[str, Any]
) -> StreamingResponse:
    """Events of an accepted job. `answer` is what the answer to the whole says of every image
    (`size`, `output_format`, …). A client that leaves cancels the job."""
    return sse.respond(_stream(manager, request, kind, answer))


async def _stream(
    manager: RequestManager, request: GenerationRequest, kind: Kind, answer: dict[str, Any]
) -> AsyncGenerator[sse.Event]:
    try:
        async for event in manager.events(request.id):
            if event.preview is not None:
                yield await _partial(kind, event.preview, event.at, answer)
        view = await manager.job(request.id)
        raise_unless_completed(view)
        for index, output in enumerate(view.outputs):
            yield await _completed(kind, index, output, view, answer)
    finally:
        manager.abandon(request.id)  # which does nothing to a job that has ended


async def _partial(kind: Kind, preview: Preview, at: float, answer: dict[str, Any]) -> sse.Event:
    return _event(
        f"{kind}.partial_image",
        answer,
        b64_json=await encoded(Path(preview.path)) or "",
        created_at=int(at),
        partial_image_index=preview.number,
        image_index=preview.sample,
    )


async def _completed(
    kind: Kind, index: int, output: Output, view: JobView, answer: dict[str, Any]
) -> sse.Event:
    data = await encoded(Path(output.path))
    if data is None:
        raise GenerationFailed("The image was removed before it was sent.", code="content_gone")
    return _event(
        f"{kind}.completed",
        answer,
        b64_json=data,
        created_at=int(view.completed_at or view.created_at),
        image_index=index,
        seed=output.seed,
    )


def _event(name: str, answer: dict[str, Any], **data: Any) -> sse.Event:
    return sse.Event(name, {"type": name, **answer, **data})
