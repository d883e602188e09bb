"""Bodies and answers of the OpenAI dialect, and their OpenAPI schemas.

The sampling parameters are not declared here: `request.Sampling` is, once, and every body takes
its fields at the top level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from pydantic import BaseModel

from safelight.entrypoint.encodings import in_every_encoding
from safelight.request import MAX_PREVIEWS, MAX_PROMPT, ImageFormat, Preset, Sampling

Size = Annotated[
    str | None,
    Meta(
        description="WIDTHxHEIGHT in pixels, or auto: the model's own default.",
        extra_json_schema={"pattern": r"^(auto|[0-9]{1,5}[xX][0-9]{1,5})$"},
    ),
]
Model = Annotated[
    str | None, Meta(description="Name of the model; by default the first that can do it.")
]
Prompt = Annotated[
    str,
    Meta(
        description="What to generate; 1 to 32000 characters.",
        extra_json_schema={"minLength": 1, "maxLength": MAX_PROMPT},
    ),
]
Priority = Annotated[
    int,
    Meta(
        description="-100 to 100; higher goes first.",
        extra_json_schema={"minimum": -100, "maximum": 100},
    ),
]
Count = Annotated[int, Meta(ge=1)]
OutputQuality = Annotated[
    Preset | None,
    Meta(
        description="A preset of output_compression: maximum is 100, high 90, medium 55, low 35, "
        "default 50 for videos and 75 for images."
    ),
]


RoundSize = Annotated[
    bool, Meta(description="Take the nearest size the model can make instead of refusing another.")
]
Seed = Annotated[
    int | list[int] | None,
    Meta(description="Seed of the first output, the others count on from it; or a list of seeds."),
]
File = Annotated[
    Any, Meta(description="An upload, a data URL, base64, or an object with `image_url` or `url`.")
]


class LoraFields(msgspec.Struct, frozen=True, kw_only=True):
    """The adapters of a request; without any of these fields, what is in force on the server."""

    lora: Annotated[
        Any,
        Meta(
            description="Adapters (LoRA) of this request alone: a list of objects with name, scale "
            "and target, or one of them, or a name; an empty list for none. Names are those of "
            "/v1/list_loras."
        ),
    ] = None
    loras: Annotated[Any, Meta(description="As lora.")] = None
    lora_name: Annotated[str | None, Meta(description="Name of one adapter.")] = None
    lora_weight: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None, Meta(description="Its scale; by default 1.")
    ] = None


class VideoBody(LoraFields, frozen=True, kw_only=True):
    """`POST /v1/videos`, beside the sampling parameters."""

    prompt: Prompt = ""
    model: Model = None
    size: Size = None
    seconds: Annotated[
        int | float | str | None,
        Meta(description="Length of the clip; the nearest frame count the model can make is used."),
    ] = None
    priority: Priority = 0
    input_reference: Annotated[
        File, Meta(description="Picture to begin with: an upload, a data URL or base64.")
    ] = None
    round_size: RoundSize = False
    n: Annotated[
        Count | None,
        Meta(description="How many videos to make; the content of each is named by its index."),
    ] = None
    num_outputs_per_prompt: Annotated[Count | None, Meta(description="As n.")] = None
    seed: Seed = None
    output_format: Annotated[Literal["mp4"], Meta(description="File format.")] = "mp4"
    output_quality: OutputQuality = None
    output_compression: Annotated[
        Annotated[int, Meta(ge=0, le=100)] | None,
        Meta(description="Quality of the file, whatever output_quality says; by default 50."),
    ] = None
    previews: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_PREVIEWS,
            description="Pictures of the running estimate, through the job's events.",
        ),
    ] = 0


class VideoEditBody(VideoBody, frozen=True, kw_only=True):
    """`POST /v1/videos/edits` and `/extensions`: what is not given is as it was."""

    video: Annotated[
        Any,
        Meta(description="The finished video of this server to work on: its id, or {id, index}."),
    ] = None


class ImageBody(LoraFields, frozen=True, kw_only=True, rename={"respond_async": "async"}):
    """`POST /v1/images/generations`, beside the sampling parameters."""

    prompt: Prompt = ""
    model: Model = None
    size: Size = None
    n: Annotated[Count | None, Meta(description="How many images to generate.")] = None
    num_outputs_per_prompt: Annotated[Count | None, Meta(description="As n.")] = None
    response_format: Annotated[
        Literal["b64_json", "url"] | None,
        Meta(description="How to return the images; both ways when left out."),
    ] = None
    output_format: Annotated[ImageFormat, Meta(description="File format of the images.")] = "png"
    output_quality: OutputQuality = None
    output_compression: Annotated[
        Annotated[int, Meta(ge=0, le=100)] | None,
        Meta(
            description="Quality of jpeg and webp, whatever output_quality says; by default 95. "
            "png is lossless."
        ),
    ] = None
    background: Annotated[
        Literal["auto", "opaque", "transparent"] | None,
        Meta(description="Images are opaque; transparent is refused."),
    ] = None
    priority: Priority = 0
    seed: Seed = None
    round_size: RoundSize = False
    stream: Annotated[
        bool, Meta(description="Answer with server-sent events: partial images, then the images.")
    ] = False
    partial_images: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_PREVIEWS,
            description="Pictures of the running estimate of every image, with stream (OpenAI: up "
            "to 3) or through the job's events.",
        ),
    ] = 0
    respond_async: Annotated[
        bool, Meta(description="Answer at once, with a job that is polled at /v1/images/{id}.")
    ] = False


class ImageEditBody(ImageBody, frozen=True, kw_only=True):
    """`POST /v1/images/edits`, beside the sampling parameters."""

    image: Annotated[File, Meta(description="The pictures to edit, one or several.")] = None
    mask: Annotated[
        File,
        Meta(description="Of the first picture: transparent (or white) is what is made anew."),
    ] = None


class ImageVariationBody(ImageBody, frozen=True, kw_only=True):
    """`POST /v1/images/variations`, beside the sampling parameters."""

    image: Annotated[File, Meta(description="The picture to make others like.")] = None


def body_of(body: type[msgspec.Struct]) -> dict[str, Any]:
    """OpenAPI's `requestBody` of a route that takes `body` alone."""
    _, components = msgspec.json.schema_components([body])
    return {"required": True, "content": in_every_encoding(components[body.__name__])}


def request_body(
    body: type[msgspec.Struct], *, required: Sequence[str] = ("prompt",)
) -> dict[str, Any]:
    """OpenAPI's `requestBody` of a route that takes `body` and the fields of `Sampling`."""
    _, components = msgspec.json.schema_components([body, Sampling])
    properties = components[body.__name__]["properties"]
    for name, schema in components[Sampling.__name__]["properties"].items():
        # What is left out comes from the model's card, not from the struct.
        if name in properties:
            continue
        properties[name] = {key: value for key, value in schema.items() if key != "default"}
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"required": True, "content": in_every_encoding(schema)}


# ------------------------------------------------------------------------------------- answers


class JobFailure(BaseModel):
    code: str
    message: str


class Video(BaseModel):
    """OpenAI's video object (up to `error`), then what only Safelight says."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str | None
    seconds: str
    size: str
    remixed_from_video_id: str | None
    error: JobFailure | None

    seed: int
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str
    steps_done: int
    eta: float | None = None
    """Predicted seconds until it is completed."""
    queue_position: int | None = None
    n: int = 1
    """Videos of the job; `index` names one of them."""
    seeds: list[int] = []
    """Theirs, if there are several."""
    extended_from_video_id: str | None = None
    """The video that this one continues, and begins with."""
    warnings: list[str] = []


class VideoList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Image(BaseModel):
    b64_json: str | None = None
    url: str | None = None


class ImageJob(BaseModel):
    """A request for images as a job: Safelight's own, like a video."""

    id: str
    object: Literal["image.job"] = "image.job"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None
    prompt: str
    n: int
    size: str
    output_format: ImageFormat
    data: list[Image]
    """Addresses of the images, once they are all there."""
    error: JobFailure | None
    seed: int
    seeds: list[int]
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str
    steps_done: int
    eta: float | None = None
    """Predicted seconds until it is completed."""
    queue_position: int | None = None
    warnings: list[str] = []


class ImageJobList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ImageJob]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ImageJobDeleted(BaseModel):
    id: str
    object: Literal["image.job.deleted"] = "image.job.deleted"
    deleted: Literal[True] = True


class ImagesResponse(BaseModel):
    """OpenAI's answer; from `id` on, what only Safelight says. There is no `usage`: no tokens."""

    created: int
    data: list[Image]
    output_format: ImageFormat
    size: str
    background: Literal["opaque"]
    safety_identifier: str | None = None
    id: str
    model: str
    seed: int
    seeds: list[int]
    warnings: list[str] = []


class ModelObject(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "safelight"
    tasks: list[str]
    defaults: dict[str, Any]
    parameters: list[str] = []
    """Sampling parameters with an effect; others are refused."""
    limits: dict[str, str] = {}
    """What it cannot do, and why."""
    status: str = "loaded"
    """unloaded, loading, loaded, draining, unloading or failed."""


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    error: ErrorDetail


EVENT_STREAM: dict[str, Any] = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "description": "Of every event.",
            "properties": {
                "event": {"type": "string"},
                "data": {"type": "string", "contentMediaType": "application/json"},
                "id": {"type": "string"},
            },
            "required": ["data"],
        }
    }
}
"""`content` of answers that are server-sent events."""

ERRORS: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorEnvelope}}
"""`responses=` of every router."""
