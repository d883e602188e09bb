"""Requests to addresses that strangers name: to public ones only.

A name is resolved once, what it resolves to is judged, and the connection goes to the very address
that was judged: a name that answers otherwise a moment later leads nowhere else. Certificates are
still those of the name. No proxy, no cookie and no credential of this host is used.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import httpx2

from safelight import log
from safelight.errors import InvalidRequest

logger = log.get(__name__)

PORTS = {"http": 80, "https": 443}
"""The schemes, and the ports that are open to them."""
MAX_URL = 8192  # characters
MAX_REDIRECTS = 3
_MAX_ADDRESSES = 4  # of one name that are tried
_RESOLVERS = 8  # threads: a slow name server must hold up nothing but other names

_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that is routed between networks; mapped, NAT64, local and multicast are not."""
_SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments (RFC 6890), a cloud's metadata among them
        "192.88.99.0/24",  # relays of 6to4
        "168.63.129.16/32",  # a cloud's own services, at an address like any other
        "2001::/23",  # Teredo and other protocols
        "2002::/16",  # 6to4: an IPv4 address is inside
        "3fff::/20",  # documentation
    )
)
"""What `ipaddress` takes for global, and is not the public's."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""A host and a port to addresses."""


class Refused(httpx2.TransportError):
    """A URL, or the address behind it, that nobody may reach from here."""


def is_public(address: str) -> bool:
    """Whether it is of the internet, and of no network that this host is in."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed not in _UNICAST:
        return False
    if parsed.is_multicast or not parsed.is_global:
        return False
    return not any(parsed in network for network in _SPECIAL)


async def resolved(host: str, port: int) -> Sequence[str]:
    """Its addresses, the best first (RFC 6724). Raises `OSError`."""
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_resolvers(), look_up)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def client(
    *, allow_private: bool, timeout: float, resolve: Resolve = resolved
) -> httpx2.AsyncClient:
    """A client that reaches public addresses only, unless `allow_private`, and follows no redirect.

    `timeout`: seconds for each of connecting, sending and one read. What it may not reach raises
    `Refused`, which is an `httpx2.HTTPError` like every other failure.
    """
    return httpx2.AsyncClient(
        transport=_Guarded(allow_private=allow_private, resolve=resolve),
        timeout=timeout,
        follow_redirects=False,
        trust_env=False,
    )


async def fetch(
    url: str,
    *,
    max_bytes: int,
    patience: float,
    allow_private: bool = False,
    hosts: Sequence[str] = (),
    name: str = "url",
    resolve: Resolve = resolved,
) -> bytes:
    """What is at `url`, `max_bytes` at most, within `patience` seconds in all.

    `hosts`: those it may be fetched from (`*.` before a name: all below it), if not from all.
    Raises `InvalidRequest` for the field `name`; what the remote side said is only in the log.
    """
    try:
        async with (
            asyncio.timeout(patience),
            client(allow_private=allow_private, timeout=patience, resolve=resolve) as http,
        ):
            return await _fetched(http, _parsed(url, hosts), max_bytes, hosts)
    except TimeoutError as failure:
        raise _failed(name, f"it took longer than {patience:g} seconds", failure) from failure
    except Refused as failure:
        raise _failed(name, str(failure), failure) from failure
    except httpx2.InvalidURL as failure:
        raise _failed(name, "the URL cannot be read", failure) from failure
    except httpx2.HTTPError as failure:
        raise _failed(name, "the connection failed", failure) from failure


def _failed(name: str, why: str, failure: Exception) -> InvalidRequest:
    logger.info("a URL was not fetched", field=name, reason=repr(failure)[:200])
    return InvalidRequest(
        f"What '{name}' points to could not be fetched: {why}.", param=name, code="invalid_url"
    )


async def _fetched(
    http: httpx2.AsyncClient, url: httpx2.URL, max_bytes: int, hosts: Sequence[str]
) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        # Compressed, a few bytes may stand for all of memory.
        request = http.build_request("GET", url, headers={"accept-encoding": "identity"})
        response = await http.send(request, stream=True)
        async with aclosing(response):
            if response.next_request is None:
                return await _read(response, max_bytes)
            url = _followed(url, response.next_request.url, hosts)
    raise Refused(f"it redirects more than {MAX_REDIRECTS} times")


async def _read(response: httpx2.Response, max_bytes: int) -> bytes:
    if response.status_code != 200:
        raise Refused("the server there did not send it")
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refused("it is sent compressed, though this was not asked for")
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > max_bytes:
            raise Refused(f"it is larger than {max_bytes} bytes")
    return bytes(data)


def _parsed(url: str, hosts: Sequence[str]) -> httpx2.URL:
    if len(url) > MAX_URL:
        raise Refused(f"the URL has {len(url)} characters, of which {MAX_URL} fit")
    parsed = httpx2.URL(url)
    if hosts and not any(_matches(parsed.host, host) for host in hosts):
        raise Refused("its host is not one of those that this server fetches from (--fetch-hosts)")
    return parsed


def _matches(host: str, pattern: str) -> bool:
    host, pattern = host.lower().rstrip("."), pattern.lower()
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _followed(before: httpx2.URL, after: httpx2.URL, hosts: Sequence[str]) -> httpx2.URL:
    if after.host != before.host or (before.scheme, after.scheme) == ("https", "http"):
        raise Refused("it redirects to elsewhere")
    return _parsed(str(after), hosts)


class _Guarded(httpx2.AsyncBaseTransport):
    """Connects to the address that was judged, in the name that was asked for."""

    def __init__(self, *, allow_private: bool, resolve: Resolve) -> None:
        self._allow_private = allow_private
        self._resolve = resolve
        # None is kept alive: a connection of one name would be given to another at its address.
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._inner = httpx2.AsyncHTTPTransport(verify=_tls(), trust_env=False, limits=limits)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        addresses = await self._addresses(request.url)
        for address in addresses[:-1]:
            try:
                return await self._inner.handle_async_request(_pinned(request, address))
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                logger.debug("an address does not answer", address=address)
        return await self._inner.handle_async_request(_pinned(request, addresses[-1]))

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _addresses(self, url: httpx2.URL) -> Sequence[str]:
        """Those of its host that may be reached, at least one."""
        port = self._check(url)
        try:
            found = await self._resolve(url.raw_host.decode("ascii"), port)
        except (OSError, UnicodeError) as failure:
            logger.info("a name is not known", host=url.host, reason=str(failure))
            found = ()
        legal = [one for one in found if self._allow_private or is_public(one)]
        if not legal:  # in the same words: what is inside is nobody's business
            raise Refused("its host has no public address")
        return legal[:_MAX_ADDRESSES]

    def _check(self, url: httpx2.URL) -> int:
        """The port."""
        if url.scheme not in PORTS or not url.host:
            raise Refused("only http:// and https:// URLs with a host are fetched")
        if url.userinfo:
            raise Refused("the URL has credentials in it")
        port = PORTS[url.scheme] if url.port is None else url.port
        if not 0 < port < 65536:
            raise Refused(f"its port is {port}, and ports are 1 to 65535")
        if not (self._allow_private or port in PORTS.values()):
            raise Refused(f"its port is {port}; only 80 and 443 are open")
        return port


def _pinned(request: httpx2.Request, address: str) -> httpx2.Request:
    """The request to the address; its `Host` and the name in TLS stay."""
    return httpx2.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii")},
    )


@functools.cache
def _tls() -> ssl.SSLContext:
    """Once: reading the certificates of all authorities takes long."""
    return httpx2.create_ssl_context()


@functools.cache
def _resolvers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="resolve")
