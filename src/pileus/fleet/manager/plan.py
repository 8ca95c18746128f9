"""What a manager may be: where it may be told of changes, and the managers that the platform itself is."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import SplitResult, urlsplit

from msgspec import Struct
from msgspec.structs import replace

from pileus.fleet.manager.types import BUILTIN, KIND, ManagerObserved
from pileus.kernel.addresses import is_public
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource

FIELD = "desired.callback_url"
_HOST = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
_NUMBER = re.compile(r"([0-9]+|0x[0-9a-f]*)", re.IGNORECASE)
"""A last label that makes resolvers read the whole host as an IPv4 address (WHATWG URL 3.5)."""

RETRY_FIRST_S, RETRY_MAX_S = 1.0, 60.0
SHOWN_AFTER = 3
"""Failures, one after another, from which on people see that the callback fails."""


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
    if local or host.lower().endswith(".localhost") or (literal is not None and not is_public(literal)):
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


def retry_s(failures: int, share: float) -> float:
    """Return how long to wait after so many failures, one after another. ``share``: a random number from 0 to 1.

    At least half of the step, so that many receivers are not tried all at once.
    """
    step = min(RETRY_FIRST_S * 2.0 ** min(failures - 1, 16), RETRY_MAX_S)
    return step * (0.5 + share / 2)


class Delivery(Struct, frozen=True, kw_only=True):
    """How the callback does: tries that failed one after another and since when, what waits, and the words for it."""

    failures: int = 0
    failing_since: str = ""
    waiting: int = 0
    message: str = ""
    taken: bool = False
    """Whether one was taken just now."""
    is_due: bool = True
    """Whether the last report is old enough for another that only has new numbers."""


def report(known: ManagerObserved, now: Delivery) -> ManagerObserved:
    """Return what people are shown. It changes seldom: a callback that hiccups once is not shown at all."""
    if now.failures >= SHOWN_AFTER:
        since = known.failing_since or now.failing_since
        if known.failing_since and not now.is_due:
            return known
        return replace(known, failing_since=since, waiting=now.waiting, message=now.message)
    is_known_to_fail = bool(now.failures or known.failing_since) and not now.taken
    if now.waiting == 0 or (not is_known_to_fail and (known.failing_since or now.is_due)):
        return replace(known, failing_since="", waiting=now.waiting, message="")
    return known


def _refused(why: str) -> Invalid:
    return Invalid(f"callback_url: {why}", field=FIELD)
