"""What resource servers offer, what machines need, and what came of choosing. ``choosing`` chooses; nothing here does I/O.

Times are Unix seconds. Intervals hold their start and not their end.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Literal

from msgspec import Struct

ServerKind = Literal["host", "pool", "network", "images"]
Service = Literal["guaranteed", "best-effort"]
Mode = Literal["all-or-nothing", "best-effort"]
YesNo = Literal["yes", "no"]

COUNT_MAX = 1000
"""Most machines of one request."""


class Offer(Struct, frozen=True, kw_only=True):
    """What a resource server can contribute: ``quantity`` in all, from ``start`` to ``until``.

    A host gives vcpus, memory_mib and perhaps rate_kbps; a pool disk_gib and perhaps iops; a network addresses; images
    name every image that is there, each with 1. A quantity that is not named is 0, but iops and rate_kbps: no limit.
    """

    server: str
    kind: ServerKind
    name: str
    zone: str = ""
    """Empty: serves every zone."""
    quantity: Mapping[str, int]
    service: Service = "guaranteed"
    """best-effort: takes no machine that is to be guaranteed."""
    start: float = 0.0
    until: float = inf
    pool: str = ""
    """The pool that a host's volumes go to; empty: the host's own disk_gib is what counts."""
    refuses: str = ""
    """Reason for which it takes nothing now, CamelCase; empty: it takes machines."""
    roles: tuple[str, ...] = ("compute", "routing", "storage")
    uefi: YesNo = "no"


class Machine(Struct, frozen=True, kw_only=True):
    """What one machine needs. It starts once in ``start_from`` … ``start_by``, both included."""

    number: int
    """Its own among the machines that are chosen for together."""
    vcpus: int
    memory_mib: int
    disk_gib: int = 0
    iops: int = 0
    rate_kbps: int = 0
    service: Service = "guaranteed"
    image: str = ""
    networks: tuple[str, ...] = ()
    """Ids of networks; it takes an address of each, of one that is named twice two."""
    zone: str = ""
    """Empty: any."""
    start_from: float = 0.0
    start_by: float = inf
    duration_s: float = 0
    """0: no end."""
    role: str = "compute"
    uefi: YesNo = "no"
    only_host: str = ""
    """Id of the only host that will do; empty: any."""
    not_on: frozenset[str] = frozenset()
    """Ids of hosts that refused it or its like."""
    apart: str = ""
    """Group whose members go to different hosts as long as there are any."""


class Held(Struct, frozen=True, kw_only=True):
    """What is taken from a server's offer already, or is to be taken. Of images nothing is ever used up."""

    server: str
    quantity: Mapping[str, int]
    start: float = 0.0
    until: float = inf
    apart: str = ""
    """Group of the machine that has it; counts where the server is a host."""


class Chosen(Struct, frozen=True, kw_only=True):
    """Where and when a machine runs."""

    number: int
    host: str
    pool: str
    networks: tuple[str, ...]
    images: str
    start: float
    until: float
    reason: str
    """Why this host, in words."""
    held: tuple[Held, ...]
    """What each server contributes: host, pool, images, networks, each server once."""


class Refusal(Struct, frozen=True, kw_only=True):
    """Why some hosts do not take a machine. Each host has one reason: its own, else that of its pool, else a network's."""

    reason: str
    """CamelCase."""
    message: str
    count: int
    first: tuple[str, ...]
    """Names of the first few."""


class Refused(Struct, frozen=True, kw_only=True):
    """Machines that were not chosen, alike in why; the counts of the refusals add up to the number of hosts."""

    machines: tuple[int, ...]
    refusals: tuple[Refusal, ...]


OTHERS_REFUSED = "OthersRefused"
"""Of machines that would find a place, but not all of those that they belong to."""


class Choice(Struct, frozen=True, kw_only=True):
    """What came of choosing: every machine is in one of both.

    All-or-nothing: one of both is empty, and all start at the same moment.
    """

    chosen: tuple[Chosen, ...]
    refused: tuple[Refused, ...]


def summary(choice: Choice) -> str:
    """Return one sentence for the machines' owner, without names and sizes of hosts; empty when all were chosen."""
    if not choice.refused:
        return ""
    total = sum(len(each.machines) for each in choice.refused) + len(choice.chosen)
    lacking = [each for each in choice.refused if each.refusals[0].reason != OTHERS_REFUSED]
    missing = sum(len(each.machines) for each in lacking)
    reasons = sorted({refusal.reason for each in lacking for refusal in each.refusals})
    words = f"{missing} of {total} machines find no place: {', '.join(reasons)}"
    if choice.chosen:
        return words
    advice = "ask for fewer, or smaller ones, or another time"
    if missing < total:
        return f"{words}; so none is made: {advice}, or by --mode best-effort for those that can be had"
    return f"{words}; {advice}"


def contradiction(machine: Machine, now: float, *, count: int = 1, end: float = inf) -> str:
    """Return what can never be in a wish for ``count`` such machines that end at ``end``; empty: nothing.

    The words begin with the name of the field.
    """
    negative = next((f for f in ("disk_gib", "iops", "rate_kbps", "duration_s") if getattr(machine, f) < 0), "")
    checks = (
        (not 1 <= count <= COUNT_MAX, f"count is {count}; it may be 1 to {COUNT_MAX}"),
        (machine.vcpus < 1, f"vcpus is {machine.vcpus}; at least 1 is needed"),
        (machine.memory_mib < 1, f"memory_mib is {machine.memory_mib}; at least 1 is needed"),
        (bool(negative), f"{negative} is below 0"),
        (machine.start_by < machine.start_from, "start_by is before start_from"),
        (machine.start_by < now, "start_by has passed already"),
        (end <= max(machine.start_from, now), "end is not after the start"),
        (bool(machine.duration_s) and end < inf, "duration_s and an end are two words for one thing; give one of them"),
    )
    return next((words for wrong, words in checks if wrong), "")
