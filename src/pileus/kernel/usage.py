"""What a resource uses, as runs: spans in which its amounts do not change. Pure; ``metering`` keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

AMOUNT_MAX = 1 << 40
"""Of any unit; hosts say amounts, and a sum must bear what one says that is broken or hostile."""


class Use(Struct, frozen=True):
    """What a resource uses from a moment on. ``amounts``: how much of each unit; empty: nothing.

    ``since``: RFC 3339, as who looked says; empty: from the write on. ``host``: only while this host is heard is it known
    to go on; empty: it goes on until it is ended. ``ran``: what it used before, should nobody have been told.
    """

    amounts: dict[str, int] = {}
    since: str = ""
    host: str = ""
    ran: Use | None = None


class Run(NamedTuple):
    """A span of unchanged use. ``until`` 0: it goes on."""

    since: float
    until: float
    amounts: dict[str, int]
    host: str


def bounded(amounts: Mapping[str, int]) -> dict[str, int]:
    """Return what may be billed: nobody uses less than nothing, or more than there can be."""
    return {word: min(max(amount, 0), AMOUNT_MAX) for word, amount in amounts.items()}


def follow(last: Run | None, wish: Run, now: float, floor: float) -> tuple[Run | None, Run | None]:
    """Return the last run as it ends (None: it stays as it is), and the one that begins (None: none does).

    ``wish``: what is used from when on (0: now). Whatever a host's clock says, the runs of a resource never overlap, and
    lie between ``floor`` (when it was made) and now.
    """
    open_one = last if last is not None and not last.until else None
    if open_one is None and not wish.amounts:
        return None, None
    if open_one is not None and (open_one.amounts, open_one.host) == (wish.amounts, wish.host):
        return None, None
    if last is not None:
        floor = max(floor, last.until or last.since)
    at = max(min(wish.since or now, now), floor)
    ended = open_one._replace(until=at) if open_one is not None else None
    return ended, wish._replace(since=at) if wish.amounts else None
