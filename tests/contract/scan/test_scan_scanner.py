"""What every host's scanner does, asked of the fake and of the one with a jail."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

import pytest
from tests.jail import require_jail

from pileus.drivers.host.disk.base import DiskLayer
from pileus.scan import rules as rules_of_ours
from pileus.scan.base import NO_CLAMD, Scanner, Sought
from pileus.scan.disk import Limits
from pileus.scan.fake import FakeScanner, FakeScans
from pileus.scan.real import JailedScanner
from pileus.scan.report import Finding, Report
from pileus.scan.rules import eicar

pytestmark = pytest.mark.anyio

TEST_FILE = "".join(rules_of_ours._EICAR_PARTS).encode()
SLOW = Sought(rules="rule slow { condition: for all i in (0..filesize) : (uint8(i) >= 0 or i < 0) }")
"""Looks at each byte by itself."""
EICAR = Sought(rules=eicar())


class Rig(Protocol):
    """One host with disks, and the agents that come and go on it."""

    def scanner(self) -> Scanner: ...

    def disk(self, name: str, *, infected: bool, huge: bool = False) -> DiskLayer: ...

    def is_idle(self) -> bool: ...


class FakeRig:
    def __init__(self) -> None:
        self.world = FakeScans(scan_s=0.02)

    def scanner(self) -> Scanner:
        return FakeScanner(self.world)

    def disk(self, name: str, *, infected: bool, huge: bool = False) -> DiskLayer:
        found = (Finding(rule="EICAR_Test_File", where="disk", offset=4096, length=68),) if infected else ()
        self.world.reports[name] = Report(findings=found, size_bytes=8192, scanned_bytes=8192)
        self.world.scan_s = 2.0 if huge else 0.02
        return DiskLayer(f"/simulated/{name}.qcow2", "qcow2")

    def is_idle(self) -> bool:
        return not self.world.under_way


class RealRig:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def scanner(self) -> Scanner:
        limits = Limits(time_s=60.0)
        return JailedScanner(self.folder / "scans", clamd=self.folder / "no-clamd", limits=limits)

    def disk(self, name: str, *, infected: bool, huge: bool = False) -> DiskLayer:
        path = self.folder / f"{name}.raw"
        with path.open("wb") as file:
            file.write(b"x" * 4096 + (TEST_FILE if infected else b"").ljust(4096, b"x"))
            if huge:
                file.write(bytes(100 << 20))
        return DiskLayer(str(path), "raw")

    def is_idle(self) -> bool:
        return list((self.folder / "scans").iterdir()) == []


@pytest.fixture(params=["fake", "real"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    if request.param == "fake":
        return FakeRig()
    require_jail()
    return RealRig(tmp_path)


async def opened(rig: Rig) -> Scanner:
    scanner = rig.scanner()
    await scanner.open()
    return scanner


async def test_what_is_on_a_disk_is_found_and_nothing_stays(rig: Rig) -> None:
    scanner = await opened(rig)
    report = await scanner.scan([rig.disk("bad", infected=True)], EICAR)
    assert (report.state, report.reason) == ("found", "")
    assert [(one.rule, one.where, one.offset) for one in report.findings] == [("EICAR_Test_File", "disk", 4096)]
    report = await scanner.scan([rig.disk("good", infected=False)], EICAR)
    assert (report.state, report.scanned_bytes) == ("clean", 8192)
    assert rig.is_idle()


async def test_where_no_clamd_is_nothing_is_clean(rig: Rig) -> None:
    scanner = await opened(rig)
    assert await scanner.clamd() == ""
    report = await scanner.scan([rig.disk("good", infected=False)], Sought(engine="clamav"))
    assert (report.state, report.reason) == ("unknown", NO_CLAMD)
    assert "clamd" in report.message


async def test_one_that_is_cancelled_leaves_nothing(rig: Rig) -> None:
    scanner = await opened(rig)
    heard = asyncio.Event()
    disk = rig.disk("huge", infected=False, huge=True)
    scan = asyncio.create_task(scanner.scan([disk], SLOW, lambda looked_bytes: heard.set()))
    await asyncio.wait([asyncio.create_task(heard.wait()), scan], return_when=asyncio.FIRST_COMPLETED)
    assert not scan.done(), scan.result()
    assert not rig.is_idle()
    scan.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scan
    assert rig.is_idle()


async def test_what_a_killed_agent_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "scans" / "pileus-scan-x" / "root").mkdir(parents=True)
    await RealRig(tmp_path).scanner().open()
    assert list((tmp_path / "scans").iterdir()) == []
