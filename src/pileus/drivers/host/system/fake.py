"""A machine of any size, for simulated hosts."""

from __future__ import annotations

from pileus.drivers.host.system.base import SystemFacts


class FakeSystem:
    """Says what it was made with."""

    def __init__(self, cpus: int = 32, memory_mib: int = 262_144) -> None:
        self.current = SystemFacts(
            cpus=cpus,
            memory_mib=memory_mib,
            kernel="simulated",
            hypervisor="simulated",
            switch="simulated",
            has_uefi=True,
        )

    async def facts(self) -> SystemFacts:
        """Return the simulated machine."""
        return self.current
