"""Deliveries to real receivers on the loopback; the OpenAI SDK verifies what they get."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from fakes import receiver
from fakes.engine_peer import request
from fakes.receiver import SECRET, Received, Receiver
from safelight import config as configuration
from safelight.errors import ConfigError, InvalidRequest
from safelight.manager.database import Database
from safelight.manager.webhooks import GIVE_UP_S, OLD_SECRET_S, Webhooks, backoff
from safelight.store.jobs import JobStore
from safelight.store.tables import Status
from safelight.store.webhooks import WebhookStore

pytestmark = pytest.mark.anyio

SDK = OpenAI(api_key="any")


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver.receiving() as found:
        yield found


async def arrives(hook: Receiver) -> Received:
    """What came next; the loop goes on meanwhile."""
    return await asyncio.to_thread(hook.next)


def unwrapped(received: Received, secret: str = SECRET) -> tuple[str, str]:
    """What the SDK makes of it, by type as its classes know no videos."""
    event: Any = SDK.webhooks.unwrap(received.body, received.headers, secret=secret)
    return event.type, event.data.id


class Clock:
    """Of a server whose time does not pass by itself."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Sender:
    """`Webhooks` that run, over a store of their own."""

    def __init__(self, webhooks: Webhooks, database: Database) -> None:
        self.webhooks = webhooks
        self.database = database

    async def end(self, job_id: str = "video_1", at: float = 5.0) -> None:
        """A job is accepted and fails."""
        await self.database.call(JobStore.add, request(job_id))
        await self.database.call(
            JobStore.finish, job_id, Status.FAILED, at, code="oom", message="No memory."
        )
        self.webhooks.wake()

    async def settled(self, endpoint_id: str) -> Any:
        """What was given up of an endpoint, once there is something."""
        while True:
            if found := await self.database.webhooks(WebhookStore.given_up, endpoint_id):
                return found


@asynccontextmanager
async def sending(
    data: Path, *, delay: Callable[[int], float] = lambda _: 0.0, clock: Any = None, **settings: Any
) -> AsyncIterator[Sender]:
    config = configuration.build({"webhook_allow_private": True, **settings}).webhooks
    clocked = {} if clock is None else {"clock": clock}
    database = await Database.open(data / "jobs.sqlite")
    webhooks = Webhooks(config, delay=delay, **clocked)
    try:
        await webhooks.start(database)
        running = asyncio.create_task(webhooks.run())
        try:
            yield Sender(webhooks, database)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    finally:
        await database.close()


def configured(hook: Receiver, **settings: Any) -> dict[str, Any]:
    return {"webhook_url": [f"{hook.url}/hook"], "webhook_secret": SECRET, **settings}


async def test_a_finished_video_is_sent_once_and_verifies(lab: Any, hook: Receiver) -> None:
    manager = await lab.manager(**configured(hook))
    await manager.submit(request())
    (spec,) = await lab.peer.submitted()
    await lab.peer.deliver(spec)
    received = await arrives(hook)
    assert unwrapped(received) == ("video.completed", "video_1")
    assert received.path == "/hook"
    assert received.headers["content-type"] == "application/json"
    assert received.id.startswith("wh_")
    assert received.headers["user-agent"].startswith("Safelight/")
    with pytest.raises(InvalidWebhookSignatureError):
        unwrapped(received, "whsec_" + "QUJD" * 8)

    await manager.submit(request("video_2"))
    await manager.cancel("video_2")
    received = await arrives(hook)  # so the first was not sent twice
    assert unwrapped(received) == ("video.failed", "video_2")

    await manager.submit(request("video_3"))
    await manager.delete("video_3")
    await manager.submit(request("video_4"))
    await manager.cancel("video_4")
    assert unwrapped(await arrives(hook)) == ("video.failed", "video_4")
    assert hook.silent


async def test_a_new_manager_sends_what_the_last_one_could_not(lab: Any, hook: Receiver) -> None:
    """As after a kill between the commit and the sending."""
    lab.data.mkdir()
    store = JobStore(lab.data / "jobs.sqlite")
    config = configuration.build(configured(hook)).webhooks
    database = Database(store, ThreadPoolExecutor(1))
    await Webhooks(config).start(database)
    store.add(request())
    store.finish("video_1", Status.FAILED, 5.0, code="x", message="y")
    await database.close()
    await lab.manager(**configured(hook))
    assert unwrapped(await arrives(hook)) == ("video.failed", "video_1")


async def test_a_failure_is_repeated_under_the_same_id(tmp_path: Path, hook: Receiver) -> None:
    hook.answers = [500, 302, 404]
    waits: list[int] = []

    def delay(attempts: int) -> float:
        waits.append(attempts)
        return 0.0

    async with sending(tmp_path, delay=delay, clock=Clock(), **configured(hook)) as sender:
        await sender.end(at=1_800_000_000.0)
        received = [await arrives(hook) for _ in range(4)]
        await sender.end("video_2", at=1_800_000_000.0)
        after = await arrives(hook)
    assert len({one.id for one in received}) == 1 and len({one.body for one in received}) == 1
    assert {one.path for one in received} == {"/hook"}  # the redirection is not followed
    assert waits == [1, 2, 3]
    assert after.id != received[0].id
    assert hook.silent


async def test_an_unreachable_receiver_is_tried_again(tmp_path: Path, hook: Receiver) -> None:
    with receiver.receiving() as gone:
        url = gone.url
    tried = asyncio.Event()

    def delay(attempts: int) -> float:
        tried.set()
        return 3600.0

    async with sending(
        tmp_path, delay=delay, webhook_url=[url, hook.url], webhook_secret=SECRET
    ) as sender:
        await sender.end()
        await tried.wait()
        assert unwrapped(await arrives(hook)) == ("video.failed", "video_1")


async def test_a_slow_receiver_holds_up_no_other(tmp_path: Path, hook: Receiver) -> None:
    with receiver.receiving() as slow:
        slow.open.clear()
        async with sending(
            tmp_path, webhook_url=[slow.url, hook.url], webhook_secret=SECRET
        ) as sender:
            jobs = [f"video_{index}" for index in range(10)]
            for job in jobs:
                await sender.end(job)
            received = [unwrapped(await arrives(hook))[1] for _ in jobs]
            assert sorted(received) == sorted(jobs)
            assert slow.got.qsize() <= 4
            slow.open.set()
            late = [unwrapped(await arrives(slow))[1] for _ in jobs]
            assert sorted(late) == sorted(jobs)
            assert hook.silent


async def test_it_gives_up_after_three_days(tmp_path: Path, hook: Receiver) -> None:
    clock = Clock()

    def delay(attempts: int) -> float:
        """The second attempt is at the last moment; a third would be after it."""
        if attempts == 1:
            clock.now += GIVE_UP_S
            return GIVE_UP_S
        return 1.0

    async with sending(tmp_path, clock=clock, delay=delay, **configured(hook)) as sender:
        ((endpoint,), _) = await sender.webhooks.page(limit=1, after=None)
        hook.answers = [500, 500]
        await sender.end(at=clock.now)
        (delivery,) = await sender.settled(endpoint.id)
        assert delivery.attempts == 2
        assert [(await arrives(hook)).id for _ in range(2)] == [delivery.id] * 2
        assert hook.silent


async def test_a_receiver_that_is_gone_is_left_alone(tmp_path: Path, hook: Receiver) -> None:
    async with sending(tmp_path) as sender:
        endpoint = await sender.webhooks.create("mine", hook.url, ["video.failed"])
        hook.answers = [410]
        await sender.end("video_1")
        await arrives(hook)
        await sender.settled(endpoint.id)
        assert (await sender.webhooks.get(endpoint.id)).disabled_at is not None
        await sender.end("video_2")
        await sender.webhooks.change(endpoint.id)
        await sender.end("video_3")
        received = await arrives(hook)
        assert unwrapped(received, endpoint.secret) == ("video.failed", "video_3")


async def test_after_a_rotation_both_secrets_verify_for_a_day(
    tmp_path: Path, hook: Receiver
) -> None:
    ahead = 0.0
    async with sending(tmp_path, clock=lambda: time.time() + ahead) as sender:
        old = await sender.webhooks.create("mine", hook.url, ["video.failed"])
        new = await sender.webhooks.rotate(old.id, keep_old=True)
        assert new.secret != old.secret
        await sender.end("video_1")
        received = await arrives(hook)
        for secret in (old.secret, new.secret):
            assert unwrapped(received, secret) == ("video.failed", "video_1")
        assert received.headers["webhook-signature"].count("v1,") == 2

        ahead = OLD_SECRET_S + 1.0
        await sender.end("video_2")
        assert (await arrives(hook)).headers["webhook-signature"].count("v1,") == 1

        ahead = 0.0
        newest = await sender.webhooks.rotate(old.id, keep_old=False)
        await sender.end("video_3")
        received = await arrives(hook)
        assert unwrapped(received, newest.secret) == ("video.failed", "video_3")
        with pytest.raises(InvalidWebhookSignatureError):
            unwrapped(received, new.secret)


async def test_what_is_registered_over_http_reaches_no_private_network(
    tmp_path: Path, hook: Receiver
) -> None:
    allowed = {"webhook_allow_private": True}
    async with sending(tmp_path, **allowed) as sender:
        endpoint = await sender.webhooks.create("inside", hook.url, ["video.failed"])
    tried = asyncio.Event()

    def delay(attempts: int) -> float:
        tried.set()
        return 3600.0

    async with sending(tmp_path, delay=delay, webhook_allow_private=False) as sender:
        await sender.end()
        await tried.wait()
        with pytest.raises(InvalidRequest, match="could not be reached") as failure:
            await sender.webhooks.test(endpoint.id, "video.failed")
        assert failure.value.code == "webhook_endpoint_unreachable"
    assert hook.silent


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://a.example/x", "https://"),
        ("https://", "https://"),
        ("/relative", "https://"),
        ("https://user:word@a.example", "credentials"),
        ("https://a.example:8080/x", "port is 8080"),
        ("https://a.example:65536/x", "no port 65536"),
        ("http://127.0.0.1/x", "not public"),
        ("http://[::1]/x", "not public"),
        ("http://[::ffff:10.0.0.1]/x", "not public"),
        ("http://169.254.169.254/latest", "not public"),
        ("https://a.example/\x00", "cannot be read"),
        ("https://a.example/" + "x" * 2048, "2048 fit"),
    ],
)
async def test_a_url_that_can_never_be_reached_is_refused(
    tmp_path: Path, url: str, words: str
) -> None:
    async with sending(tmp_path, webhook_allow_private=False) as sender:
        with pytest.raises(InvalidRequest, match=words) as failure:
            await sender.webhooks.create("x", url, ["video.failed"])
        assert failure.value.param == "url"
        fine = await sender.webhooks.create("x", "https://a.example/x", ["video.failed"])
        with pytest.raises(InvalidRequest, match=words):
            await sender.webhooks.change(fine.id, url=url)


@pytest.mark.parametrize("url", ["http://", "http://\x00", "http://a:65536", "http://me:word@a"])
async def test_a_configured_url_is_checked_at_the_start(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="--webhook-url"):
        async with sending(tmp_path, webhook_url=[url], webhook_secret=SECRET):
            pass


def test_waits_grow_to_hours_and_differ() -> None:
    waits = [backoff(attempts) for attempts in range(1, 30)]
    assert 4 <= waits[0] <= 6
    assert all(wait <= 6 * 3600 * 1.2 for wait in waits)
    assert waits[20] > 4 * 3600
    assert len({backoff(3) for _ in range(20)}) > 1
    assert len([total for total in range(30) if sum(waits[:total]) < GIVE_UP_S]) < 30


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"webhook_url": ["http://a"]}, "needs a --webhook-secret"),
        ({"webhook_url": ["http://a"], "webhook_secret": "hunter2"}, "24 to 64"),
        ({"webhook_url": ["http://a"], "webhook_secret": "whsec_QUJD"}, "24 to 64"),
        ({"webhook_url": ["a.example"], "webhook_secret": SECRET}, "whole URL"),
        ({"webhook_events": ["video.done"]}, "webhook_events"),
    ],
)
def test_a_wrong_configuration_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configuration.build(settings)
