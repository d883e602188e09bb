"""A video is begun with a picture, made again and continued, through all processes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fakes import probe
from fakes.cases import Checkpoints
from fakes.pipelines import CASES
from fakes.server import Server, serving

pytestmark = pytest.mark.timeout(600)
ASKED = {"size": "64x64", "num_frames": "5", "num_inference_steps": "2", "fps": "8", "seed": "7"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, checkpoints: Checkpoints) -> Iterator[Server]:
    case = next(c for c in CASES if (c.name, c.task) == ("Wan 2.1 I2V", "image-to-video"))
    data = tmp_path_factory.mktemp("derived") / "data"
    with serving(data, "--model-path", str(checkpoints.of(case))) as server:
        yield server


def picture() -> bytes:
    out = io.BytesIO()
    coarse = np.random.default_rng(2).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(out, "png")
    return out.getvalue()


def finished(server: Server, path: str, **request: Any) -> dict[str, Any]:
    answer = server.client.post(f"/v1/videos{path}", **request)
    assert answer.status_code == 200, answer.text
    video = server.wait(str(answer.json()["id"]), timeout=300)
    assert video["status"] == "completed", video
    return video


def file_of(server: Server, video: dict[str, Any], path: Path) -> Path:
    content = server.client.get(f"/v1/videos/{video['id']}/content")
    assert content.status_code == 200, content.text
    path.write_bytes(content.content)
    return path


def test_one_video_leads_to_another(server: Server, tmp_path: Path) -> None:
    files = {"input_reference": ("first.png", picture(), "image/png")}
    source = finished(server, "", data={"prompt": "it moves", **ASKED}, files=files)
    first = file_of(server, source, tmp_path / "first.mp4")

    again = finished(server, f"/{source['id']}/remix", json={"prompt": "it moves"})
    assert file_of(server, again, tmp_path / "again.mp4").read_bytes() == first.read_bytes()
    other = finished(server, f"/{source['id']}/remix", json={"prompt": "it turns"})
    assert file_of(server, other, tmp_path / "other.mp4").read_bytes() != first.read_bytes()

    body = {"prompt": "it goes on", "video": {"id": source["id"]}, "num_frames": 9}
    extended = finished(server, "/extensions", json=body)
    assert extended["seconds"] == "1.625"
    path = file_of(server, extended, tmp_path / "long.mp4")
    stream = probe.video(path)
    assert (stream.codec, stream.width, stream.height, stream.fps) == ("h264", 64, 64, 8.0)
    before, after = probe.decode(first).astype(int), probe.decode(path).astype(int)
    assert len(after) == len(before) + 8
    assert np.abs(after[: len(before)] - before).mean() < 2

    thumbnail = server.client.get(f"/v1/videos/{extended['id']}/content?variant=thumbnail")
    with Image.open(io.BytesIO(thumbnail.content)) as image:
        assert (image.format, image.size) == ("WEBP", (64, 64))
        seen = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(seen - before[0]).mean() < 12
