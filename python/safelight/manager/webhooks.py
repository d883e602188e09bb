"""Sends what is in the outbox, and manages who gets it.

Signed by Standard Webhooks, as OpenAI's are: a receiver verifies with the SDK's own
`webhooks.unwrap`. Every endpoint has slots of its own, so one that is slow or dead holds up no
other; jobs never wait for any.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import random
import secrets
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx2
from standardwebhooks import Webhook

from safelight import __version__, egress, log
from safelight.config import WebhookConfig, WebhookEvent
from safelight.errors import ConfigError, InvalidRequest
from safelight.manager.database import Database
from safelight.store.webhooks import (
    Attempt,
    Delivery,
    Endpoint,
    WebhookStore,
    delivery_id,
    payload,
)

logger = log.get(__name__)

TIMEOUT_S = 15.0
"""For a whole attempt."""
GIVE_UP_S = 72 * 3600
OLD_SECRET_S = 24 * 3600
MAX_TESTS = 4
"""Test deliveries that may be under way at once."""
MAX_URL = 2048
_FIRST_S, _FACTOR, _MAX_S, _JITTER = 5.0, 2.5, 6 * 3600.0, 0.2
_GONE = 410
_FAILURES = (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError)


def backoff(attempts: int) -> float:
    """Seconds until the next attempt after so many have failed, with some jitter: 5, 12, 31, … up
    to six hours."""
    return min(_MAX_S, _FIRST_S * _FACTOR ** (attempts - 1)) * random.uniform(
        1 - _JITTER, 1 + _JITTER
    )


def new_secret() -> str:
    return f"whsec_{b64encode(secrets.token_bytes(32)).decode()}"


def headers(secrets: Sequence[str], message_id: str, body: bytes, at: float) -> dict[str, str]:
    """Of one attempt: a signature with each of the secrets, over the very bytes that are sent."""
    when, text = datetime.fromtimestamp(int(at), UTC), body.decode()
    signatures = [Webhook(secret).sign(message_id, when, text) for secret in secrets]
    return {
        "content-type": "application/json",
        "user-agent": f"Safelight/{__version__}",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at)),
        "webhook-signature": " ".join(signatures),
    }


class Webhooks:
    """All methods belong to one event loop. `clock` gives Unix seconds, `delay` the seconds after
    so many failed attempts."""

    def __init__(
        self,
        config: WebhookConfig,
        *,
        clock: Callable[[], float] = time.time,
        delay: Callable[[int], float] = backoff,
    ) -> None:
        self._config = config
        self._clock = clock
        self._delay = delay
        self._changed = asyncio.Event()
        self._under_way: set[str] = set()
        self._ended: list[Attempt] = []
        self._testing = asyncio.Semaphore(MAX_TESTS)

    async def start(self, database: Database) -> None:
        """Take over the endpoints of the configuration. Raises `ConfigError`."""
        self._db = database
        now, config = self._clock(), self._config
        for url in config.webhook_url:
            if why := unusable(url, allow_private=True):
                raise ConfigError(f"--webhook-url {url}: {why}.", param="webhook_url")
        endpoints = [
            Endpoint(
                # The same at every start, so that what is still to be sent there is kept.
                id=f"we_{hashlib.sha256(url.encode()).hexdigest()[:32]}",
                name="--webhook-url",
                url=url,
                event_types=config.heard,
                secret=config.webhook_secret or "",
                configured=True,
                created_at=now,
                updated_at=now,
            )
            for url in dict.fromkeys(config.webhook_url)
        ]
        await self._db.webhooks(WebhookStore.configure, endpoints, now)

    def wake(self) -> None:
        """There may be something new to send."""
        self._changed.set()

    async def run(self) -> None:
        """Send until cancelled."""
        async with (
            self._client(trusted=True) as trusted,
            self._client(trusted=False) as guarded,
            asyncio.TaskGroup() as attempts,
        ):
            while True:
                self._changed.clear()
                await self._settle()
                agenda = await self._db.webhooks(WebhookStore.agenda, self._clock())
                for delivery in agenda.due:
                    if delivery.id not in self._under_way:
                        self._under_way.add(delivery.id)
                        client = trusted if delivery.endpoint.configured else guarded
                        attempts.create_task(self._attempt(client, delivery))
                await self._idle(agenda.next_at)

    async def _settle(self) -> None:
        """Commit what has ended since the last time: many attempts wait for the disk once."""
        ended, self._ended = self._ended, []
        if ended:
            await self._db.insist(lambda: self._db.webhooks(WebhookStore.settle, ended))
            self._under_way.difference_update(attempt.delivery.id for attempt in ended)

    async def _idle(self, until: float | None) -> None:
        seconds = None if until is None else max(0.0, until - self._clock())
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    # --------------------------------------------------------------------------------- sending

    def _client(self, *, trusted: bool) -> httpx2.AsyncClient:
        allowed = trusted or self._config.webhook_allow_private
        return egress.client(allow_private=allowed, timeout=TIMEOUT_S)

    async def _attempt(self, client: httpx2.AsyncClient, delivery: Delivery) -> None:
        try:
            status = await self._post(client, delivery.endpoint, delivery.id, delivery.body)
            failure = None if 200 <= status < 300 else f"It answered {status}."
        except _FAILURES as error:
            status, failure = 0, f"{type(error).__name__}: {error}"[:200]
        self._ended.append(self._outcome(delivery, status, failure))
        self._changed.set()

    def _outcome(self, delivery: Delivery, status: int, failure: str | None) -> Attempt:
        """What becomes of a delivery. A redirection is a failure: it is not followed."""
        now = self._clock()
        if failure is None:
            return Attempt(delivery=delivery, result="delivered", at=now)
        due = now + self._delay(delivery.attempts + 1)
        about = {"endpoint": delivery.endpoint.id, "delivery": delivery.id, "reason": failure}
        if status == _GONE:
            logger.warning("a webhook endpoint is gone and is disabled", **about)
            return Attempt(delivery=delivery, result="gone", at=now, failure=failure)
        if due > delivery.created_at + GIVE_UP_S:
            logger.warning("a webhook was given up", **about)
            return Attempt(delivery=delivery, result="given_up", at=now, failure=failure)
        logger.info("a webhook is sent again later", seconds=round(due - now), **about)
        return Attempt(delivery=delivery, result="later", at=now, due_at=due, failure=failure)

    async def _post(
        self, client: httpx2.AsyncClient, endpoint: Endpoint, message_id: str, body: bytes
    ) -> int:
        """The status of the answer, of which nothing else is read. Raises one of `_FAILURES`."""
        now = self._clock()
        valid = [endpoint.secret]
        if endpoint.old_secret is not None and (endpoint.old_secret_until or 0) > now:
            valid.append(endpoint.old_secret)
        signed = headers(valid, message_id, body, now)
        async with (
            asyncio.timeout(TIMEOUT_S),
            client.stream("POST", endpoint.url, content=body, headers=signed) as answer,
        ):
            return answer.status_code

    # -------------------------------------------------------------------------------- managing

    async def create(self, name: str, url: str, event_types: Sequence[WebhookEvent]) -> Endpoint:
        """Raises `InvalidRequest` if it must not be reached, or if there are too many."""
        self._check(url)
        now = self._clock()
        endpoint = Endpoint(
            id=f"we_{secrets.token_hex(16)}",
            name=name,
            url=url,
            event_types=tuple(dict.fromkeys(event_types)),
            secret=new_secret(),
            created_at=now,
            updated_at=now,
        )
        return await self._db.webhooks(WebhookStore.add, endpoint)

    async def get(self, endpoint_id: str) -> Endpoint:
        """Raises `NotFound`."""
        return await self._db.webhooks(WebhookStore.get, endpoint_id)

    async def page(self, *, limit: int, after: str | None) -> tuple[tuple[Endpoint, ...], bool]:
        """Up to `limit`, newest first, and whether there are more. Raises `NotFound`."""
        return await self._db.webhooks(WebhookStore.page, limit=limit, after=after)

    async def change(self, endpoint_id: str, **changes: Any) -> Endpoint:
        """`changes`: `name`, `url`, `event_types`. Raises `NotFound` and `InvalidRequest`."""
        if "url" in changes:
            self._check(changes["url"])
        if "event_types" in changes:
            changes["event_types"] = tuple(dict.fromkeys(changes["event_types"]))
        return await self._db.webhooks(WebhookStore.change, endpoint_id, self._clock(), **changes)

    async def rotate(self, endpoint_id: str, *, keep_old: bool) -> Endpoint:
        """With a new secret; the old one signs too for a day if `keep_old`. Raises as `change`."""
        now = self._clock()
        until = now + OLD_SECRET_S if keep_old else None
        return await self._db.webhooks(WebhookStore.rotate, endpoint_id, new_secret(), now, until)

    async def remove(self, endpoint_id: str) -> None:
        """Raises as `change`."""
        await self._db.webhooks(WebhookStore.remove, endpoint_id)

    async def test(self, endpoint_id: str, event: WebhookEvent) -> int:
        """Send a sample now, once; the status of the answer. Raises `NotFound`, and
        `InvalidRequest` if there is none."""
        endpoint = await self.get(endpoint_id)
        body = payload(event, f"{event.partition('.')[0]}_test", self._clock())
        try:
            async with self._testing, self._client(trusted=endpoint.configured) as client:
                return await self._post(client, endpoint, delivery_id(), body)
        except _FAILURES as failure:
            reason = str(failure) if isinstance(failure, egress.Refused) else "it did not answer"
            raise InvalidRequest(
                f"The webhook endpoint could not be reached: {reason}.",
                param="url",
                code="webhook_endpoint_unreachable",
            ) from failure

    def _check(self, url: str) -> None:
        """Raises `InvalidRequest` for what no delivery could reach."""
        if why := unusable(url, allow_private=self._config.webhook_allow_private):
            text = f"'url' cannot be a webhook endpoint: {why}."
            raise InvalidRequest(text, param="url", code="invalid_url")


def unusable(url: str, *, allow_private: bool) -> str | None:
    """Why no delivery could ever reach it. Names are judged when something is sent, as they may
    come to mean something else."""
    if len(url) > MAX_URL:
        return f"it has {len(url)} characters, of which {MAX_URL} fit"
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        return "it cannot be read"
    if parsed.scheme not in egress.PORTS or not parsed.host:
        return "write a whole one, https:// or http://"
    if parsed.userinfo:
        return "it has credentials in it"
    port = egress.PORTS[parsed.scheme] if parsed.port is None else parsed.port
    if not 0 < port < 65_536:
        return f"there is no port {port}"
    if allow_private:
        return None
    if port not in egress.PORTS.values():
        return f"its port is {port}; only 80 and 443 are open"
    if _is_address(parsed.host) and not egress.is_public(parsed.host):
        return "its address is not public"
    return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
