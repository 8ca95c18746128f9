"""Vitals of the VMs of this host: hypervisor, nodes and switch are asked together, and nobody waits for a slow one."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import Guest, NodeFact
from pileus.drivers.host.ovs.base import Switch
from pileus.drivers.host.qemu.base import HUNG_S, Hypervisor, Pulse
from pileus.fleet.vitals import NodeState, Vitals

UNKNOWN = Pulse(state="unknown")


class VitalSigns:
    """Looks at VMs when it is asked; it remembers nothing."""

    def __init__(self, hypervisor: Hypervisor, switch: Switch, guest: Guest) -> None:
        self._hypervisor = hypervisor
        self._switch = switch
        self._guest = guest

    async def look(self, vms: Collection[str], timeout_s: float = HUNG_S) -> list[Vitals]:
        """Return what each VM is now, within about ``timeout_s``: what does not answer by then is as last known."""
        pulses, nodes = await asyncio.gather(self._pulses(vms, timeout_s), self._nodes(vms, timeout_s))
        sent = await self._sent_bytes(pulses)
        return [self._vitals(vm, pulses.get(vm, UNKNOWN), nodes.get(vm), sent) for vm in vms]

    def _vitals(self, vm: str, pulse: Pulse, node: NodeFact | None, sent: Mapping[str, int]) -> Vitals:
        if node is None or pulse.state == "stopped":
            node, heard_s = NodeFact(machine=vm, state="silent"), -1.0
            state: NodeState = "absent"
        else:
            state, heard_s = node.state, self._guest.heard_s(vm)
        return Vitals(
            vm=vm,
            process=pulse.state,
            boots=pulse.boots,
            disk_bytes=pulse.disk_bytes,
            disk_operations=pulse.disk_operations,
            net_bytes=sum(sent.get(nic, 0) for nic in pulse.nics),
            node=state,
            heard_s=round(heard_s, 3),
            boot_id=node.boot_id,
            hash=node.hash,
            version=node.version,
            status=node.status,
        )

    async def _pulses(self, vms: Collection[str], timeout_s: float) -> dict[str, Pulse]:
        try:
            return await self._hypervisor.pulses(vms, timeout_s)
        except DriverError:
            return {}

    async def _sent_bytes(self, pulses: Mapping[str, Pulse]) -> dict[str, int]:
        try:
            return await self._switch.sent_bytes([nic for pulse in pulses.values() for nic in pulse.nics])
        except DriverError:
            return {}

    async def _nodes(self, vms: Collection[str], timeout_s: float) -> dict[str, NodeFact]:
        """Return what each VM's node says now; of one that says nothing what is known by then; none for other VMs."""
        known = await self._guest.nodes()
        asked = [vm for vm in vms if vm in known]
        answers = await asyncio.gather(*(self._poll(vm, timeout_s) for vm in asked))
        facts = dict(zip(asked, answers, strict=True))
        if None in answers:
            known = await self._guest.nodes()
        return {vm: fact or known[vm] for vm, fact in facts.items() if fact or vm in known}

    async def _poll(self, vm: str, timeout_s: float) -> NodeFact | None:
        try:
            return await self._guest.poll(vm, timeout_s)
        except DriverError:
            return None
