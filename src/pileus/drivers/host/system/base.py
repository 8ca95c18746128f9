"""The contract of what an agent knows of its own machine."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct


class NicFact(Struct, frozen=True, kw_only=True):
    """A network interface. ``speed_mbps`` 0: not known; ``bond``: the bond it is part of."""

    name: str
    mac: str
    mtu: int
    addresses: tuple[str, ...] = ()
    speed_mbps: int = 0
    bond: str = ""


class SystemFacts(Struct, frozen=True, kw_only=True):
    """The machine: logical CPUs, memory in MiB, kernel release, versions of hypervisor and switch, interfaces."""

    cpus: int
    memory_mib: int
    kernel: str
    hypervisor: str = ""
    switch: str = ""
    nics: tuple[NicFact, ...] = ()
    has_uefi: bool = False


class System(Protocol):
    """The machine an agent runs on."""

    async def facts(self) -> SystemFacts:
        """Return what the machine is, as it is now."""
