"""Room for guaranteed machines: which best-effort machines have to make it. The choice is pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec.structs import replace

from pileus.compute.offers import Choice, Offer
from pileus.compute.placement.types import HELD, PlacementAssigned
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

SERVICE_LABEL = "service"
"""Label of rows, by which those of best-effort machines are found."""
ROWS_MAX = 100_000
PREEMPTED = "Preempted"

Quantity = dict[str, int]


async def best_effort(store: Store) -> list[Resource]:
    """Return the rows of all best-effort machines that hold something, of every account."""
    labels = ((SERVICE_LABEL, "best-effort"),)
    rows = await store.list(Filter(kind="compute.placement", labels=labels), limit=ROWS_MAX)
    return [row for row in rows if row.assigned.state in HELD and not row.deleting]


def victims(
    rows: Sequence[Resource], offers: Sequence[Offer], choose: Callable[[list[Offer]], Choice]
) -> list[Resource]:
    """Return the rows whose machines must go so that all is chosen; empty when even that would not do.

    ``choose`` chooses from offers. Of each host the newest go first, and no more than are in the way.
    """
    free = {offer.server: dict(offer.quantity) for offer in offers}
    at_most = {server: dict(quantity) for server, quantity in free.items()}
    for row in rows:
        _give(at_most, row.assigned)
    choice = choose([replace(offer, quantity=at_most[offer.server]) for offer in offers])
    if choice.refused or not choice.chosen:
        return []
    short = _shortage(choice, free)
    found = []
    for row in sorted(rows, key=lambda each: (each.assigned.start, each.id), reverse=True):
        place: PlacementAssigned = row.assigned
        if _is_short(short, (place.server, place.pool)):
            found.append(row)
            _give(free, place)
            short = _shortage(choice, free)
    return found


def _give(quantities: Mapping[str, Quantity], place: PlacementAssigned) -> None:
    """Add what a machine holds to what there is."""
    for server, word, amount in (
        (place.server, "vcpus", place.vcpus),
        (place.server, "memory_mib", place.memory_mib),
        (place.pool, "disk_gib", place.disk_gib),
    ):
        if server in quantities:
            quantities[server][word] = quantities[server].get(word, 0) + amount


def _shortage(choice: Choice, free: Mapping[str, Quantity]) -> set[str]:
    """Return the servers of which more is chosen than is free."""
    needed: dict[str, Quantity] = defaultdict(lambda: defaultdict(int))
    for chosen in choice.chosen:
        for held in chosen.held:
            for word, amount in held.quantity.items():
                needed[held.server][word] += amount
    return {
        server
        for server, quantity in needed.items()
        if any(free.get(server, {}).get(word, 0) < amount for word, amount in quantity.items())
    }


def _is_short(short: set[str], servers: Iterable[str]) -> bool:
    return any(server in short for server in servers)


async def preempt(tx: Transaction, rows: Sequence[Resource], reason: str) -> None:
    """Let these machines go: their requests look for other places for them later."""
    for each in rows:
        row = await tx.find_id(each.id)
        if row is None or row.assigned.state not in HELD:
            continue
        await tx.uncharge(row.id)
        decided = replace(row.assigned, state="preempted", reason=PREEMPTED, message=reason, vm="", doubted_at=0.0)
        await tx.update(row, assigned=decided)
        request = await tx.find_id(row.owner)
        if request is not None:
            await tx.event(request, PREEMPTED, PREEMPTED, f"machine {decided.number} {reason}")
            await tx.enqueue(request.id)
            await tx.enqueue(request.assigned.set)
