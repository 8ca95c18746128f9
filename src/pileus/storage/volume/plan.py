"""The next step of a volume on its host. Pure."""

from __future__ import annotations

from msgspec import Struct

from pileus.kernel.kind import Resource
from pileus.storage.volume.types import VolumeAssigned, VolumeDesired
from pileus.tenancy.account.types import VmLimits, lowest

GIB = 2**30


class Wish(Struct, frozen=True, kw_only=True):
    """What the host shall make true.

    ``used``: a running VM has the file open, or a snapshot is still to be made of it. ``image_needed``: not cached yet.
    """

    deleting: bool
    size_bytes: int
    used: bool = False
    image_needed: bool = False


class Fact(Struct, frozen=True, kw_only=True):
    """What the host has; None: no such file. ``made``: there was one, and whoever wrote to it wants it back."""

    size_bytes: int | None = None
    made: bool = False


class Step(Struct, frozen=True, kw_only=True):
    """One thing to do."""

    verb: str
    after_s: float = 0.0


def plan(wish: Wish, fact: Fact) -> Step | None:
    """Return the next step from ``fact`` to ``wish``; None when nothing is to be done until something changes."""
    if wish.deleting:
        if fact.size_bytes is None and not fact.made:
            return None
        return Step(verb="wait", after_s=1.0) if wish.used else Step(verb="delete")
    if fact.size_bytes is None:
        if fact.made:
            return None
        return Step(verb="fetch_image") if wish.image_needed else Step(verb="create")
    if fact.size_bytes < wish.size_bytes and not wish.used:
        return Step(verb="resize")
    return None


def limits_of(volume: Resource) -> VmLimits:
    """Return the limits of the volume as a disk: what it wishes, and what was decided."""
    desired: VolumeDesired = volume.desired
    assigned: VolumeAssigned = volume.assigned
    return lowest(
        VmLimits(iops_limit=desired.iops_limit, throughput_limit_kib_s=desired.throughput_limit_kib_s),
        VmLimits(iops_limit=assigned.iops_limit, throughput_limit_kib_s=assigned.throughput_limit_kib_s),
    )
