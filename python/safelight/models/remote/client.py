"""One picture from an upstream: OpenAI's `/images`, or Gemini's `generateContent`.

Sources: the OpenAI API reference (images/generations, images/edits) and the Gemini API reference
(models.generateContent with `inlineData`).
"""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import time
import zlib
from collections.abc import Mapping
from typing import Any

import httpx2
import numpy as np
from PIL import Image, ImageOps

from safelight.errors import ConfigError, GenerationFailed
from safelight.models.inputs import image
from safelight.models.remote.spec import Upstream
from safelight.request import Picture, SampleSpec

ATTEMPTS = 3
AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""
MAX_ANSWER = 64 * 2**20  # bytes
MAX_PIXELS = 2**26
_BROKEN = (
    *(OSError, ValueError, SyntaxError, LookupError, TypeError, ArithmeticError, EOFError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises for files that are not what their first bytes say, and base64."""


class Client:
    """Talks to one upstream; safe to use from several threads."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        timeout: float,
        environ: Mapping[str, str] = os.environ,
        pause: float = 1.0,
    ) -> None:
        """`timeout` is for a whole picture, in seconds, all attempts together; `pause` between two
        where the upstream names none. Raises `ConfigError` if there is no key."""
        self._upstream = upstream
        self._timeout = timeout
        self._pause = pause
        key = next((environ[name] for name in upstream.key_variables if environ.get(name)), None)
        if key is None:
            raise ConfigError(
                f"{upstream.model} at {upstream.base_url} needs a key: set "
                f"{' or '.join(upstream.key_variables)}.",
                param="model_path",
            )
        headers = (
            {"authorization": f"Bearer {key}"}
            if upstream.protocol == "openai"
            else {"x-goog-api-key": key}
        )
        self._http = httpx2.Client(headers=headers, follow_redirects=False)

    def picture(self, sample: SampleSpec) -> np.ndarray:
        """uint8 [H, W, 3]. Raises `GenerationFailed` with what the upstream said."""
        if self._upstream.protocol == "openai":
            return self._openai(sample)
        return self._gemini(sample)

    def _openai(self, sample: SampleSpec) -> np.ndarray:
        size = f"{sample.sampling.width}x{sample.sampling.height}"
        fields = {"model": self._upstream.model, "prompt": sample.prompt, "size": size, "n": 1}
        if sample.inputs.images:
            form = {name: str(value) for name, value in fields.items()}
            answer = self._post("images/edits", data=form, files=_uploads(sample))
        else:
            answer = self._post("images/generations", json=fields)
        data = answer.get("data")
        first = data[0] if isinstance(data, list) and data else {}
        if not isinstance(first, dict) or not isinstance(first.get("b64_json"), str):
            raise _unreadable("there is no b64_json in it")
        return _decoded(first["b64_json"])

    def _gemini(self, sample: SampleSpec) -> np.ndarray:
        parts: list[dict[str, Any]] = [{"text": sample.prompt}]
        for picture in sample.inputs.images:
            data = base64.b64encode(_png(image(picture))).decode("ascii")
            parts.append({"inlineData": {"mimeType": "image/png", "data": data}})
        body = {
            "contents": [{"role": "user", "parts": parts}],
            "generationConfig": {"responseModalities": ["TEXT", "IMAGE"]},
        }
        answer = self._post(f"models/{self._upstream.model}:generateContent", json=body)
        for candidate in _dicts(answer.get("candidates")):
            content = candidate.get("content")
            for part in _dicts(content.get("parts") if isinstance(content, dict) else None):
                inline = part.get("inlineData")
                if isinstance(inline, dict) and isinstance(inline.get("data"), str):
                    return _decoded(inline["data"])
        raise _unreadable("there is no picture in it")

    def _post(self, route: str, **body: Any) -> dict[str, Any]:
        """The answer's JSON object, after as many attempts as it takes."""
        deadline = time.monotonic() + self._timeout
        url = f"{self._upstream.base_url}/{route}"
        for attempt in range(1, ATTEMPTS + 1):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                with self._http.stream("POST", url, timeout=left, **body) as response:
                    data = _limited(response, deadline)
            except httpx2.RequestError as failure:
                problem = f"cannot be reached: {failure or type(failure).__name__}"
                wait = self._pause * attempt
            else:
                if response.status_code == 200:
                    return _object(data)
                problem = f"answered {response.status_code}: {_said(data)}"
                if response.status_code not in AGAIN:
                    break
                wait = _retry_after(response, self._pause * attempt)
            if attempt < ATTEMPTS:
                time.sleep(max(0.0, min(wait, deadline - time.monotonic())))
        else:
            problem = f"{problem} ({ATTEMPTS} attempts)"
        if time.monotonic() >= deadline:
            problem = f"did not answer within {self._timeout:g} s"
        raise GenerationFailed(f"{self._upstream.base_url} {problem}", code="upstream_failed")


def _uploads(sample: SampleSpec) -> list[tuple[str, tuple[str, bytes, str]]]:
    """The multipart files of an edit; of a mask, OpenAI edits what is transparent."""
    files = [
        ("image[]", (f"image-{index}.png", _png(image(picture)), "image/png"))
        for index, picture in enumerate(sample.inputs.images)
    ]
    if sample.inputs.mask is not None:
        files.append(("mask", ("mask.png", _png(_transparent(sample.inputs.mask)), "image/png")))
    return files


def _transparent(mask: Picture) -> Image.Image:
    white = image(mask)
    picture = Image.new("RGBA", white.size)
    picture.putalpha(ImageOps.invert(white))
    return picture


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _decoded(text: str) -> np.ndarray:
    try:
        picture = Image.open(
            io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG", "JPEG", "WEBP")
        )
        if picture.width * picture.height > MAX_PIXELS:
            raise _unreadable(f"the picture is {picture.width}x{picture.height}")
        return np.asarray(picture.convert("RGB"))
    except _BROKEN as failure:
        raise _unreadable("its picture is broken") from failure


def _limited(response: httpx2.Response, deadline: float) -> bytes:
    """The body. A read that takes long times out by itself; many that are short do not."""
    data = bytearray()
    for chunk in response.iter_bytes():
        data += chunk
        if time.monotonic() >= deadline:
            raise httpx2.ReadTimeout("it answers too slowly")
        if len(data) > MAX_ANSWER:
            raise _unreadable(f"it is larger than {MAX_ANSWER} bytes")
    return bytes(data)


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as failure:
        raise _unreadable("it is not JSON") from failure
    if not isinstance(value, dict):
        raise _unreadable("it is not a JSON object")
    return value


def _said(data: bytes) -> str:
    """The message of an error, from the envelope both protocols use."""
    try:
        error = _object(data).get("error")
    except GenerationFailed:
        error = None
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or data.decode("utf-8", "replace"))[:300]


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _retry_after(response: httpx2.Response, otherwise: float) -> float:
    try:
        return float(response.headers.get("retry-after", otherwise))
    except ValueError:
        return otherwise


def _unreadable(why: str) -> GenerationFailed:
    return GenerationFailed(f"The upstream's answer cannot be used: {why}.", code="upstream_failed")
