"""Whose disk a host looks at next: accounts take turns, however many disks one of them has."""

from __future__ import annotations

import asyncio
from pathlib import PurePath
from typing import cast

from tests.virtual_time import clock, run

from pileus.drivers.host.disk.base import VolumeSpec
from pileus.drivers.host.disk.fake import FakePool, FakePoolWorld
from pileus.drivers.host.qemu.fake import FakeHost, FakeHypervisor
from pileus.kernel.half import Peers
from pileus.kernel.kind import Resource
from pileus.monitor.look.host import LookHalf, Step
from pileus.monitor.look.types import LookAssigned, LookDesired
from pileus.scan.fake import FakeScanner, FakeScans

SCAN_S = 10.0


class Slice:
    """What a half sees of its host."""

    def __init__(self, looks: list[Resource]) -> None:
        self.looks = {look.id: look for look in looks}

    def peer(self, id: str) -> Resource | None:
        """Return a look."""
        return self.looks.get(id)

    def wake(self, id: str) -> None:
        """Nobody sleeps here."""


def look(id: str, account: str, *volumes: str) -> Resource:
    assigned = LookAssigned(host="h", vm=f"vm-{id}", volumes=volumes)
    return Resource(
        id=id, kind="monitor.look", name=id, account_id=account, desired=LookDesired(), assigned=assigned, host="h"
    )


def test_one_disk_of_an_account_waits_for_one_of_another_not_for_all() -> None:
    async def main() -> None:
        many = [look(f"l{number}", "loud", f"a{number}", f"b{number}") for number in range(20)]
        one = look("quiet", "quiet", "q0", "q1")
        pool = FakePool(FakePoolWorld(clock=clock), 1 << 40)
        for each in (*many, one):
            for volume in each.assigned.volumes:
                await pool.create(VolumeSpec(id=volume, size_bytes=1 << 30))
        scans = FakeScans(scan_s=SCAN_S)
        half = LookHalf(pool, FakeHypervisor(FakeHost(clock=clock)), FakeScanner(scans))
        peers = cast(Peers, Slice([*many, one]))
        for each in (*many, one):
            await half.do(Step(verb="begin"), each, peers)
        while len(scans.scanned) < 5:
            await asyncio.sleep(SCAN_S / 2)
            assert len(scans.under_way) <= 1
        await half.close()
        order = [PurePath(path).name[0] for path, _ in scans.scanned]
        assert "".join("q" if first == "q" else "l" for first in order[:5]) == "lqlql"
        assert not scans.under_way

    run(main)
