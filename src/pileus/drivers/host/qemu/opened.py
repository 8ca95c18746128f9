"""Who has a disk open on this host, and can copy it."""

from __future__ import annotations

import functools

from pileus.drivers.host.disk.base import Copy
from pileus.drivers.host.qemu.base import Hypervisor


async def copier(hypervisor: Hypervisor, disk: str, bytes_per_s: int = 0) -> Copy | None:
    """Return what copies the disk out of the machine that has it open; None: no machine has."""
    for machine in (await hypervisor.observe()).values():
        if machine.state in ("running", "paused") and disk in machine.disks:
            return functools.partial(hypervisor.copy_disk, machine.id, disk, bytes_per_s=bytes_per_s)
    return None
