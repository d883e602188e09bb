"""One sample's frames to its durable file, and the message that says how it went."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import GenerationFailed, SafelightError
from safelight.output import images, overlay, video, writing
from safelight.output.frames import SharedFrames, SharedSound, open_frames, open_sound
from safelight.request import Delivery, ImageFormat, MediaFormat
from safelight.wire.messages import (
    Frames,
    FromOutput,
    MediaFailed,
    MediaReady,
    PreviewReady,
)


@dataclass(frozen=True)
class Material:
    """What one file is made of; open."""

    frames: SharedFrames
    sound: SharedSound | None
    opened: ExitStack
    """Closes both."""


def open_material(message: Frames) -> Material:
    """The shared memory that a message names; pictures have no use for its sound.

    Raises `GenerationFailed`, with nothing left open, if some of it is wrong or gone.
    """
    with ExitStack() as stack:
        frames = stack.enter_context(open_frames(message.memory, message.shape))
        sound = None
        if message.sound is not None and message.delivery.format == "mp4":
            sound = stack.enter_context(open_sound(message.sound))
        return Material(frames, sound, stack.pop_all())


def deliver(message: Frames, material: Material, encoder: video.Encoder) -> FromOutput:
    """Encode and write; closes `material`. Failures become `MediaFailed`, nothing is raised."""
    try:
        with material.opened:
            if message.preview is not None:
                return _write_preview(message, message.preview, material)
            return _write(message, material, encoder)
    except SafelightError as failure:
        return failed(message.sample, message.attempt, failure, message.preview)


def failed(
    sample: str, attempt: int, failure: SafelightError, preview: int | None = None
) -> MediaFailed:
    code = failure.code or "encode_failed"
    return MediaFailed(
        sample=sample, attempt=attempt, code=code, message=failure.message, preview=preview
    )


def _write(message: Frames, material: Material, encoder: video.Encoder) -> MediaReady:
    delivery, frames = message.delivery, material.frames
    path = _path(delivery)
    count, height, width, _ = frames.shape
    if delivery.format == "mp4":
        width, height = video.even_size(frames)
        media_type = video.MEDIA_TYPE
        file = writing.write(
            path,
            lambda to: encoder.encode(
                frames,
                to,
                fps=delivery.fps,
                sound=material.sound,
                compression=delivery.compression,
                after=delivery.continues,
            ),
        )
        count += 0 if delivery.continues is None else delivery.continues.num_frames - 1
    else:
        media_type = images.MEDIA_TYPES[delivery.format]
        file = writing.write(path, lambda to: _picture(frames, to, delivery))
    return MediaReady(
        sample=message.sample,
        attempt=message.attempt,
        path=str(file.path),
        media_type=media_type,
        nbytes=file.nbytes,
        sha256=file.sha256,
        width=width,
        height=height,
        num_frames=count,
    )


def _write_preview(message: Frames, number: int, material: Material) -> PreviewReady:
    path = preview_path(message.delivery, number)
    format = preview_format(message.delivery.format)
    pixels = overlay.restore(material.frames.pixels()[0], message.delivery.outside)
    compression = message.delivery.compression
    file = writing.write(
        path,
        lambda to: images.encode(pixels, to, format=format, compression=compression, parameters={}),
    )
    return PreviewReady(
        sample=message.sample,
        attempt=message.attempt,
        preview=number,
        step=message.step,
        path=str(file.path),
    )


def preview_path(delivery: Delivery, number: int) -> Path:
    """Beside the finished file."""
    path = _path(delivery)
    return path.with_name(f"{path.stem}.preview-{number}.{preview_format(delivery.format)}")


def preview_format(format: MediaFormat) -> ImageFormat:
    """The picture's own, or webp for a frame of a video."""
    return "webp" if format == "mp4" else format


def _path(delivery: Delivery) -> Path:
    path = Path(delivery.path)
    if not path.is_absolute() or "\0" in delivery.path:
        raise GenerationFailed(
            f"'{delivery.path!r:.200}' is not an absolute path.", code="write_failed"
        )
    return path


def _picture(frames: SharedFrames, target: Path, delivery: Delivery) -> None:
    if delivery.format == "mp4" or frames.shape[0] != 1:
        raise GenerationFailed(
            f"{frames.shape[0]} frames do not fit a {delivery.format} file; mp4 takes them.",
            code="bad_frames",
        )
    images.encode(
        overlay.restore(frames.pixels()[0], delivery.outside),
        target,
        format=delivery.format,
        compression=delivery.compression,
        parameters=delivery.parameters,
    )
