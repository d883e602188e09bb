"""From a body of `/v1/videos` to a checked `GenerationRequest`."""

from __future__ import annotations

import math
from typing import Any

from safelight.entrypoint.body import Body
from safelight.entrypoint.openai.parsing import (
    HINTS,
    MEANINGFUL,
    Choose,
    agree,
    apply_size,
    blame_size,
    compression,
    count,
    split,
)
from safelight.entrypoint.schema import VideoBody
from safelight.errors import InvalidRequest
from safelight.manager.building import COMPRESSION, build_request
from safelight.manager.media import Media
from safelight.models.card import ModelCard
from safelight.request import GenerationRequest

REFUSED = MEANINGFUL | {
    *("aspect_ratio", "audio_reference", "audio_url", "boundary_ratio", "control_reference"),
    *("control_type", "enable_frame_interpolation", "enable_upscaling", "enhance_prompt"),
    *("resolution", "short_edge", "sound_duration", "stream", "system_prompt"),
    *("use_system_prompt", "video_path", "video_reference", "video_url"),
}
"""Fields of SGLang Diffusion and vLLM-Omni that would make another video than the one that is
made here: refused, unless they ask for nothing."""

WITHOUT_EFFECT = HINTS | {
    *("bot_task", "cache_dit_params", "cfg_gate_step", "enable_cache_dit", "enable_teacache"),
    *("frame_interpolation_exp", "frame_interpolation_model_path", "frame_interpolation_scale"),
    *("generate_sound", "generator_device", "output_path", "perf_dump_path", "profile"),
    *("response_format", "return_stage_metrics", "task_type", "upscaling_model_path"),
    *("upscaling_scale", "x264_preset"),
}


def video_request(
    body: Body,
    media: Media,
    choose: Choose,
    max_outputs: int,
    **extra: str,
) -> GenerationRequest:
    """`extra` goes into the request's. Raises `RequestError` naming the field."""
    parts = split(body, VideoBody, REFUSED, WITHOUT_EFFECT)
    own, sampling = parts.own, parts.sampling
    card = choose(own.model, "video", media)
    parts.extra.update(extra)
    if own.seconds is not None:
        parts.extra["seconds"] = str(own.seconds)
        _apply_seconds(own.seconds, sampling, card, strict=body.strict)
    if isinstance(own.seed, int):
        sampling["seed"] = own.seed
    with_size = apply_size(own.size, sampling, strict=body.strict)
    try:
        return build_request(
            card,
            own.prompt,
            sampling,
            strict=body.strict,
            output="video",
            media=media,
            seeds=own.seed if isinstance(own.seed, list) else (),
            n=count(own),
            max_outputs=max_outputs,
            compression=compression(
                own.output_quality, own.output_compression, COMPRESSION["video"]
            ),
            priority=own.priority,
            round_size=own.round_size,
            previews=own.previews,
            adapters=parts.adapters,
            extra=parts.extra,
        )
    except InvalidRequest as failure:
        raise blame_size(failure, with_size) from failure


def _apply_seconds(
    seconds: float | str, sampling: dict[str, Any], card: ModelCard, *, strict: bool
) -> None:
    """Put the frame count nearest to `seconds` into `num_frames`."""
    fps = card.fill({k: v for k, v in sampling.items() if k == "fps"}, strict=strict).fps
    near = frames_for(seconds, fps, card)
    said = f"'seconds' is {seconds} ({near} frames at {fps} per second)"
    agree("num_frames", near, sampling, given_as=said, strict=strict)


def frames_for(seconds: float | str, fps: int, card: ModelCard, *, more: int = 0) -> int:
    """The legal frame count nearest to `seconds` and `more` frames. Raises `InvalidRequest`."""
    legal = card.num_frames
    wanted = as_number(seconds) * fps + more
    if not legal.min <= round(wanted) <= legal.max:
        shortest, longest = ((bound - more) / fps for bound in (legal.min, legal.max))
        raise InvalidRequest(
            f"'seconds' is {seconds}; {card.name} makes {max(0, shortest):g} to {longest:g} "
            f"seconds at {fps} frames per second.",
            param="seconds",
        )
    return min(legal.nearest(round(wanted)), key=lambda frames: (abs(frames - wanted), -frames))


def as_number(seconds: float | str) -> float:
    """Raises `InvalidRequest`."""
    try:
        value = float(seconds)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and 0 < value < 1e6):
        raise InvalidRequest(
            f"'seconds' is {seconds!r:.80}; give a number of seconds above 0, for example 4.",
            param="seconds",
        )
    return value
