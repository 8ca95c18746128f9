"""Admission of a sniffer: a NIC that is there, that no other sniffer has, and that no session copies from."""

from __future__ import annotations

from dataclasses import replace

from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Conflict
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import AlreadyClaimed, Transaction
from pileus.mirror.admission import refuse_appliance, require_nic
from pileus.mirror.sniffer.types import SnifferAssigned, SnifferDesired, sniffer_space, source_space


class SnifferAdmission(Admission):
    """What can be refused is refused here."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the sniffer. Raises: Invalid, Conflict (already-exists, loop)."""
        new = change.new
        desired: SnifferDesired = new.desired
        if change.old is not None:
            return new
        vm = await tx.get(change.links["vm"])
        refuse_appliance(vm, "desired.vm")
        require_nic(vm, desired.nic)
        try:
            await tx.claim(sniffer_space(), f"{vm.id}/{desired.nic}", new.id)
        except AlreadyClaimed as error:
            other = await tx.get(error.holder)
            raise Conflict(f"NIC {desired.nic} of {vm} is {other} already; use that", code="already-exists") from None
        if await tx.claimed(source_space(vm.id, desired.nic)):
            raise Conflict(
                f"packets are copied from NIC {desired.nic} of {vm}: as a sniffer it would be given its own packets "
                "without end; use another NIC or VM",
                code="loop",
                field="desired.nic",
            )
        change.links["vdc"] = vm.vdc
        return replace(new, assigned=SnifferAssigned(vm=vm.id, zone=vm.zone, vdc=vm.vdc))
