"""The host half of a host: what the machine is."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import asdict

from pileus import __version__
from pileus.drivers.host.ovs.base import Uplinks
from pileus.drivers.host.qemu.base import Accelerator, Hypervisor
from pileus.drivers.host.system.base import System, SystemFacts
from pileus.infra.host.types import HostNic, HostObserved
from pileus.kernel.fields import Problem
from pileus.kernel.half import Half, Peers, Step
from pileus.kernel.kind import Resource
from pileus.scan.base import Scanner


class Seen(Struct, frozen=True):
    """The machine, and what its VMs run under."""

    system: SystemFacts
    accelerator: Accelerator
    clamd: str


class HostHalf(Half[Seen, Step]):
    """Reports; there is nothing to do."""

    kind = "infra.host"

    def __init__(self, system: System, hypervisor: Hypervisor, uplinks: Uplinks, scanner: Scanner) -> None:
        """``uplinks``: those that the agent was started with."""
        self._system = system
        self._hypervisor = hypervisor
        self._uplinks = uplinks
        self._scanner = scanner

    async def observe(self, resource: Resource, peers: Peers) -> Seen:
        """Look at the machine."""
        return Seen(await self._system.facts(), self._hypervisor.accelerator(), await self._scanner.clamd())

    def plan(self, resource: Resource, fact: Seen, peers: Peers) -> Step | None:
        """Return None: a host is as it is."""
        return None

    async def do(self, step: Step, resource: Resource, peers: Peers) -> None:
        """Do nothing."""

    def report(self, resource: Resource, fact: Seen | None, problem: Problem | None) -> Struct:
        """Return the host's observed section."""
        if fact is None:
            return HostObserved(version=__version__, cpus=0, memory_mib=0, problem=problem)
        system, uplinks = fact.system, self._uplinks
        return HostObserved(
            version=__version__,
            cpus=system.cpus,
            memory_mib=system.memory_mib,
            kernel=system.kernel,
            accelerator=fact.accelerator.name,
            accelerator_reason=fact.accelerator.reason,
            hypervisor=system.hypervisor,
            switch=system.switch,
            nics=tuple(HostNic(**asdict(nic)) for nic in system.nics),
            tunnel_address=uplinks.tunnel_address.partition("/")[0],
            has_trunk="yes" if uplinks.trunk else "no",
            has_public="yes" if uplinks.public else "no",
            has_uefi="yes" if system.has_uefi else "no",
            clamd=fact.clamd,
            problem=problem,
        )
