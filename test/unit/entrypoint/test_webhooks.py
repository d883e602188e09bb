"""The management of webhook endpoints through the OpenAI SDK, which checks every answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from fakes import receiver, stack
from fakes.receiver import SECRET, Receiver
from safelight.entrypoint.openai.webhooks import EVENTS

TYPES: list[Any] = ["video.completed", "video.failed"]


@pytest.fixture(scope="module")
def hook() -> Iterator[Receiver]:
    with receiver.receiving() as found:
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, hook: Receiver) -> Iterator[stack.Stack]:
    with stack.running(
        tmp_path_factory.mktemp("data"),
        webhook_allow_private=True,
        webhook_url=[f"{hook.url}/configured"],
        webhook_secret=SECRET,
        webhook_events=["image.failed"],
    ) as running:
        yield running


@pytest.fixture(scope="module")
def sdk(server: stack.Stack) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{server.base_url}/v1",
        api_key="any",
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client


@pytest.fixture
def endpoint(sdk: OpenAI, hook: Receiver) -> Iterator[Any]:
    found = sdk.webhooks.create(name="mine", url=f"{hook.url}/mine", event_types=TYPES)
    yield found
    try:
        sdk.webhooks.delete(found.id)
    except NotFoundError:
        pass  # the test did


def test_the_secret_is_told_once(sdk: OpenAI, endpoint: Any, hook: Receiver) -> None:
    assert endpoint.object == "webhook_endpoint"
    assert (endpoint.name, endpoint.url) == ("mine", f"{hook.url}/mine")
    assert endpoint.event_types == TYPES
    assert endpoint.created_at == endpoint.updated_at
    assert endpoint.signing_secret.startswith("whsec_")
    again = sdk.webhooks.retrieve(endpoint.id)
    assert again.id == endpoint.id
    assert "signing_secret" not in again.to_dict()
    assert again.signing_secret_hint == f"whsec_…{endpoint.signing_secret[-4:]}"
    assert endpoint.signing_secret not in str([e.to_dict() for e in sdk.webhooks.list()])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_video_is_announced_and_fetched(
    server: stack.Stack, endpoint: Any, hook: Receiver
) -> None:
    """All that a receiver does, from the event to the file."""
    sdk = OpenAI(base_url=f"{server.base_url}/v1", api_key="any", max_retries=0)
    video = sdk.videos.create(prompt="a red circle")
    received = hook.next()
    event: Any = sdk.webhooks.unwrap(
        received.body, received.headers, secret=endpoint.signing_secret
    )
    assert (received.path, event.type, event.data.id) == ("/mine", "video.completed", video.id)
    assert event.object == "event" and event.id.startswith("evt_")
    assert sdk.videos.retrieve(event.data.id).status == "completed"
    assert sdk.videos.download_content(event.data.id).read()
    assert hook.silent


def test_a_sample_is_sent_at_once(sdk: OpenAI, endpoint: Any, hook: Receiver) -> None:
    hook.answers = [503]
    result = sdk.webhooks.test(endpoint.id, event_type="video.failed")
    assert (result.status_code, result.success, result.event_type) == (503, True, "video.failed")
    assert result.webhook_endpoint_id == endpoint.id
    received = hook.next()
    event: Any = sdk.webhooks.unwrap(
        received.body, received.headers, secret=endpoint.signing_secret
    )
    assert (event.type, event.data.id) == ("video.failed", "video_test")
    assert hook.silent  # a sample is not repeated


def test_an_update_changes_what_it_names(sdk: OpenAI, endpoint: Any) -> None:
    changed = sdk.webhooks.update(endpoint.id, name="yours")
    assert (changed.name, changed.url, changed.event_types) == ("yours", endpoint.url, TYPES)
    changed = sdk.webhooks.update(endpoint.id, event_types=["video.failed"])
    assert (changed.name, changed.event_types) == ("yours", ["video.failed"])


@pytest.mark.parametrize(("keep", "signatures"), [(True, 2), (False, 1)])
def test_a_secret_is_rotated(
    sdk: OpenAI, endpoint: Any, hook: Receiver, keep: bool, signatures: int
) -> None:
    rotated = sdk.webhooks.rotate_secret(endpoint.id, keep_old_secret_active_for_24_hours=keep)
    assert rotated.signing_secret != endpoint.signing_secret
    sdk.webhooks.test(endpoint.id, event_type="video.failed")
    received = hook.next()
    assert len(received.headers["webhook-signature"].split()) == signatures
    sdk.webhooks.unwrap(received.body, received.headers, secret=rotated.signing_secret)


def test_a_rotation_needs_no_body(sdk: OpenAI, endpoint: Any) -> None:
    assert sdk.webhooks.rotate_secret(endpoint.id).signing_secret != endpoint.signing_secret


def test_a_deleted_endpoint_is_gone(sdk: OpenAI, endpoint: Any) -> None:
    deleted = sdk.webhooks.delete(endpoint.id)
    assert (deleted.id, deleted.deleted) == (endpoint.id, True)
    for call in (sdk.webhooks.retrieve, sdk.webhooks.delete, sdk.webhooks.rotate_secret):
        with pytest.raises(NotFoundError, match=endpoint.id):
            call(endpoint.id)


def test_the_list_is_walked_page_by_page(sdk: OpenAI, endpoint: Any) -> None:
    second = sdk.webhooks.create(name="second", url="https://a.example", event_types=TYPES)
    names = [found.name for found in sdk.webhooks.list(limit=1)]
    assert names == ["second", "mine", "--webhook-url"]
    sdk.webhooks.delete(second.id)


def test_one_of_the_configuration_is_changed_there(sdk: OpenAI, hook: Receiver) -> None:
    (found,) = (each for each in sdk.webhooks.list() if each.name == "--webhook-url")
    assert found.event_types == ["image.failed"]
    for refused in (sdk.webhooks.delete, sdk.webhooks.rotate_secret):
        with pytest.raises(BadRequestError, match="--webhook-url") as failure:
            refused(found.id)
        assert failure.value.code == "webhook_endpoint_configured"
    sdk.webhooks.test(found.id, event_type="video.completed")
    received = hook.next()
    assert received.path == "/configured"
    sdk.webhooks.unwrap(received.body, received.headers, secret=SECRET)


def test_the_types_of_events(sdk: OpenAI) -> None:
    assert tuple(sdk.webhooks.event_types.list().data) == EVENTS


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"name": None}, None, "name"),
        ({"name": ""}, "name", "length"),
        ({"name": "x" * 257}, "name", "256"),
        ({"name": 4}, "name", "str"),
        ({"name": "\ud800"}, None, "surrogate"),
        ({"url": "nowhere"}, "url", "https://"),
        ({"url": "https://a.example/" + "x" * 2048}, "url", "2048"),
        ({"event_types": []}, "event_types", "length"),
        ({"event_types": ["batch.completed"]}, "event_types", "video.completed"),
        ({"event_types": "video.failed"}, "event_types", "array"),
        ({"secret": "whsec_"}, "secret", "secret"),
    ],
)
def test_a_wrong_body_is_refused(
    server: stack.Stack, changes: dict[str, Any], param: str | None, words: str
) -> None:
    body = {"name": "x", "url": "https://a.example", "event_types": TYPES} | changes
    answer = httpx2.post(
        f"{server.base_url}/v1/webhook_endpoints",
        content=json.dumps(body),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


def test_a_form_does_as_well(server: stack.Stack) -> None:
    answer = httpx2.post(
        f"{server.base_url}/v1/webhook_endpoints",
        data={"name": "form", "url": "https://a.example", "event_types[]": TYPES},
    )
    assert answer.status_code == 200
    assert answer.json()["event_types"] == TYPES
    url = f"{server.base_url}/v1/webhook_endpoints/{answer.json()['id']}"
    assert httpx2.delete(url).json()["deleted"] is True


def test_a_sample_of_an_unknown_event_is_refused(sdk: OpenAI, endpoint: Any) -> None:
    with pytest.raises(BadRequestError, match=r"image\.failed") as failure:
        sdk.webhooks.test(endpoint.id, event_type="batch.failed")
    assert failure.value.param == "event_type"
