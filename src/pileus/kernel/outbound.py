"""The one way to send to an address that a user gave: it decides where the server may be led.

A name is looked up at most once for each connection, and what is connected to is the address that was checked. No redirects, no
proxies and no cookies; what comes back is read only as far as needed to use the connection again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Mapping
from ipaddress import ip_address
from typing import Literal, Protocol

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from pileus.kernel.addresses import is_public
from pileus.kernel.errors import Transient

Reach = Literal["public", "any"]
"""``public``: what tenants wrote; never this cloud's own networks. ``any``: what an operator wrote."""

TIMEOUT_S = 10.0
"""For all of one message: name, connection, TLS, answer."""
CONNECT_TIMEOUT_S = 5.0
REPLY_BYTES_MAX = 65_536
"""Of an answer's body, which nobody looks at: it is read so that the connection can be used again."""
CONNECTIONS_MAX = 8
LOOKUPS_MAX = 32
"""Names that are looked up at the same time. Whoever runs a name's server decides how long that takes."""


class Poster(Protocol):
    """Sends to one receiver."""

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Return the status of the answer. Raises: Transient without one."""


class Outbound(Protocol):
    """Gives connections to the world outside."""

    def open(self, reach: Reach, ca: str) -> contextlib.AbstractAsyncContextManager[Poster]:
        """Give, for the block, a sender that keeps its connections. ``ca``: PEM that is trusted besides the system's."""


class Internet:
    """The real one."""

    def __init__(self, resolver: AbstractResolver | None = None) -> None:
        self._resolver = resolver or Names()

    @contextlib.asynccontextmanager
    async def open(self, reach: Reach, ca: str) -> AsyncIterator[Poster]:
        """Give a sender for the block. Raises: Transient for a certificate that cannot be read."""
        connector = aiohttp.TCPConnector(
            resolver=_Lent(self._resolver),
            ssl=_trust(ca),
            limit=CONNECTIONS_MAX,
            socket_factory=functools.partial(_socket, reach),
        )
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            auto_decompress=False,
            trust_env=False,
        )
        async with session:
            yield _Session(session, reach)


class _Session:
    def __init__(self, session: aiohttp.ClientSession, reach: Reach) -> None:
        self._session, self._reach = session, reach

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        if self._reach == "public" and not url.lower().startswith("https://"):
            raise Transient("only https is used for what a tenant wrote")
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                await answer.content.read(REPLY_BYTES_MAX)
                return answer.status
        except TimeoutError:
            raise Transient(f"no answer within {TIMEOUT_S:.0f} s") from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise Transient(f"its certificate is not trusted: {error.certificate_error}") from error
        except aiohttp.ClientConnectorError as error:
            raise Transient(f"no connection: {error.os_error}") from error
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise Transient(f"no answer: {error}") from error


class _Lent(AbstractResolver):
    """A resolver that outlives the connector which uses it."""

    def __init__(self, resolver: AbstractResolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return await self._resolver.resolve(host, port, family)

    async def close(self) -> None:
        await asyncio.sleep(0)


class Names(AbstractResolver):
    """Asks the system, in threads of its own: a name that is never answered takes none that others need, nor delays the end."""

    def __init__(self) -> None:
        self._under_way = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if self._under_way >= LOOKUPS_MAX:
            raise OSError("too many names are being looked up")
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def settle(result: list[ResolveResult] | Exception) -> None:
            self._under_way -= 1
            if found.done():
                return
            if isinstance(result, Exception):
                found.set_exception(result)
            else:
                found.set_result(result)

        def work() -> None:
            result = _addresses(host, port, family)
            with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
                loop.call_soon_threadsafe(settle, result)

        self._under_way += 1
        threading.Thread(target=work, name=f"look up {host}", daemon=True).start()
        return await found

    async def close(self) -> None:
        await asyncio.sleep(0)


def _addresses(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult] | Exception:
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except (OSError, UnicodeError) as error:
        return error
    return [
        ResolveResult(hostname=host, host=str(target[0]), port=port, family=kind, proto=protocol, flags=0)
        for kind, _, protocol, _, target in found
    ]


def check_reach(reach: Reach, target: str) -> None:
    """Raises: PermissionError for an address that nobody may lead the server to, or not with this reach."""
    address = ip_address(target.partition("%")[0])
    if reach == "public" and not is_public(address):
        raise PermissionError(f"{address} is of a private network or of the cloud's own machines")
    if address.is_multicast or address.is_unspecified:
        raise PermissionError(f"{address} is not the address of a machine")


def _socket(reach: Reach, about: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
    """Return a socket for the address that is connected to next. Raises: PermissionError for one out of reach."""
    family, kind, protocol, _, target = about
    check_reach(reach, str(target[0]))
    return socket.socket(family, kind, protocol)


@functools.lru_cache(64)
def _trust(ca: str) -> ssl.SSLContext:
    """Return a context that trusts the system's authorities, and those in ``ca``. Raises: Transient."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca:
        try:
            context.load_verify_locations(cadata=ca)
        except ssl.SSLError as error:
            raise Transient(f"callback_ca cannot be read: {error.reason}") from error
    return context
