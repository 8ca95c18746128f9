"""The drivers of a host and the host halves of the kinds on them."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from pileus.compute.vm.host import VmHalf
from pileus.drivers.host.disk.base import DiskPool
from pileus.drivers.host.guest.base import Guest
from pileus.drivers.host.mirror.base import Mirror
from pileus.drivers.host.notes import Notes
from pileus.drivers.host.ovs.base import Switch, Uplinks
from pileus.drivers.host.qemu.base import Hypervisor
from pileus.drivers.host.system.base import System
from pileus.fleet.node.host import NodeHalf
from pileus.fleet.request.host import RequestHalf
from pileus.infra.host.host import HostHalf
from pileus.kernel.half import Half
from pileus.mirror.leg.host import LegHalf
from pileus.monitor.look.host import LookHalf
from pileus.network.port.host import PortHalf
from pileus.network.segment.host import SegmentHalf
from pileus.scan.base import Scanner
from pileus.storage.pool.host import PoolHalf
from pileus.storage.snapshot.host import SnapshotHalf
from pileus.storage.volume.host import VolumeHalf


class Drivers(Struct, frozen=True, kw_only=True):
    """Everything an agent drives."""

    hypervisor: Hypervisor
    switch: Switch
    disks: DiskPool
    guest: Guest
    system: System
    notes: Notes
    volume_notes: Notes
    snapshot_notes: Notes
    leg_notes: Notes
    mirror: Mirror
    scanner: Scanner
    uplinks: Uplinks = Uplinks()


def halves(drivers: Drivers) -> list[Half[Any, Any]]:
    """Return the host halves, one per host-bound kind."""
    return [
        HostHalf(drivers.system, drivers.hypervisor, drivers.uplinks, drivers.scanner),
        PoolHalf(drivers.disks),
        VolumeHalf(drivers.disks, drivers.volume_notes),
        SnapshotHalf(drivers.disks, drivers.hypervisor, drivers.snapshot_notes),
        PortHalf(drivers.switch),
        SegmentHalf(drivers.switch),
        VmHalf(drivers.hypervisor, drivers.guest, drivers.disks, drivers.switch, drivers.notes),
        NodeHalf(drivers.guest),
        RequestHalf(drivers.guest),
        LookHalf(drivers.disks, drivers.hypervisor, drivers.scanner),
        LegHalf(drivers.mirror, drivers.leg_notes),
    ]
