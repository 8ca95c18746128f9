"""What a host can take, from what it reported and what its operator said."""

from __future__ import annotations

from msgspec import Struct

from pileus.infra.host.types import HostDesired, HostObserved


class Room(Struct, frozen=True):
    """Capacity given out to VMs: virtual CPUs, and MiB of memory."""

    vcpus: int
    memory_mib: int


def capacity(desired: HostDesired, observed: HostObserved) -> Room:
    """Return what may be given out: CPUs times the overcommit, memory less the reserve (at most half is reserved)."""
    reserve = min(desired.memory_reserve_mib, observed.memory_mib // 2)
    return Room(observed.cpus * desired.vcpus_per_cpu, observed.memory_mib - reserve)
