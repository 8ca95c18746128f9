"""Checks that several mirror kinds share."""

from __future__ import annotations

from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource


def require_nic(vm: Resource, nic: int) -> None:
    """Raises: Invalid for a NIC that the VM does not have."""
    count = len(vm.desired.nics)
    if nic >= count:
        has = f"{count} NIC{'s' if count != 1 else ''}, numbered from 0" if count else "no NIC"
        raise Invalid(f"{vm} has {has}; there is no NIC {nic}", field="desired.nic")


def refuse_appliance(vm: Resource, field: str) -> None:
    """Raises: Invalid for a VM that belongs to something else, such as a router."""
    if vm.owner != vm.account_id:
        raise Invalid(f"{vm} is an appliance; name one of your own VMs", field=field)
