"""A scanner without disks: it says what a test, or nobody, put on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import PurePath

from pileus.drivers.host.disk.base import DiskLayer
from pileus.scan.base import NO_CLAMD, Sought
from pileus.scan.report import Report

SCAN_S = 1.0


class FakeScans:
    """What is to be found on one simulated host, and what is scanned there now."""

    def __init__(self, *, scan_s: float = SCAN_S) -> None:
        self.scan_s = scan_s
        self.reports: dict[str, Report] = {}
        """By the name of the disk's file without its ends: a volume's id. Others are clean."""
        self.clamd = ""
        self.under_way: list[str] = []
        """Files that are scanned now."""
        self.scanned: list[tuple[str, Sought]] = []
        """Files whose scan began, and what for."""


class FakeScanner:
    """The scanner of a simulated host."""

    def __init__(self, world: FakeScans) -> None:
        self._world = world

    async def open(self) -> None:
        """Find nothing: an interrupted scan leaves nothing."""
        self._world.under_way.clear()

    async def clamd(self) -> str:
        """Return what the simulated host has."""
        return self._world.clamd

    async def scan(
        self, layers: Sequence[DiskLayer], sought: Sought, looked: Callable[[int], None] = lambda _: None
    ) -> Report:
        """Return what was put on the disk, after a while."""
        if sought.engine == "clamav" and not self._world.clamd:
            return Report(reason=NO_CLAMD, message="clamd cannot be asked: there is none")
        path = layers[0].path
        self._world.under_way.append(path)
        self._world.scanned.append((path, sought))
        try:
            await asyncio.sleep(self._world.scan_s / 2)
            looked(1)
            await asyncio.sleep(self._world.scan_s / 2)
        finally:
            self._world.under_way.remove(path)
        return self._world.reports.get(PurePath(path).name.partition(".")[0], Report(scanned_bytes=1, size_bytes=1))
