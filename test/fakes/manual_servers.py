"""What the examples of the manuals run against: servers, pictures, adapters, tiny checkpoints.

The servers are `fakes.stack.running`: real HTTP, manager and store over an `EnginePeer` that makes
real files at once. So sizes and steps are those that are printed, which a CPU would take hours for.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
from PIL import Image

from fakes import manuals
from fakes.adapters import adapter
from fakes.engine_peer import CARD
from fakes.stack import Stack, running
from safelight.models.card import ModelCard, Range

PICTURES = msgspec.structs.replace(
    CARD,
    name="FLUX.1-dev",
    family="flux",
    tasks=("text-to-image", "image-to-image", "inpainting"),
    parameters=("negative_prompt", "guidance_scale", "max_sequence_length", "strength"),
    max_images=16,
    defaults={
        "width": 512,
        "height": 512,
        "num_frames": 1,
        "num_inference_steps": 25,
        "guidance_scale": 3.5,
        "max_sequence_length": 512,
    },
    width=Range(256, 1536, 16),
    height=Range(256, 1536, 16),
    num_frames=Range(1, 1),
    max_tokens=100_000,
    patch=(1, 16, 16),
)
VIDEOS = msgspec.structs.replace(
    CARD,
    name="Wan2.1-T2V-1.3B-Diffusers",
    tasks=("text-to-video", "image-to-video"),
    max_images=1,
    defaults={**CARD.defaults, "width": 832, "height": 480, "num_frames": 49, "fps": 16},
    width=Range(256, 1280, 16),
    height=Range(256, 1280, 16),
    num_frames=Range(1, 81, 4),
    max_tokens=1_000_000,
)
EXPERTS = ("transformer", "transformer_2")
_NAMED: Mapping[str, ModelCard] = {
    "pictures": PICTURES,
    "second": PICTURES,
    "videos": VIDEOS,
    "two-experts": msgspec.structs.replace(VIDEOS, name="Wan2.2-T2V-A14B-Diffusers"),
}
_UPLOADS = ("input.png", "local_input_image.png", "input_image.png", "input.jpg")
_REMOTE = ("dog.png", "frisbee.png", "cat.jpg", "input_image.png")
_ADAPTERS = ("lora", "lora1", "lora2", "style", "character", "A", "B", "A/A", "B/B", "model")
_LIGHTNING = ("Qwen-Image-Lightning-8steps-V1.0-bf16", "Qwen-Image-Lightning-8steps-V1.1-bf16")


def card_named(server: str) -> ModelCard:
    """The card of a server of the data: one of those above, or pictures under that very name."""
    return _NAMED.get(server) or msgspec.structs.replace(PICTURES, name=server)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests read what is printed."""


@contextmanager
def files_served(directory: Path) -> Iterator[str]:
    """The address of a file server of `directory`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def draw(path: Path) -> None:
    """A small picture, of the format that its name says."""
    pixels = np.random.default_rng(5).integers(0, 256, (256, 256, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def draw_mask(path: Path) -> None:
    """Transparent in its middle."""
    mask = Image.new("RGBA", (256, 256), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (64, 64, 192, 192))
    mask.save(path)


def write_adapters(directory: Path) -> None:
    """Every adapter that an example names."""
    for seed, name in enumerate((*_ADAPTERS, *_LIGHTNING)):
        adapter(directory / f"{name}.safetensors", seed)


def write_index(directory: Path) -> Path:
    """As much of a pipeline of two experts as tells what adapters can change; its directory."""
    directory.mkdir()
    parts = {name: ["diffusers", "WanTransformer3DModel"] for name in EXPERTS}
    index = {"_class_name": "WanPipeline", **parts}
    (directory / "model_index.json").write_text(json.dumps(index), "utf-8")
    return directory


class World:
    """Everything that an example may name; servers start when they are first asked for."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self._root, self._stack = root, stack
        self._servers: dict[str, Stack] = {}
        self.loras = root / "loras"
        (root / "remote").mkdir()
        for name in _REMOTE:
            draw(root / "remote" / name)
        write_adapters(self.loras)
        self.files = stack.enter_context(files_served(root / "remote"))

    def server(self, name: str) -> Stack:
        if name not in self._servers:
            data = self._root / f"data-{len(self._servers)}"
            settings: dict[str, Any] = {"fetch_urls": True, "fetch_private": True}
            if name == "two-experts":
                settings["model_path"] = str(write_index(self._root / "experts"))
            serving = running(data, card=card_named(name), **settings)
            self._servers[name] = self._stack.enter_context(serving)
        return self._servers[name]

    def client(self, name: str) -> httpx2.Client:
        return httpx2.Client(base_url=self.server(name).base_url, timeout=60.0)

    def values(self, server: str, needs: str = "{second}") -> dict[str, str]:
        """What stands for `{...}` in a text that `needs` some of it."""
        values = {
            "first": self.server(server).base_url,
            "files": self.files,
            "loras": str(self.loras),
        }
        if "second" in needs or ":8001" in needs:
            values["second"] = self.server("second").base_url
        if "video_id" in needs or "VIDEO_ID" in needs:
            values["video_id"] = self._made(server, "videos", "videos")
        if "image_id" in needs or "IMAGE_ID" in needs:
            values["image_id"] = self._made(server, "images/generations", "images")
        return values | {"model_id": card_named(server).name}

    def _made(self, server: str, route: str, kind: str) -> str:
        """The id of a finished job."""
        with self.client(server) as client:
            body = {"prompt": "a cat", "response_format": "url"}
            made = client.post(f"/v1/{route}", json=body).raise_for_status().json()
            if kind == "images":
                return str(made["data"][0]["url"].partition("/images/")[2].partition("/")[0])
            while client.get(f"/v1/videos/{made['id']}").json()["status"] != "completed":
                pass
            return str(made["id"])


@contextmanager
def world(root: Path) -> Iterator[World]:
    """All of it, until the block ends."""
    with ExitStack() as stack:
        yield World(root, stack)


def reader_files(directory: Path) -> None:
    """What the examples take for granted in the reader's directory."""
    for name in _UPLOADS:
        draw(directory / name)
    draw_mask(directory / "mask.png")


def send(world: World, endpoint: str, **changes: Any) -> httpx2.Response:
    """The request of `requests.yaml`, with fields added; what goes before it goes first.

    Keyword arguments: `fields` (values), `files` (paths), or nothing.
    """
    request = manuals.requests()[endpoint]
    for earlier in request.after:
        send(world, earlier).raise_for_status()
    values = world.values(request.server, endpoint)
    method, path = manuals.filled(endpoint.partition(" (")[0], values).split(" ")
    extra = _filled(changes.get("fields", {}), values)
    files = {name: Path(changes["cwd"], file) for name, file in request.files.items()}
    files |= {name: Path(changes["cwd"], file) for name, file in changes.get("files", {}).items()}
    with world.client(request.server) as client:
        if request.form is not None:
            form = {**request.form, **extra}
            uploads = [(n, (p.name, p.read_bytes())) for n, p in files.items()]
            return client.request(method, path, data=_texts(form), files=uploads or None)
        if request.json is None:
            return client.request(method, path)
        return client.request(method, path, json=_filled(request.json, values) | extra)


def _texts(form: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in form.items()}


def _filled(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return manuals.filled(value, values)
    if isinstance(value, dict):
        return {name: _filled(one, values) for name, one in value.items()}
    return [_filled(one, values) for one in value] if isinstance(value, list) else value
