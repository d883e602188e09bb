"""Thumbnails and spritesheets of finished videos: made when they are first asked for, then kept
beside the video."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safelight.entrypoint.media import MediaResponse, finished_output, name_of
from safelight.errors import GenerationFailed, InvalidRequest
from safelight.manager.events import JobView
from safelight.manager.manager import RequestManager
from safelight.output import clips, writing
from safelight.store.content import ContentStore
from safelight.store.jobs import Output

VARIANTS: Mapping[str, tuple[str, str]] = {
    "thumbnail": ("thumbnail.webp", "image/webp"),
    "spritesheet": ("spritesheet.jpg", "image/jpeg"),
}
"""What each is called beside its video, and its media type."""

# Decoding takes a core: of all who ask at once, two are served at a time.
DECODERS = ThreadPoolExecutor(2, thread_name_prefix="clips")


async def response(
    manager: RequestManager, view: JobView, index: int, variant: str
) -> MediaResponse:
    """A picture of output `index`. Raises `InvalidRequest` for a variant that there is not,
    `NotFound` if there is no such output (yet), `GenerationFailed` if it cannot be read."""
    if variant not in VARIANTS:
        known = ", ".join(f"'{name}'" for name in ("video", *VARIANTS))
        raise InvalidRequest(f"'variant' is {variant!r:.80}; there are {known}.", param="variant")
    output = finished_output(view, index)
    name, media_type = VARIANTS[variant]
    store = manager.content_store
    path = store.beside(Path(output.path), name)
    work = asyncio.get_running_loop().run_in_executor(DECODERS, _make, store, output, path, variant)
    await work
    return MediaResponse(
        path,
        media_type=media_type,
        filename=f"{name_of(view, index)}.{name}",
        content_disposition_type="inline",
        stat_result=await asyncio.to_thread(store.stat, path),
        headers={"etag": f'"{output.sha256[:32]}-{variant}"'},
    )


def _make(store: ContentStore, output: Output, path: Path, variant: str) -> None:
    """In a thread: decodes the video, unless that was done before."""
    source = Path(output.path)
    store.stat(source)
    if path.exists():
        return
    try:
        _write(output, source, path, variant)
    except GenerationFailed:
        store.stat(source)  # deleted meanwhile: there is no such file, and nothing is wrong
        raise
    finally:
        if not source.exists():  # and nothing of it must stay
            store.discard(path)


def _write(output: Output, source: Path, path: Path, variant: str) -> None:
    size = (output.width, output.height)
    if variant == "thumbnail":
        writing.write(path, lambda to: clips.thumbnail(source, to, size=size))
    else:
        frames = output.num_frames
        writing.write(path, lambda to: clips.spritesheet(source, to, frames=frames, size=size))
