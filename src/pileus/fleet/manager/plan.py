"""What a manager may be: where it may be told of changes, and the managers that the platform itself is."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import SplitResult, urlsplit

from pileus.fleet.manager.types import BUILTIN, KIND
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource

FIELD = "desired.callback_url"
_HOST = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
_NUMBER = re.compile(r"([0-9]+|0x[0-9a-f]*)", re.IGNORECASE)
"""A last label that makes resolvers read the whole host as an IPv4 address (WHATWG URL 3.5)."""


def built_in(name: str, id: str) -> Resource:
    """Return one of the platform's own managers, to be made with this id; like every manager it stands for itself."""
    return Resource(id=id, kind=KIND.name, name=name, manager=id, desired=BUILTIN[name])


def check_callback(url: str, *, by_operator: bool) -> None:
    """Raises: Invalid for an address that notices may not go to.

    https to a name or a public address. Only what an operator writes may lead into the cloud's own networks, or be http
    to this machine. What a name resolves to is checked again when something is sent there.
    """
    parts = _split(url)
    host = parts.hostname or ""
    literal = _literal(host)
    local = host.lower() == "localhost" or (literal is not None and literal.is_loopback)
    if parts.scheme != "https" and not (parts.scheme == "http" and by_operator and local):
        raise _refused("must start with https://, or (made by an operator) be http to this machine's own address")
    if by_operator:
        return
    if local or host.lower().endswith(".localhost") or (literal is not None and not _is_public(literal)):
        raise _refused(f"{host} is an address of a private network or of the cloud's own machines")


def _split(url: str) -> SplitResult:
    """Return the parts of the URL. Raises: Invalid for one that people and programs might read differently."""
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise _refused("may hold printable ASCII only, no blanks and no backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refused(f"is no URL: {error}") from None
    if not parts.hostname or port == 0:
        raise _refused("names no host, such as https://fleet.example.com/notices")
    if "@" in parts.netloc or "#" in url:
        raise _refused("may hold no user, no password and no fragment; notices are signed instead")
    return parts


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that the host is written as; None for a name. Raises: Invalid for neither."""
    try:
        return ip_address(host)
    except ValueError:
        if _HOST.fullmatch(host) is None or _NUMBER.fullmatch(host.rpartition(".")[2]):
            raise _refused(f"{host} is no host name and no IP address") from None
        return None


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast


def _refused(why: str) -> Invalid:
    return Invalid(f"callback_url: {why}", field=FIELD)
