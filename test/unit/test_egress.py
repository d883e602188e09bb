from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from safelight import egress
from safelight.errors import InvalidRequest

LOCAL = "127.0.0.1"
OK = b"HTTP/1.1 200 OK\r\n"


class Site:
    """A web server that answers every path as it was told, and keeps what it was sent."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.requests: list[bytes] = []
        self.port = 0
        self.handlers: set[asyncio.Task[Any] | None] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.handlers.add(asyncio.current_task())
        request = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(request)
        answer = self.answers.get(request.split()[1].decode(), b"")
        writer.write(answer)
        if not answer:  # it never comes
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):  # clients leave when they have seen enough
            await writer.wait_closed()

    def url(self, path: str, host: str = "pictures.test") -> str:
        return f"http://{host}:{self.port}{path}"


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    found = Site()
    server = await asyncio.start_server(found.handle, LOCAL, 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        await asyncio.gather(*(task for task in found.handlers if task))


async def here(host: str, port: int) -> Sequence[str]:
    """Every name is this host."""
    return [LOCAL]


fetch = functools.partial(
    egress.fetch, max_bytes=1000, patience=20, allow_private=True, resolve=here
)


def plain(body: bytes, head: bytes = OK) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def refusal(work: Coroutine[Any, Any, bytes]) -> str:
    with pytest.raises(InvalidRequest) as caught:
        asyncio.run(work)
    assert caught.value.code == "invalid_url"
    return caught.value.message


# -------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "192.88.99.1"),
        *("198.18.0.1", "224.0.0.1", "233.252.0.1", "240.0.0.1", "255.255.255.255"),
        *("168.63.129.16", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8"),
        *("64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:1::", "2001:db8::1"),
        *("fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1"),
        *("3fff::1", "5f00::1"),
    ],
)
def test_addresses_that_are_not_the_publics(address: str) -> None:
    assert not egress.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111"])
def test_public_addresses(address: str) -> None:
    assert egress.is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_every_spelling_of_this_host_is_refused(host: str) -> None:
    """By the system's own resolver, which reads them all."""
    said = refusal(egress.fetch(f"http://{host}/", max_bytes=10, patience=20))
    assert "has no public address" in said


@pytest.mark.parametrize("addresses", [[], ["10.0.0.1"], ["127.0.0.1", "fe80::1"]])
def test_what_is_inside_cannot_be_told_from_what_is_not(addresses: list[str]) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        if not addresses:
            raise OSError("no such name")
        return addresses

    said = refusal(fetch("http://inside.test/", allow_private=False, resolve=resolve))
    assert said == "What 'url' points to could not be fetched: its host has no public address."


def test_the_connection_goes_to_the_address_that_was_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that answers otherwise the second time is not asked a second time."""
    asked: list[str] = []

    async def once(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return [LOCAL] if len(asked) == 1 else ["192.0.2.1"]

    async def run() -> tuple[bytes, bytes]:
        async with site() as found:
            found.answers["/a"] = plain(b"here")
            return await fetch(found.url("/a"), resolve=once), found.requests[0]

    monkeypatch.setattr(egress, "is_public", lambda address: address == LOCAL)
    data, request = asyncio.run(run())
    assert data == b"here" and asked == ["pictures.test"]
    assert b"host: pictures.test:" in request.lower()
    assert b"accept-encoding: identity" in request.lower()


def test_the_name_is_checked_in_tls() -> None:
    request = httpx2.Request("GET", "https://pictures.test/a?b=c")
    pinned = egress._pinned(request, "2606:4700::1111")
    assert str(pinned.url) == "https://[2606:4700::1111]/a?b=c"
    assert pinned.headers["host"] == "pictures.test"
    assert pinned.extensions["sni_hostname"] == "pictures.test"


def test_the_next_address_is_tried_where_one_does_not_answer() -> None:
    async def two(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.2", LOCAL]  # the site listens at the second alone

    async def run() -> bytes:
        async with site() as found:
            found.answers["/a"] = plain(b"here")
            return await fetch(found.url("/a"), resolve=two)

    assert asyncio.run(run()) == b"here"


# ------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://pictures.test/a", "only http:// and https://"),
        ("file:///etc/passwd", "only http:// and https://"),
        ("http:///a", "only http:// and https://"),
        ("http://me:secret@pictures.test/a", "credentials"),
        ("http://pictures.test:6379/a", "only 80 and 443"),
        ("http://pictures.test/" + "a" * 9000, "characters"),
        ("http://[::1/", "cannot be read"),
        ("http://0177.0.0.1/", "cannot be read"),
        ("http://\x00/", "cannot be read"),
    ],
)
def test_urls_that_are_refused(url: str, said: str) -> None:
    assert said in refusal(fetch(url, allow_private=False))


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("pictures.test", True),
        ("PICTURES.test", True),
        ("a.cdn.test", True),
        ("a.b.cdn.test", True),
        ("cdn.test", False),
        ("notcdn.test", False),
        ("pictures.test.evil.test", False),
    ],
)
def test_only_some_hosts(host: str, served: bool) -> None:
    async def run() -> bytes:
        async with site() as found:
            found.answers["/a"] = plain(b"here")
            return await fetch(found.url("/a", host), hosts=("pictures.test", "*.cdn.test"))

    if served:
        assert asyncio.run(run()) == b"here"
    else:
        assert "--fetch-hosts" in refusal(run())


def test_nothing_of_this_hosts_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def run() -> bytes:
        async with site() as found:
            found.answers["/a"] = plain(b"here")
            return await fetch(found.url("/a"))

    assert asyncio.run(run()) == b"here"


# ---------------------------------------------------------------------------------------- answers

BOMB = b"1" * 2000


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (plain(BOMB), "larger than 1000 bytes"),
        (OK + b"\r\n" + BOMB, "larger than 1000 bytes"),  # says no length
        (OK + b"Transfer-Encoding: chunked\r\n\r\n7d0\r\n" + BOMB + b"\r\n0\r\n\r\n", "larger"),
        (OK + b"Content-Length: 9\r\n\r\nshort", "the connection failed"),
        (plain(b"x", OK + b"Content-Encoding: gzip\r\n"), "compressed"),
        (plain(b"secret", b"HTTP/1.1 404 secret\r\n"), "did not send it"),
        (plain(b"secret", b"HTTP/1.1 206 Partial\r\n"), "did not send it"),
        (b"secret that is no HTTP\r\n\r\n", "the connection failed"),
    ],
)
def test_answers_that_are_refused(answer: bytes, said: str) -> None:
    async def run() -> bytes:
        async with site() as found:
            found.answers["/a"] = answer
            return await fetch(found.url("/a"), name="image")

    message = refusal(run())
    assert said in message and "'image'" in message
    assert "secret" not in message


def test_no_answer() -> None:
    async def run() -> bytes:
        async with site() as found:
            return await fetch(found.url("/a"), patience=0.2)

    assert "longer than 0.2 seconds" in refusal(run())


def moved(to: str) -> bytes:
    return plain(b"", b"HTTP/1.1 302 Found\r\nLocation: " + to.encode() + b"\r\n")


def test_a_redirect_on_the_same_host_is_followed() -> None:
    async def run() -> bytes:
        async with site() as found:
            found.answers |= {"/a": moved("/b"), "/b": plain(b"here")}
            return await fetch(found.url("/a"))

    assert asyncio.run(run()) == b"here"


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("http://elsewhere.test/", "redirects to elsewhere"),
        ("//169.254.169.254/latest/meta-data", "redirects to elsewhere"),
        ("file:///etc/passwd", "only http://"),
        ("/a", "more than 3 times"),
        ("http://me:secret@pictures.test/", "credentials"),
    ],
)
def test_redirects_that_are_refused(to: str, said: str) -> None:
    async def run() -> bytes:
        async with site() as found:
            found.answers["/a"] = moved(to)
            return await fetch(found.url("/a"))

    assert said in refusal(run())


def test_no_redirect_to_less_safe() -> None:
    before, after = httpx2.URL("https://pictures.test/"), httpx2.URL("http://pictures.test/")
    with pytest.raises(egress.Refused, match="elsewhere"):
        egress._followed(before, after, ())
    assert egress._followed(after, before, ()) == before


def test_a_client_for_other_uses_follows_nothing() -> None:
    async def run() -> int:
        async with (
            site() as found,
            egress.client(allow_private=True, timeout=20, resolve=here) as http,
        ):
            found.answers["/a"] = moved("/b")
            return (await http.post(found.url("/a"), content=b"x")).status_code

    assert asyncio.run(run()) == 302


@pytest.mark.parametrize("port", [0, 65_536, 10**30])
def test_ports_that_there_are_not(port: int) -> None:
    async def run() -> bytes:
        return await egress.fetch(
            f"http://127.0.0.1:{port}/", max_bytes=1, patience=20, allow_private=True
        )

    assert f"its port is {port}, and" in refusal(run())
