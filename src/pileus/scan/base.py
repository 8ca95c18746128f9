"""The contract of a host's scanner: what it says of a disk that its agent shows it. It knows neither VMs nor signatures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from msgspec import Struct

from pileus.drivers.host.disk.base import DiskLayer
from pileus.scan.report import Report

EngineName = Literal["yara", "clamav"]

NO_CLAMD = "NoClamd"


class Sought(Struct, frozen=True, kw_only=True):
    """What is looked for: YARA rules, or what the host's ClamAV knows."""

    engine: EngineName = "yara"
    rules: str = ""


class Scanner(Protocol):
    """Reads disks. A scan that is cancelled, or whose agent dies, leaves nothing."""

    async def open(self) -> None:
        """Clear what an agent that was killed left."""

    async def clamd(self) -> str:
        """Return the version of the host's ClamAV daemon as it says it; empty: none answers."""

    async def scan(
        self, layers: Sequence[DiskLayer], sought: Sought, looked: Callable[[int], None] = lambda _: None
    ) -> Report:
        """Return what is on the disk of these files. ``looked`` hears now and then how many bytes were looked at.

        Whatever keeps it from its end is in the report (``NoClamd``: no daemon answers here); nothing is raised.
        """
