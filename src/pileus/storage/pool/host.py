"""The host half of a pool: how much room its disk has."""

from __future__ import annotations

from msgspec import Struct

from pileus.drivers.host.disk.base import DiskPool, PoolCapacity
from pileus.kernel.fields import Problem
from pileus.kernel.half import Half, Peers, Step
from pileus.kernel.kind import Resource
from pileus.storage.pool.types import PoolObserved

GIB = 2**30


class PoolHalf(Half[PoolCapacity, Step]):
    """Reports; there is nothing to do."""

    kind = "storage.pool"

    def __init__(self, disks: DiskPool) -> None:
        self._disks = disks

    async def observe(self, resource: Resource, peers: Peers) -> PoolCapacity:
        """Look at the file system."""
        return await self._disks.capacity()

    def plan(self, resource: Resource, fact: PoolCapacity, peers: Peers) -> Step | None:
        """Return None: a local pool is as it is."""
        return None

    async def do(self, step: Step, resource: Resource, peers: Peers) -> None:
        """Do nothing."""

    def report(self, resource: Resource, fact: PoolCapacity | None, problem: Problem | None) -> Struct:
        """Return the pool's observed section."""
        if fact is None:
            return PoolObserved(total_gib=0, free_gib=0, problem=problem)
        return PoolObserved(total_gib=fact.total_bytes // GIB, free_gib=fact.free_bytes // GIB, problem=problem)
