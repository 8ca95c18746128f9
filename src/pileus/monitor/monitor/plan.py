"""Which VMs a monitor watches, and which of its watchers has each: pure decisions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from pileus.compute.vm.types import is_of_cloud
from pileus.kernel.kind import Resource
from pileus.kernel.term import Phase, phase_of
from pileus.monitor.monitor.types import APPLIANCES_MAX, MonitorAssigned, MonitorDesired, MovedIn
from pileus.monitor.state.types import StateAssigned, StateDesired

FLEET_S = 600.0
"""Of the cap on appliances that are acted on as a whole."""


def selected(monitor: Resource, vms: Iterable[Resource]) -> list[Resource]:
    """Return the VMs that are meant, in the order of their ids; a monitor's own appliances are the cloud's."""
    desired: MonitorDesired = monitor.desired
    named = set(names(monitor))
    everything = not named and not desired.labels
    wanted = desired.labels.items()

    def is_watched(vm: Resource) -> bool:
        if vm.deleting or is_of_cloud(vm):
            return False
        is_labelled = bool(desired.labels) and wanted <= dict(vm.labels).items()
        return everything or is_labelled or vm.name in named or vm.id in named

    return sorted(filter(is_watched, vms), key=lambda vm: vm.id)


def names(monitor: Resource) -> tuple[str, ...]:
    """Return the VMs that are named: by its wish, and when that says nothing, by the inventory that it came with."""
    desired: MonitorDesired = monitor.desired
    assigned: MonitorAssigned | None = monitor.assigned
    if desired.vms or desired.labels or assigned is None or assigned.moved_in is None:
        return desired.vms
    return assigned.moved_in.vms


def term_of(monitor: Resource, now: float) -> Phase:
    """Return how near its end it is; it stops at once, so it is never ending."""
    assigned: MonitorAssigned = monitor.assigned
    return phase_of(assigned.end, assigned.end, monitor.desired.warn_s, now)


def is_over(monitor: Resource, now: float) -> bool:
    """Tell whether its time is over: nothing is done by it any more."""
    assigned: MonitorAssigned | None = monitor.assigned
    return assigned is not None and 0 < assigned.end <= now


def is_moving(monitor: Resource) -> bool:
    """Tell whether the inventory that it came with is not read yet: until then it watches nothing."""
    assigned: MonitorAssigned = monitor.assigned
    return bool(assigned.image) and assigned.moved_in is None


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


def row_of(monitor: Resource, vm: Resource, watcher: str) -> Resource:
    """Return the monitor's first row for the VM."""
    return Resource(
        id="",
        kind="monitor.state",
        name=row_name(monitor, vm),
        desired=StateDesired(vm=vm.id),
        assigned=StateAssigned(monitor=monitor.id, vm=vm.id, watcher=watcher, epoch=1),
        zone=vm.zone,
        vdc=vm.vdc,
    )


def watcher_name(monitor: Resource, number: int) -> str:
    """Return the name of the monitor's watcher: no other's, also when two monitors' names are long and begin alike."""
    if len(monitor.name) <= 58:
        return f"{monitor.name}-{number}"
    mark = hashlib.blake2b(monitor.id.encode(), digest_size=4).hexdigest()
    return f"{monitor.name[:49]}-{mark}-{number}"


def recent(acted: Iterable[tuple[str, float]], now: float) -> tuple[tuple[str, float], ...]:
    """Return what counts for the cap of the fleet."""
    return tuple((vm, at) for vm, at in acted if now - FLEET_S < at <= now + FLEET_S)


def told(meant: int, watchers: int, awaited: str = "") -> str:
    """Return what keeps it from watching all ``meant`` VMs; empty for nothing."""
    if meant > APPLIANCES_MAX:
        return (
            f"it means {meant} VMs, and a monitor watches {APPLIANCES_MAX}: the newest are not watched; "
            "share them out among several monitors by labels"
        )
    if awaited:
        return awaited
    if not meant:
        return "no VM of the account is named by it or has its labels"
    if not watchers:
        return "none of its watchers is at work yet"
    return ""


def awaited(monitor: Resource, watchers: Iterable[Resource]) -> str:
    """Return what it waits for before it watches anything; empty for nothing."""
    if not is_moving(monitor):
        return ""
    told = (each.observed.message for each in watchers if each.observed is not None and each.observed.message)
    why = next(told, "")
    return f"the inventory on its image is not read yet{why and f': {why}'}"


def told_of(moved_in: MovedIn | None) -> str:
    """Return what a person should know of the inventory that came; empty for nothing."""
    if moved_in is None:
        return ""
    if moved_in.problem:
        return f"no inventory moved in: {moved_in.problem}"
    words = []
    if moved_in.missing_count:
        more = ", …" if moved_in.missing_count > len(moved_in.missing) else ""
        words.append(f"of its inventory no VM here is {', '.join(moved_in.missing)}{more}")
    words += [f"policy {each}" for each in moved_in.left_out[:3]]
    return "; ".join(words)
