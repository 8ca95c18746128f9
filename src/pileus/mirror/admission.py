"""Checks that several mirror kinds share."""

from __future__ import annotations

from pileus.compute.vm.types import is_of_cloud
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource


def require_nic(vm: Resource, nic: int) -> None:
    """Raises: Invalid for a NIC that the VM does not have."""
    count = len(vm.desired.nics)
    if nic >= count:
        has = f"{count} NIC{'s' if count != 1 else ''}, numbered from 0" if count else "no NIC"
        raise Invalid(f"{vm} has {has}; there is no NIC {nic}", field="desired.nic")


def refuse_appliance(vm: Resource, field: str) -> None:
    """Raises: Invalid for an appliance of the cloud's own, such as a router; a manager's node is its account's."""
    if is_of_cloud(vm):
        raise Invalid(f"{vm} is an appliance of the cloud; name a VM or node of your own", field=field)
