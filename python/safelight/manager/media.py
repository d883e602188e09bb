"""Input pictures: judged by their first bytes and their header, decoded only then, kept as pixels.

What a stranger sends is decoded here, once, within limits; ranks and the output manager see bare
pixels of our own. The decoder's own words are for the log, never for the client.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageOps

from safelight import log
from safelight.errors import InvalidRequest
from safelight.request import Inputs, Picture

logger = log.get(__name__)

MAGIC = {
    "PNG": (b"\x89PNG\r\n\x1a\n", 0),
    "JPEG": (b"\xff\xd8\xff", 0),
    "WEBP": (b"WEBP", 8),
}
"""Format -> bytes, and where they stand (RFC 2083, ITU T.81, Google's WebP container)."""

MAX_SIDE = 16_384  # pixels
MAX_SCANS = 256
"""Of a JPEG: encoders write about ten. Every one is a pass over the whole picture, and a file of a
few bytes a scan would take hours. Of an animation, of which only the first is taken: its frames."""
MAX_SEGMENTS = 4096  # of a JPEG

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd9-\xfe]")
"""In a JPEG, what is not data, a restart or filling (ITU T.81, B.1.1)."""
_END_OF_JPEG, _START_OF_SCAN = 0xD9, 0xDA
_FRAMES = {"PNG": b"fcTL", "WEBP": b"ANMF"}
_END_OF_PNG = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_PADDING = b"\x00\r\n "
_FOREIGN = ((b"PK\x05\x06", -66_000, None), (b"%PDF-", 0, 1024))
"""What makes a file a ZIP archive or a PDF, too, and the part of the file where it does."""
_ORIENTATION = 0x0112  # Exif 2.3, section 4.6.4
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_BROKEN = (
    *(OSError, ValueError, SyntaxError, LookupError, TypeError, ArithmeticError, EOFError),
    *(struct.error, zlib.error),
)
"""What Pillow raises for files that are not what their first bytes say."""


@dataclass(frozen=True)
class Decoded:
    """One picture as bare pixels."""

    pixels: bytes
    width: int
    height: int
    mode: Literal["RGB", "L"]
    digest: str

    def picture(self, path: str) -> Picture:
        return Picture(
            path=path,
            width=self.width,
            height=self.height,
            mode=self.mode,
            digest=self.digest,
        )


@dataclass(frozen=True)
class Media:
    """The decoded pictures of a request."""

    images: tuple[Decoded, ...] = ()
    mask: Decoded | None = None
    transparent: Decoded | None = None
    """A mask made of the first image's transparent parts, if it has any."""

    def inputs(self, job_id: str, *, inpaints: bool = False) -> Inputs:
        """How the job's request names them, relative to the content store.

        `inpaints`: whether the model takes a mask; then transparency is one (OpenAI, images/edits).
        """
        images = tuple(d.picture(f"{job_id}/input-{i}.raw") for i, d in enumerate(self.images))
        mask = self._mask(inpaints)
        path = f"{job_id}/mask.raw"
        return Inputs(images=images, mask=None if mask is None else mask.picture(path))

    def files(self, inputs: Inputs) -> dict[str, bytes]:
        """The pixels by the paths of `inputs`."""
        found = {
            picture.path: decoded.pixels
            for picture, decoded in zip(inputs.images, self.images, strict=True)
        }
        mask = self._mask(True)
        if inputs.mask is not None and mask is not None:
            found[inputs.mask.path] = mask.pixels
        return found

    def _mask(self, inpaints: bool) -> Decoded | None:
        return self.mask or (self.transparent if inpaints else None)


NONE = Media()

Upload = tuple[str, bytes]
"""The field by which a file came, for errors, and the file."""


def decode(images: Sequence[Upload], mask: bytes | None, *, max_pixels: int) -> Media:
    """The pictures of a request, `max_pixels` in all. Raises `InvalidRequest` naming the field."""
    opened = [(_open(data, name), name) for name, data in images]
    if mask is not None:
        opened.append((_open(mask, "mask"), "mask"))
    pixels = sum(picture.width * picture.height for picture, _ in opened)
    if pixels > max_pixels:
        raise InvalidRequest(
            f"The input pictures have {pixels} pixels in all; this server takes {max_pixels} "
            "(--max-input-pixels). Send smaller ones.",
            param=opened[0][1],
            code="image_too_large",
        )
    loaded = [_upright(picture, name) for picture, name in opened]
    if mask is not None:
        loaded, white = loaded[:-1], _as_mask(loaded[-1])
    else:
        white = None
    clear = _transparency(loaded[0]) if loaded else None
    return Media(
        images=tuple(_decoded(picture.convert("RGB")) for picture in loaded),
        mask=None if white is None else _decoded(white),
        transparent=None if clear is None else _decoded(clear),
    )


def _open(data: bytes, name: str) -> Image.Image:
    """The picture with only its header read."""
    kind = next(
        (k for k, (magic, at) in MAGIC.items() if data[at : at + len(magic)] == magic), None
    )
    if kind is None:
        raise InvalidRequest(
            f"'{name}' is not a PNG, JPEG or WebP picture.", param=name, code="invalid_image"
        )
    _check_whole(data, kind, name)
    try:
        picture = Image.open(io.BytesIO(data), formats=(kind,))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as failure:
        # Pillow's own limit, by the header.
        raise InvalidRequest(
            f"'{name}' has too many pixels; send a smaller picture.",
            param=name,
            code="image_too_large",
        ) from failure
    except _BROKEN as failure:
        raise _broken(name, kind, failure) from failure
    if max(picture.size) > MAX_SIDE:
        raise InvalidRequest(
            f"'{name}' is {picture.width}x{picture.height}; at most {MAX_SIDE} pixels a side.",
            param=name,
            code="image_too_large",
        )
    return picture


def _check_whole(data: bytes, kind: str, name: str) -> None:
    """Raises `InvalidRequest` for a file that is something else beside a picture, or that is made
    to be decoded for hours. Phones put films behind their JPEGs, so those may go on."""
    if (_scans(data) if kind == "JPEG" else data.count(_FRAMES[kind])) > MAX_SCANS:
        raise InvalidRequest(
            f"'{name}' has more than {MAX_SCANS} scans or frames; send a single picture.",
            param=name,
            code="invalid_image",
        )
    if _goes_on(data, kind) or any(magic in data[start:end] for magic, start, end in _FOREIGN):
        raise InvalidRequest(
            f"'{name}' is a {kind} file with something else in it; send the picture alone.",
            param=name,
            code="invalid_image",
        )


def _scans(data: bytes) -> int:
    """Of a JPEG, without those of the thumbnail inside or the film behind it."""
    at, scans = 2, 0
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or found[0][1] == _END_OF_JPEG:
            return scans
        scans += found[0][1] == _START_OF_SCAN
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return MAX_SCANS + 1


def _goes_on(data: bytes, kind: str) -> bool:
    """Whether there is something behind the picture's end."""
    if kind == "PNG":
        end = data.rfind(_END_OF_PNG)
        return end >= 0 and bool(data[end + len(_END_OF_PNG) :].strip(_PADDING))
    if kind == "WEBP":  # its length is in its header
        return bool(data[8 + int.from_bytes(data[4:8], "little") :].strip(_PADDING))
    return False


def _upright(picture: Image.Image, name: str) -> Image.Image:
    """Decoded, and turned as its camera held it."""
    kind = picture.format or "picture"
    try:
        picture.load()
    except _BROKEN as failure:
        raise _broken(name, kind, failure) from failure
    if (turn := _TURNS.get(_orientation(picture))) is not None:
        picture = picture.transpose(turn)
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        picture = picture.point(lambda value: value * (1 / 256)).convert("L")
    return picture


def _orientation(picture: Image.Image) -> int:
    """1 if it is not said, or not readably: that spoils no picture."""
    try:
        said = picture.getexif().get(_ORIENTATION, 1)
    except (*_BROKEN, UserWarning) as failure:
        logger.info("the EXIF of a picture cannot be read", reason=str(failure))
        return 1
    return said if isinstance(said, int) else 1


def _broken(name: str, kind: str, failure: Exception) -> InvalidRequest:
    logger.info("a picture cannot be decoded", field=name, reason=str(failure))
    return InvalidRequest(
        f"'{name}' is a broken {kind} file: it ends early or is not what its header says.",
        param=name,
        code="invalid_image",
    )


def _as_mask(picture: Image.Image) -> Image.Image:
    """White is what is made anew: what is transparent, or, in an opaque picture, what is white."""
    return _transparency(picture) or picture.convert("L")


def _transparency(picture: Image.Image) -> Image.Image | None:
    """The inverse of the alpha channel; None if nothing is transparent."""
    if not picture.has_transparency_data:
        return None
    alpha = picture.convert("RGBA").getchannel("A")
    lowest, _ = alpha.getextrema()
    return ImageOps.invert(alpha) if lowest < 255 else None  # type: ignore[operator]


def _decoded(picture: Image.Image) -> Decoded:
    mode: Literal["RGB", "L"] = "L" if picture.mode == "L" else "RGB"
    return decoded_pixels(picture.tobytes(), picture.size, mode)


def decoded_pixels(
    pixels: bytes, size: tuple[int, int], mode: Literal["RGB", "L"] = "RGB"
) -> Decoded:
    """Pixels that are our own already: uint8, in rows of a picture of `size` (width, height)."""
    return Decoded(pixels, *size, mode, hashlib.sha256(pixels).hexdigest())
