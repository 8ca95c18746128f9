"""What a host can take."""

from __future__ import annotations

import pytest

from pileus.infra.host.plan import Room, capacity
from pileus.infra.host.types import HostDesired, HostObserved


@pytest.mark.parametrize(
    ("desired", "cpus", "memory_mib", "room"),
    [
        (HostDesired(), 4, 8192, Room(64, 7168)),
        (HostDesired(vcpus_per_cpu=1, memory_reserve_mib=0), 4, 8192, Room(4, 8192)),
        (HostDesired(memory_reserve_mib=100_000), 4, 8192, Room(64, 4096)),
        (HostDesired(), 0, 0, Room(0, 0)),
    ],
)
def test_room_is_cpus_times_overcommit_and_memory_less_the_reserve(
    desired: HostDesired, cpus: int, memory_mib: int, room: Room
) -> None:
    assert capacity(desired, HostObserved(version="1", cpus=cpus, memory_mib=memory_mib)) == room
