"""`/v1/webhook_endpoints`: who is told that a job has ended."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from fastapi import APIRouter, Path, Query
from msgspec import Meta
from pydantic import BaseModel

from safelight import fields
from safelight.config import WebhookEvent
from safelight.entrypoint import schema
from safelight.entrypoint.body import Body
from safelight.entrypoint.context import Manager, ParsedBody
from safelight.errors import InvalidRequest
from safelight.manager.webhooks import MAX_URL
from safelight.store.webhooks import Endpoint

T = TypeVar("T", bound=msgspec.Struct)

EVENTS: tuple[WebhookEvent, ...] = get_args(WebhookEvent)
MAX_NAME = 256

router = APIRouter(tags=["webhooks"], responses=schema.ERRORS)

EndpointId = Annotated[str, Path(description="The id that creating the endpoint returned.")]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME, description="For people.")]
Url = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_URL,
        description="Where events are sent; a public address, unless the server allows others.",
    ),
]
Events = Annotated[
    list[Annotated[str, Meta(extra_json_schema={"enum": list(EVENTS)})]],
    Meta(min_length=1, max_length=64, description="What it hears of."),
]
Event = Annotated[
    str, Meta(description="What a sample is sent of.", extra_json_schema={"enum": list(EVENTS)})
]


class CreateBody(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/webhook_endpoints`."""

    name: Name
    url: Url
    event_types: Events


class UpdateBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`POST /v1/webhook_endpoints/{id}`; what is left out stays."""

    name: Name | None = None
    url: Url | None = None
    event_types: Events | None = None


class RotateBody(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/webhook_endpoints/{id}/rotate_secret`."""

    keep_old_secret_active_for_24_hours: Annotated[
        bool, Meta(description="Sign with the old secret too, for a day.")
    ] = False


class TestBody(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/webhook_endpoints/{id}/test`."""

    event_type: Event


class WebhookEndpoint(BaseModel):
    """OpenAI's object, then what only Safelight says."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    created_at: int
    updated_at: int
    signing_secret_hint: str

    disabled_at: int | None
    """When it answered 410; an update enables it again."""


class WebhookEndpointWithSecret(WebhookEndpoint):
    signing_secret: str


class WebhookEndpointList(BaseModel):
    object: Literal["list"] = "list"
    data: list[WebhookEndpoint]
    first_id: str | None
    last_id: str | None
    has_more: bool


class WebhookEndpointDeleted(BaseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class WebhookEndpointTest(BaseModel):
    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    """Of the endpoint's answer."""
    success: Literal[True] = True
    """It answered, whatever it was."""


class WebhookEventTypes(BaseModel):
    object: Literal["list"] = "list"
    data: list[str]


@router.post(
    "/webhook_endpoints",
    response_model=WebhookEndpointWithSecret,
    openapi_extra={"requestBody": schema.body_of(CreateBody)},
)
async def create(body: ParsedBody, manager: Manager) -> dict[str, Any]:
    """Register an endpoint. Its signing secret is in this answer, and in no later one."""
    asked = _read(CreateBody, body)
    events = _events(asked.event_types, "event_types")
    return _with_secret(await manager.webhooks.create(asked.name, asked.url, events))


@router.get("/webhook_endpoints", response_model=WebhookEndpointList)
async def page(
    manager: Manager,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="`last_id` of the page before.")] = None,
) -> dict[str, Any]:
    """A page of endpoints, newest first."""
    found, has_more = await manager.webhooks.page(limit=limit, after=after)
    return {
        "data": [_object(endpoint) for endpoint in found],
        "first_id": found[0].id if found else None,
        "last_id": found[-1].id if found else None,
        "has_more": has_more,
    }


@router.get("/webhook_endpoints/{webhook_endpoint_id}", response_model=WebhookEndpoint)
async def retrieve(webhook_endpoint_id: EndpointId, manager: Manager) -> dict[str, Any]:
    """One endpoint, without its secret."""
    return _object(await manager.webhooks.get(webhook_endpoint_id))


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}",
    response_model=WebhookEndpoint,
    openapi_extra={"requestBody": schema.body_of(UpdateBody)},
)
async def update(
    webhook_endpoint_id: EndpointId, body: ParsedBody, manager: Manager
) -> dict[str, Any]:
    """Change what is given, and enable the endpoint again if it was disabled."""
    changes = msgspec.to_builtins(_read(UpdateBody, body))
    if "event_types" in changes:
        changes["event_types"] = _events(changes["event_types"], "event_types")
    return _object(await manager.webhooks.change(webhook_endpoint_id, **changes))


@router.delete("/webhook_endpoints/{webhook_endpoint_id}", response_model=WebhookEndpointDeleted)
async def delete(webhook_endpoint_id: EndpointId, manager: Manager) -> WebhookEndpointDeleted:
    """Remove an endpoint; what was still to be sent there is not."""
    await manager.webhooks.remove(webhook_endpoint_id)
    return WebhookEndpointDeleted(id=webhook_endpoint_id)


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}/rotate_secret",
    response_model=WebhookEndpointWithSecret,
    openapi_extra={"requestBody": schema.body_of(RotateBody)},
)
async def rotate_secret(
    webhook_endpoint_id: EndpointId, body: ParsedBody, manager: Manager
) -> dict[str, Any]:
    """A new signing secret. For a day both sign if the old one is kept; else it ends now."""
    keep = _read(RotateBody, body).keep_old_secret_active_for_24_hours
    return _with_secret(await manager.webhooks.rotate(webhook_endpoint_id, keep_old=keep))


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}/test",
    response_model=WebhookEndpointTest,
    openapi_extra={"requestBody": schema.body_of(TestBody)},
)
async def test(
    webhook_endpoint_id: EndpointId, body: ParsedBody, manager: Manager
) -> WebhookEndpointTest:
    """Send a sample now, once, whatever the endpoint subscribes to; its answer's status."""
    (event,) = _events([_read(TestBody, body).event_type], "event_type")
    status = await manager.webhooks.test(webhook_endpoint_id, event)
    return WebhookEndpointTest(
        webhook_endpoint_id=webhook_endpoint_id, event_type=event, status_code=status
    )


@router.get("/webhook_event_types", response_model=WebhookEventTypes)
async def event_types() -> WebhookEventTypes:
    """What endpoints can hear of."""
    return WebhookEventTypes(data=list(EVENTS))


def _read(kind: type[T], body: Body) -> T:
    """Raises `InvalidRequest` naming the field."""
    known = [field.name for field in fields.declared(kind)]
    fields.refuse_unknown([*body.values, *body.files], known)
    return fields.convert(kind, body.values, strict=body.strict)


def _events(names: list[str], param: str) -> list[WebhookEvent]:
    """Raises `InvalidRequest` for what this server has no news of."""
    unknown = [name for name in names if name not in EVENTS]
    if unknown:
        raise InvalidRequest(
            f"'{param}': this server sends no {unknown[0]!r:.80}, only {', '.join(EVENTS)}.",
            param=param,
        )
    return [event for event in EVENTS if event in names]


def _object(endpoint: Endpoint) -> dict[str, Any]:
    gone = endpoint.disabled_at
    return {
        "id": endpoint.id,
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": list(endpoint.event_types),
        "created_at": int(endpoint.created_at),
        "updated_at": int(endpoint.updated_at),
        "signing_secret_hint": f"whsec_…{endpoint.secret[-4:]}",
        "disabled_at": None if gone is None else int(gone),
    }


def _with_secret(endpoint: Endpoint) -> dict[str, Any]:
    return _object(endpoint) | {"signing_secret": endpoint.secret}
