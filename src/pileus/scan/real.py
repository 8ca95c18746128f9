"""The scanner of a real host: each scan a process in a jail, and the host's clamd where somebody runs one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pileus.drivers.host.disk import files
from pileus.drivers.host.disk.base import DiskLayer
from pileus.scan.base import Sought
from pileus.scan.clamd import NoClamd, version
from pileus.scan.disk import DEFAULT_LIMITS, Limits, scan_disk
from pileus.scan.report import Finding, Report

CLAMD = Path("/run/clamav/clamd.ctl")
"""Where Debian's clamav-daemon listens."""

ASK_S = 2.0
"""For a word of the daemon: it is asked each time that the host is looked at."""


class JailedScanner:
    """``scratch``: a folder of its own, of which an earlier agent may have left something."""

    def __init__(self, scratch: Path, *, clamd: Path = CLAMD, limits: Limits = DEFAULT_LIMITS) -> None:
        self._scratch = scratch
        self._clamd = clamd
        self._limits = limits

    async def open(self) -> None:
        """Clear what an agent that was killed left."""
        await files.in_thread(self._clear)

    async def clamd(self) -> str:
        """Return the version of the host's ClamAV daemon; empty: none answers."""
        try:
            return await version(self._clamd, ASK_S)
        except NoClamd:
            return ""

    async def scan(
        self, layers: Sequence[DiskLayer], sought: Sought, looked: Callable[[int], None] = lambda _: None
    ) -> Report:
        """Return what is on the disk of these files."""

        def heard(news: Finding | int) -> None:
            if isinstance(news, int):
                looked(news)

        what = sought.rules if sought.engine == "yara" else self._clamd
        return await scan_disk(layers, what, scratch=self._scratch, limits=self._limits, heard=heard)

    def _clear(self) -> None:
        files.remove(self._scratch)
        self._scratch.mkdir(mode=0o700, parents=True)
