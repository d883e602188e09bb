"""From a body of `/v1/images` to a checked `GenerationRequest`."""

from __future__ import annotations

from safelight.entrypoint.body import Body
from safelight.entrypoint.openai.parsing import (
    HINTS,
    MEANINGFUL,
    Choose,
    apply_size,
    blame_size,
    compression,
    count,
    split,
)
from safelight.entrypoint.schema import ImageBody
from safelight.errors import InvalidRequest
from safelight.manager.building import build_request
from safelight.manager.media import Media
from safelight.request import DEFAULT_PRESET, GenerationRequest

REFUSED = MEANINGFUL | {
    *("bot_task", "enable_upscaling", "enhance_prompt", "layers", "markup", "system_prompt"),
    *("use_system_prompt",),
}
"""Ignoring one of these would give another image than the one that was asked for."""

WITHOUT_EFFECT = HINTS | {
    *("cache_dit_params", "cfg_gate_step", "enable_cache_dit", "enable_teacache"),
    *("frame_duration_ms", "generator_device", "output_path", "perf_dump_path", "profile"),
    *("return_stage_metrics", "upscaling_model_path", "upscaling_scale"),
}


def image_request(
    body: Body, media: Media, choose: Choose, max_outputs: int, *, needs_prompt: bool = True
) -> tuple[GenerationRequest, ImageBody]:
    """`needs_prompt`: whether an empty one is refused. Raises `RequestError` naming the field."""
    parts = split(body, ImageBody, REFUSED, WITHOUT_EFFECT)
    own = parts.own
    _check_ways(own)
    card = choose(own.model, "image", media)
    if isinstance(own.seed, int):
        parts.sampling["seed"] = own.seed
    with_size = apply_size(own.size, parts.sampling, strict=body.strict)
    try:
        request = build_request(
            card,
            own.prompt,
            parts.sampling,
            strict=body.strict,
            output="image",
            media=media,
            seeds=own.seed if isinstance(own.seed, list) else (),
            format=own.output_format,
            n=count(own),
            max_outputs=max_outputs,
            compression=compression(
                own.output_quality, own.output_compression, DEFAULT_PRESET["image"]
            ),
            priority=own.priority,
            round_size=own.round_size,
            previews=own.partial_images,
            needs_prompt=needs_prompt,
            adapters=parts.adapters,
            extra=parts.extra,
        )
    except InvalidRequest as failure:
        raise blame_size(failure, with_size) from failure
    return request, own


def _check_ways(own: ImageBody) -> None:
    if own.background == "transparent":
        raise InvalidRequest(
            "'background' is transparent; this server's models paint every pixel. Leave it out, or "
            "give auto or opaque.",
            param="background",
            code="unsupported_parameter",
        )
    if own.stream and own.respond_async:
        raise InvalidRequest(
            "'stream' waits for the images and 'async' does not: give one of them. Events of an "
            "asynchronous job are at /v1/images/{id}/events.",
            param="async",
        )
