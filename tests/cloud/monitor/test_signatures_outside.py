"""Scans from outside on simulated hosts: who is looked at from where, what ends it, and that nothing of it is left."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from tests.cloud.monitor.monitor_world import ACCOUNT, MONITOR, Apps
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.lab.simulated import SimulatedHost
from pileus.scan.report import Finding, Report

FOUND = Report(
    findings=(
        Finding(rule="EICAR_Test_File", where="disk", offset=4096, length=68),
        Finding(rule="EICAR_Test_File", where="file", path="/srv/letter", partition=1),
    ),
    files=7,
    scanned_bytes=1 << 20,
)
UNREAD = Report(reason="Encrypted", message="partition 2 is encrypted; nothing in it can be found")
HUNT = {
    "when": [{"field": "other.findings.*.state", "value": "found"}],
    "do": [{"do": "isolate"}, {"do": "suspend"}],
    "mode": "enforce",
}


class Outside:
    """A monitor with plain VMs."""

    def __init__(self, world: Cloud) -> None:
        self.world = world

    async def furnish(self, *vms: str, policies: tuple[dict[str, Any], ...] = ()) -> None:
        await self.world.create("tenancy.account", ACCOUNT)
        for name in vms:
            await self.world.create("compute.vm", name, ACCOUNT, vcpus=1, memory_mib=64, disk_gib=1, nics=[])
        for name in vms:
            await self.world.until(functools.partial(self.world.is_ready, "compute.vm", name, ACCOUNT))
        await Apps(self.world).watch(*policies)

    async def vm(self, name: str) -> Resource:
        return await self.world.resource("compute.vm", name, ACCOUNT)

    async def root(self, name: str) -> Resource:
        return await self.world.store.get((await self.vm(name)).assigned.volumes[0])

    async def host(self, name: str) -> SimulatedHost:
        return self.world.hosts[(await self.vm(name)).host]

    async def sign(self, **desired: Any) -> None:
        await self.world.create("monitor.signature", "eicar", ACCOUNT, monitor=MONITOR, **desired)

    async def states(self, name: str = "eicar") -> dict[str, int]:
        observed = (await self.world.resource("monitor.signature", name, ACCOUNT)).observed
        return dict(observed.states) if observed is not None else {}

    async def scan(self, name: str) -> Resource | None:
        """Return the newest scan of a VM."""
        vm = await self.vm(name)
        found = [each for each in await self.world.list("monitor.scan") if each["assigned"]["vm"] == vm.id]
        return await self.world.store.get(found[-1]["id"]) if found else None

    async def over(self, name: str, limit_s: float = 120.0) -> Resource:
        """Return the scan of a VM once it is over."""

        async def is_over() -> bool:
            scan = await self.scan(name)
            return scan is not None and scan.observed.state in ("clean", "found", "unknown")

        await self.world.until(is_over, limit_s=limit_s)
        scan = await self.scan(name)
        assert scan is not None
        return scan

    async def is_reading(self, name: str) -> bool:
        return bool((await self.host(name)).scans.under_way)

    async def assert_nothing_left(self) -> None:
        """See that no look, no copy and no scan is anywhere."""

        async def is_gone() -> bool:
            return not await self.world.list("monitor.look")

        async def is_let_go() -> bool:
            return not any(host.pool.copies or host.scans.under_way for host in self.world.hosts.values())

        await self.world.until(is_gone)
        await self.world.until(is_let_go)


def test_a_plain_vm_is_looked_at_from_outside_and_what_is_found_is_acted_on() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            outside = Outside(world)
            await outside.furnish("bad", "good", policies=(HUNT,))
            root = await outside.root("bad")
            (await outside.host("bad")).scans.reports[root.id] = FOUND
            await outside.sign()
            scan = await outside.over("bad")
            assert (scan.observed.state, scan.observed.files) == ("found", 7)
            first, second = scan.observed.findings
            assert (first.where, first.path, first.volume, first.partition) == ("file", "/srv/letter", root.name, 1)
            assert (second.where, second.path, second.offset) == ("disk", "", 4096)
            assert scan.observed.message == f"EICAR_Test_File in /srv/letter of volume {root.name}"
            assert [(disk.state, disk.findings) for disk in scan.observed.disks] == [("found", 2)]
            assert (await outside.over("good")).observed.state == "clean"

            async def is_held() -> bool:
                vm = await outside.vm("bad")
                return (vm.observed.isolated, vm.observed.power) == ("yes", "paused")

            await world.until(is_held)
            assert (await outside.vm("good")).observed.power == "running"
            await outside.assert_nothing_left()

    run(main)


def test_one_disk_after_the_other_is_read_and_each_says_its_own() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            outside = Outside(world)
            await world.create("tenancy.account", ACCOUNT)
            await world.create("storage.volume", "data", ACCOUNT, size_gib=1)
            await world.create(
                "compute.vm", "two", ACCOUNT, vcpus=1, memory_mib=64, disk_gib=1, nics=[], volumes=[{"volume": "data"}]
            )
            await world.until(lambda: world.is_ready("compute.vm", "two", ACCOUNT))
            await Apps(world).watch()
            vm, host = await outside.vm("two"), await outside.host("two")
            host.scans.reports[vm.assigned.volumes[1]] = UNREAD
            most = 0

            async def is_over() -> bool:
                nonlocal most
                most = max(most, len(host.scans.under_way))
                scan = await outside.scan("two")
                return scan is not None and scan.observed.state == "unknown"

            await outside.sign()
            await world.until(is_over)
            scan = await outside.over("two")
            assert scan.observed.message == f"volume data: {UNREAD.message}"
            told = [(disk.volume, disk.state) for disk in scan.observed.disks]
            assert told == [((await outside.root("two")).name, "clean"), ("data", "unknown")]
            assert most == 1

    run(main)


@pytest.mark.parametrize("power", ["paused", "stopped"])
def test_an_appliance_that_does_not_run_is_looked_at_from_outside_at_once(power: str) -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps, outside = Apps(world), Outside(world)
            await apps.furnish(1)
            node = await apps.node("n0")
            await apps.watch()
            vm = await world.store.get(node.assigned.vm)
            act = "suspend" if power == "paused" else "stop"
            await world.create("monitor.action", "hold", ACCOUNT, vm=vm.name, do=[{"do": act}])

            async def is_so() -> bool:
                return bool((await world.store.get(vm.id)).observed.power == power)

            await world.until(is_so)
            for name, look, state in (
                ("any", "auto", "clean"),
                ("in", "inside", "unknown"),
                ("two", "both", "unknown"),
            ):
                began = clock()
                await world.create("monitor.signature", name, ACCOUNT, monitor=MONITOR, look=look)

                async def is_over(name: str = name, state: str = state) -> bool:
                    return await outside.states(name) == {state: 1}

                await world.until(is_over)
                assert clock() - began < 30.0
            scans = {each["assigned"]["signature_name"]: each["observed"] for each in await world.list("monitor.scan")}
            assert scans["in"]["message"] == f"the VM is {power}: nothing in it answers"
            assert [disk["state"] for disk in scans["two"]["disks"]] == ["clean"]
            await outside.assert_nothing_left()

    run(main)


def test_an_appliance_that_is_paused_while_it_looks_is_looked_at_from_outside() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps, outside = Apps(world), Outside(world)
            await apps.furnish(1)
            node = await apps.node("n0")
            await apps.watch()
            world.hosts[node.host].guests.cut = lambda machine: True
            vm = await world.store.get(node.assigned.vm)
            await outside.sign()

            async def is_asked() -> bool:
                return bool([each for each in await world.list("monitor.scan") if each["assigned"]["request"]])

            await world.until(is_asked)
            await world.create("monitor.action", "hold", ACCOUNT, vm=vm.name, do=[{"do": "suspend"}])

            async def is_over() -> bool:
                return await outside.states() == {"clean": 1}

            await world.until(is_over)
            (scan,) = await world.list("monitor.scan")
            assert (scan["assigned"]["request"], len(scan["observed"]["disks"])) == ("", 1)

    run(main)


def test_an_agent_that_is_killed_meanwhile_leaves_nothing_and_the_next_one_looks() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            outside = Outside(world)
            await outside.furnish("a")
            vm, host = await outside.vm("a"), await outside.host("a")
            host.scans.scan_s = 20.0
            await outside.sign()
            await world.until(lambda: outside.is_reading("a"))
            await world.stop_agent(vm.host)
            assert (host.pool.copies, host.scans.under_way) == ({}, [])
            host.scans.scan_s = 1.0
            await world.start_agent(vm.host)
            assert (await outside.over("a")).observed.state == "clean"
            assert len(host.scans.scanned) == 2
            await outside.assert_nothing_left()

    run(main)


def test_a_server_that_is_killed_meanwhile_changes_nothing() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            outside = Outside(world)
            await outside.furnish("a")
            host = await outside.host("a")
            host.scans.scan_s = 20.0
            await outside.sign()
            await world.until(lambda: outside.is_reading("a"))
            await world.stop_server()
            await world.start_server("another")
            assert (await outside.over("a")).observed.state == "clean"
            assert len(host.scans.scanned) == 1
            await outside.assert_nothing_left()

    run(main)


def test_a_host_that_falls_silent_meanwhile_leaves_it_unknown() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            outside = Outside(world)
            await outside.furnish("a")
            vm, host = await outside.vm("a"), await outside.host("a")
            host.scans.scan_s = 1000.0
            await outside.sign(every_s=0, scan_serial=1)
            await world.until(lambda: outside.is_reading("a"))
            await world.cut_link(vm.host)
            scan = await outside.over("a")
            assert scan.observed.state == "unknown"
            assert "is silent" in scan.observed.message
            world.heal_link(vm.host)
            await outside.assert_nothing_left()

    run(main)


def test_a_signature_that_is_deleted_meanwhile_ends_on_its_host() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            outside = Outside(world)
            await outside.furnish("a")
            host = await outside.host("a")
            host.scans.scan_s = 1000.0
            await outside.sign(every_s=0, scan_serial=1)
            await world.until(lambda: outside.is_reading("a"))

            async def is_told() -> bool:
                scan = await outside.scan("a")
                return scan is not None and scan.observed.message.startswith("reading volume a-")

            await world.until(is_told)
            await world.delete("monitor.signature", "eicar", ACCOUNT)
            await outside.assert_nothing_left()
            assert len(host.scans.scanned) == 1

    run(main)


def test_clamav_looks_where_a_host_has_it_and_nowhere_else() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            outside = Outside(world)
            await outside.furnish("a")
            for wrong in ({"rules": "rule x { condition: true }"}, {"look": "inside"}):
                with pytest.raises(Invalid):
                    await outside.sign(engine="clamav", **wrong)
            vm, host = await outside.vm("a"), await outside.host("a")
            await outside.sign(engine="clamav", every_s=0, scan_serial=1)
            scan = await outside.over("a")
            assert scan.observed.state == "unknown"
            assert "no clamd on host" in scan.observed.message
            assert "clamav-daemon" in scan.observed.message
            assert host.scans.scanned == []

            host.scans.clamd = "ClamAV 1.4.6"
            host.scans.reports[vm.assigned.volumes[0]] = FOUND

            async def is_known() -> bool:
                return bool((await world.store.get(vm.host)).observed.clamd)

            await world.until(is_known)
            await world.patch("monitor.signature", "eicar", ACCOUNT, scan_serial=2)

            async def is_found() -> bool:
                newest = await outside.scan("a")
                return newest is not None and newest.observed.state == "found"

            await world.until(is_found)
            assert [(sought.engine, sought.rules) for _, sought in host.scans.scanned] == [("clamav", "")]

    run(main)


def test_no_room_for_a_copy_is_said_and_not_clean() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            outside = Outside(world)
            await outside.furnish("a")
            host = await outside.host("a")
            host.pool.other_bytes = 1 << 62
            await outside.sign()
            scan = await outside.over("a")
            assert scan.observed.state == "unknown"
            assert "no room" in scan.observed.message

    run(main)


def test_a_vm_whose_process_hangs_is_unknown_and_holds_nobody_up() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            outside = Outside(world)
            await outside.furnish("hung", "good")
            host = await outside.host("hung")
            host.machines.hang((await outside.vm("hung")).id)
            await outside.sign()
            began = clock()
            scan = await outside.over("hung")
            assert scan.observed.state == "unknown"
            assert "hung" in scan.observed.message
            assert (await outside.over("good")).observed.state == "clean"
            assert clock() - began < 60.0
            await outside.assert_nothing_left()

    run(main)
