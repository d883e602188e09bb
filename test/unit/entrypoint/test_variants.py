"""A picture of a video that is deleted while the picture is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from safelight.entrypoint.openai import variants
from safelight.errors import NotFound
from safelight.store.content import ContentStore
from safelight.store.jobs import Output


@pytest.mark.parametrize("written", [False, True])
def test_nothing_stays_of_a_video_that_is_deleted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    store = ContentStore(tmp_path)
    store.prepare("video_1")
    video = store.place("video_1", 0, "mp4")
    video.write_bytes(b"")

    def thumbnail(source: Path, to: Path, **_: Any) -> None:
        store.delete("video_1")
        if written:  # the directory is there again
            to.parent.mkdir()
            to.write_bytes(b"RIFF")

    monkeypatch.setattr(variants.clips, "thumbnail", thumbnail)
    output = Output(
        sample="video_1.0",
        path=str(video),
        media_type="video/mp4",
        nbytes=0,
        sha256="",
        width=16,
        height=16,
        num_frames=1,
    )
    path = store.beside(video, "thumbnail.webp")
    if written:
        variants._make(store, output, path, "thumbnail")
    else:
        with pytest.raises(NotFound):
            variants._make(store, output, path, "thumbnail")
    assert list(tmp_path.iterdir()) == []
