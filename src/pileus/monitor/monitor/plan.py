"""Which VMs a monitor watches, and which of its watchers has each: pure decisions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from pileus.compute.vm.types import is_of_cloud
from pileus.kernel.kind import Resource
from pileus.monitor.monitor.types import APPLIANCES_MAX, MonitorDesired

FLEET_S = 600.0
"""Of the cap on appliances that are acted on as a whole."""


def selected(desired: MonitorDesired, vms: Iterable[Resource]) -> list[Resource]:
    """Return the VMs that are meant, in the order of their ids; a monitor's own appliances are the cloud's."""
    named = set(desired.vms)
    everything = not named and not desired.labels
    wanted = desired.labels.items()

    def is_watched(vm: Resource) -> bool:
        if vm.deleting or is_of_cloud(vm):
            return False
        is_labelled = bool(desired.labels) and wanted <= dict(vm.labels).items()
        return everything or is_labelled or vm.name in named or vm.id in named

    return sorted(filter(is_watched, vms), key=lambda vm: vm.id)


def shared_out(vms: Iterable[str], watchers: Sequence[str]) -> dict[str, str]:
    """Return VM -> watcher: the one with the highest hash of both, so that one that goes changes only its own VMs.

    Source: rendezvous hashing (Thaler and Ravishankar, 1998). No watchers: an empty word for each.
    """
    return {vm: max(watchers, key=lambda watcher: _weight(vm, watcher), default="") for vm in vms}


def _weight(vm: str, watcher: str) -> bytes:
    return hashlib.blake2b(f"{vm} {watcher}".encode(), digest_size=8).digest()


def row_name(monitor: Resource, vm: Resource) -> str:
    """Return the name of the monitor's row for the VM: short, readable, and no other's."""
    mark = hashlib.blake2b(f"{monitor.id} {vm.id}".encode(), digest_size=4).hexdigest()
    return f"{vm.name[:50]}-{mark}"


def watcher_name(monitor: Resource, number: int) -> str:
    """Return the name of the monitor's watcher: no other's, also when two monitors' names are long and begin alike."""
    if len(monitor.name) <= 58:
        return f"{monitor.name}-{number}"
    mark = hashlib.blake2b(monitor.id.encode(), digest_size=4).hexdigest()
    return f"{monitor.name[:49]}-{mark}-{number}"


def recent(acted: Iterable[tuple[str, float]], now: float) -> tuple[tuple[str, float], ...]:
    """Return what counts for the cap of the fleet."""
    return tuple((vm, at) for vm, at in acted if now - FLEET_S < at <= now + FLEET_S)


def told(meant: int, watchers: int) -> str:
    """Return what keeps it from watching all ``meant`` VMs; empty for nothing."""
    if meant > APPLIANCES_MAX:
        return (
            f"it means {meant} VMs, and a monitor watches {APPLIANCES_MAX}: the newest are not watched; "
            "share them out among several monitors by labels"
        )
    if not meant:
        return "no VM of the account is named by it or has its labels"
    if not watchers:
        return "none of its watchers is at work yet"
    return ""
