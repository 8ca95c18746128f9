"""Room for guaranteed machines: which best-effort machines have to make it. The choice is pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from msgspec.structs import replace

from pileus.compute.book import Book
from pileus.compute.offers import Choice, Held, Offer
from pileus.compute.placement.types import HELD, PlacementAssigned
from pileus.kernel.kind import Resource
from pileus.kernel.outcome import Waiting
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

SERVICE_LABEL = "service"
"""Label of rows, by which those of best-effort machines are found."""
ROWS_MAX = 100_000
PREEMPTED = "Preempted"
RACE_S = 0.6
"""After somebody else was faster: longer than offers are kept in memory."""


async def best_effort(store: Store) -> list[Resource]:
    """Return the rows of all best-effort machines that hold something, of every account."""
    labels = ((SERVICE_LABEL, "best-effort"),)
    rows = await store.list(Filter(kind="compute.placement", labels=labels), limit=ROWS_MAX)
    return [row for row in rows if row.assigned.state in HELD and not row.deleting]


def victims(
    rows: Sequence[Resource],
    offers: Sequence[Offer],
    held: Sequence[Held],
    now: float,
    choose: Callable[[Book], Choice],
) -> list[Resource] | None:
    """Return the rows whose machines must go so that all is chosen; None when even that would not do; empty: there is room.

    ``choose`` chooses from offers, of which ``held`` is taken. Of each host the newest go first, and no more than are in
    the way.
    """
    choice = choose(Book(offers, [*held, *(back for row in rows for back in _given_back(row.assigned))], now))
    if choice.refused or not choice.chosen:
        return None
    needed = [one for chosen in choice.chosen for one in chosen.held]
    servers = {one.server for one in needed}
    after = Book(offers, held, now)
    after.take(needed, now)
    found = []
    for row in sorted(rows, key=lambda each: (each.assigned.start, each.id), reverse=True):
        back = _given_back(row.assigned)
        if any(each.server in servers and min(after.rooms[each.server].floor.values()) < 0 for each in back):
            found.append(row)
            after.take(back, now)
    return found


def _given_back(place: PlacementAssigned) -> list[Held]:
    """Return what there is more of without a machine."""
    start = place.start if place.promised == "yes" else 0.0
    amounts = (
        (place.server, {"vcpus": -place.vcpus, "memory_mib": -place.memory_mib}),
        (place.pool, {"disk_gib": -place.disk_gib}),
    )
    return [Held(server=id, quantity=less, start=start, until=place.end or inf) for id, less in amounts if id]


async def preempt(tx: Transaction, rows: Sequence[Resource], reason: str) -> None:
    """Let these machines go: their requests look for other places for them later.

    Raises: Waiting when one went already: somebody else counts on its room.
    """
    for each in rows:
        row = await tx.find_id(each.id)
        if row is None or row.assigned.state not in HELD:
            raise Waiting("MakingRoom", "machines that were to make room went already; others are chosen", RACE_S)
        await tx.uncharge(row.id)
        decided = replace(row.assigned, state="preempted", reason=PREEMPTED, message=reason)
        decided = replace(decided, vm="", promised="no", doubted_at=0.0)
        await tx.update(row, assigned=decided)
        request = await tx.find_id(row.owner)
        if request is not None:
            await tx.event(request, PREEMPTED, PREEMPTED, f"machine {decided.number} {reason}")
            await tx.enqueue(request.id)
            await tx.enqueue(request.assigned.set)
