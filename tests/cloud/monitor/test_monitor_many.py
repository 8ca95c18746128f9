"""Names that begin alike, monitors of many appliances, and what stays of appliances that are gone."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Any

import pytest
from tests.cloud.monitor.monitor_world import ACCOUNT, FAILED, MONITOR, Apps
from tests.cloud.monitor.test_signatures import CLEAN, answering
from tests.cloud.world import cloud
from tests.virtual_time import clock, run

from pileus.kernel.errors import QuotaExceeded
from pileus.kernel.store.engine import Row
from pileus.kernel.store.lists import Filter
from pileus.monitor.monitor import plan
from pileus.monitor.monitor.types import APPLIANCES_MAX
from pileus.monitor.policy import api
from pileus.monitor.signature import controller

VMS = 17


def test_monitors_with_long_names_that_begin_alike_have_their_own_watchers() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            names = [f"{'a' * 60}{letter}" for letter in "xy"]
            for name in names:
                await world.create("monitor.monitor", name, ACCOUNT, replicas=2)
            for name in names:
                await world.until(functools.partial(world.is_ready, "monitor.monitor", name, ACCOUNT))
            assert len(await world.store.list(Filter(kind="monitor.watcher"))) == 4

    run(main)


def test_a_monitor_has_no_more_policies_than_its_engine_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "POLICIES_MAX", 2)

    async def main() -> None:
        async with cloud(1) as world:
            await world.create("tenancy.account", ACCOUNT)
            for name in (MONITOR, "other"):
                await world.create("monitor.monitor", name, ACCOUNT)
            wish = {"when": [FAILED], "do": [{"do": "ask"}]}
            for name in ("p", "q"):
                await world.create("monitor.policy", name, ACCOUNT, monitor=MONITOR, **wish)
            with pytest.raises(QuotaExceeded, match="watch has 2 policies"):
                await world.create("monitor.policy", "r", ACCOUNT, monitor=MONITOR, **wish)
            await world.create("monitor.policy", "r", ACCOUNT, monitor="other", **wish)
            await world.patch("monitor.policy", "q", ACCOUNT, mode="enforce")

    run(main)


def test_more_appliances_than_a_monitor_watches_are_said_and_not_dropped_in_silence() -> None:
    assert "the newest are not watched" in plan.told(APPLIANCES_MAX + 1, 1)
    assert plan.told(APPLIANCES_MAX, 1) == ""


def test_scans_of_appliances_that_are_gone_are_forgotten_after_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(2)
            for name in ("n0", "n1"):
                await answering(apps, name, CLEAN)
            await apps.watch()
            await world.create("monitor.signature", "eicar", ACCOUNT, monitor=MONITOR, every_s=0, scan_serial=1)

            async def ended() -> list[float]:
                scans = await world.store.list(Filter(kind="monitor.scan"))
                return [scan.assigned.ended_at for scan in scans if scan.assigned.ended_at]

            async def are(number: int) -> bool:
                return len(await ended()) == number

            await world.until(lambda: are(2))
            await world.delete("fleet.node", "n0", ACCOUNT)
            await world.settle()
            assert await are(2), "the last look at what was deleted is evidence for a while"
            began = clock()
            monkeypatch.setattr(controller, "KEPT_S", 60.0)
            await world.until(lambda: are(1), limit_s=200.0)
            assert clock() - began < 100.0

    run(main)


def test_what_does_not_change_is_not_read_again_and_one_change_reads_little(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(2)
            for number in range(VMS):
                await world.create("compute.vm", f"vm{number}", ACCOUNT, vcpus=1, memory_mib=64)
            await apps.watch()
            await asyncio.sleep(60.0)
            read: list[str] = []
            list_rows = world.store.list_rows

            @functools.wraps(list_rows)
            async def noted(*arguments: Any, **named: Any) -> Sequence[Row]:
                rows = await list_rows(*arguments, **named)
                read.extend(row[0] for row in rows if row[1] == "monitor.state")
                return rows

            monkeypatch.setattr(world.store, "list_rows", noted)
            await asyncio.sleep(30.0)
            idle = len(read)
            await world.create("compute.vm", "another", ACCOUNT, vcpus=1, memory_mib=64)
            await asyncio.sleep(30.0)
            one = len(read) - idle
            monkeypatch.undo()
            print(f"measured: {VMS} VMs: {idle} rows read while idle, {one} for one VM more")
            assert len(await apps.rows()) == VMS + 3
            assert idle == 0
            assert one < VMS

    run(main)
