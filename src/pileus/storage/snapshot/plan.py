"""The next step of a snapshot on its host. Pure."""

from __future__ import annotations

from msgspec import Struct

from pileus.kernel.kind import Resource
from pileus.storage.snapshot.types import SnapshotAssigned, SnapshotObserved


class Step(Struct, frozen=True, kw_only=True):
    """Take or delete."""

    verb: str
    after_s: float = 0.0


def plan(*, deleting: bool, present: bool, made: bool) -> Step | None:
    """Return the next step. One that was made and is lost is not made again: it would show another moment."""
    if deleting:
        return Step(verb="delete") if present or made else None
    return None if present or made else Step(verb="take")


def awaits(snapshot: Resource, volume: str) -> bool:
    """Tell whether the snapshot is still to be made of this volume, so that the volume may not go yet.

    One that finds no room does not keep it.
    """
    assigned: SnapshotAssigned = snapshot.assigned
    observed: SnapshotObserved | None = snapshot.observed
    if snapshot.deleting or assigned.volume != volume:
        return False
    if observed is None:
        return True
    return observed.state != "present" and (observed.problem is None or observed.problem.reason != "DiskFull")
