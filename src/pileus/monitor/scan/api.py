"""Admission of a scan that a person asks for; most are made for their signature."""

from __future__ import annotations

from dataclasses import replace

from pileus.kernel.admission import Admission, Change
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.monitor.scan.types import ScanAssigned, ScanObserved
from pileus.monitor.scanning import take_place


class ScanAdmission(Admission):
    """What can be refused is refused here."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the scan. Raises: Conflict while another of the same appliance is under way."""
        new = change.new
        if change.old is not None:
            return new
        signature = await tx.get(change.links["signature"])
        vm = await tx.get(change.links.pop("vm"))
        await take_place(tx, signature, vm.id, new.id)
        assigned = ScanAssigned(vm=vm.id, signature=signature.id, signature_name=signature.name)
        return replace(new, zone=vm.zone, vdc=vm.vdc, assigned=assigned, observed=ScanObserved())
