"""What a placement holds of its host and its pool: charged now until its end, or promised from its start on."""

from __future__ import annotations

from pileus.compute.placement.types import PlacementAssigned
from pileus.kernel.quota import space
from pileus.kernel.transaction import Transaction


def spaces(place: PlacementAssigned) -> list[tuple[str, int]]:
    """Return (space, amount) of all that a machine takes there."""
    found = [(space(place.server, "memory_mib"), place.memory_mib), (space(place.server, "vcpus"), place.vcpus)]
    return [*found, (space(place.pool, "disk_gib"), place.disk_gib)] if place.pool else found


async def charge_place(tx: Transaction, owner: str, place: PlacementAssigned) -> None:
    """Charge it until the place's end. Raises: Exhausted."""
    for where, amount in spaces(place):
        await tx.charge(where, owner, amount, place.end)


async def promise_place(tx: Transaction, owner: str, place: PlacementAssigned) -> None:
    """Promise it from the place's start until its end. Raises: Exhausted."""
    for where, amount in spaces(place):
        await tx.promise(where, owner, amount, place.start, place.end)
