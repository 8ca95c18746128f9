"""Processes die, links break, drivers fail, reports come late: nothing is lost, nothing is left, one owner each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa

from pileus.agent import converge
from pileus.drivers.host.errors import DriverError
from pileus.kernel import loop
from pileus.kernel.errors import Conflict, Transient
from pileus.kernel.store.store import Store
from pileus.kernel.stream import PROTOCOL, Fact, Hello, Report, encode
from pileus.registry import KINDS
from pileus.server.agents import Agents
from tests.cloud.fate import DEFECTS, watch_logs
from tests.cloud.invariants import Ledger, check
from tests.cloud.settling import check_truth, clear, reach_fixed_point
from tests.cloud.world import Cloud, Pipe, cloud
from tests.virtual_time import clock, run

INJECTED = DriverError("Injected", "a failure that the test made")


@contextlib.asynccontextmanager
async def survived(hosts: int = 1, **more: Any) -> AsyncIterator[Cloud]:
    """Give a cloud with an account; at the end it settles, is true, and can be deleted without rest."""
    watch_logs()
    async with cloud(hosts, **more) as world:
        await world.create("tenancy.account", "acme")
        yield world
        await reach_fixed_point(world)
        await check(world, Ledger(), full=True)
        await check_truth(world)
        await clear(world)
        assert DEFECTS == []


async def all_ready(world: Cloud, count: int) -> bool:
    found = await world.list("compute.vm")
    return len(found) == count and all(vm["conditions"][0]["status"] == "true" for vm in found)


def pids(world: Cloud) -> dict[str, int | None]:
    return {id: one.pid for host in world.hosts.values() for id, one in host.machines.machines.items()}


async def gone(world: Cloud, name: str = "web") -> bool:
    return not await world.exists("compute.vm", name, "acme")


def test_machines_are_untouched_by_the_death_of_their_agent() -> None:
    async def main() -> None:
        async with survived() as world:
            for number in range(3):
                await world.create("compute.vm", f"v{number}", "acme")
            await world.until(lambda: all_ready(world, 3))
            (host,) = world.hosts
            before = pids(world)
            for _ in range(5):
                await world.stop_agent(host)
                await asyncio.sleep(1.0)
                agent = await world.start_agent(host)
                async with asyncio.timeout(5.0):
                    await agent.connected.wait()
            await world.settle()
            assert pids(world) == before

    run(main)


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.1, 0.2, 0.4, 0.8])
def test_a_server_that_dies_in_the_middle_of_ten_creates_makes_all_ten_and_none_twice(after_s: float) -> None:
    async def main() -> None:
        async with survived(hosts=2) as world:

            async def create(number: int) -> None:
                while True:
                    with contextlib.suppress(
                        Transient, asyncio.CancelledError, Conflict
                    ):  # made, though nobody was told
                        await world.create("compute.vm", f"v{number}", "acme")
                    if world.servers and await world.exists("compute.vm", f"v{number}", "acme"):
                        return
                    await asyncio.sleep(0.1)

            tasks = [asyncio.create_task(create(number)) for number in range(10)]
            await asyncio.sleep(after_s)
            await world.stop_server()
            await asyncio.sleep(3.0)
            await world.start_server()
            await asyncio.gather(*tasks)
            await world.until(lambda: all_ready(world, 10))
            assert len(pids(world)) == 10

    run(main)


def test_a_host_that_reports_no_more_is_unknown_and_its_vms_with_it_until_it_is_back() -> None:
    async def main() -> None:
        async with survived() as world:
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: all_ready(world, 1))
            (host,) = world.hosts
            began = clock()
            await world.cut_link(host)

            async def unknown() -> bool:
                condition = (await world.get("compute.vm", "web", "acme"))["conditions"][0]
                return (condition["status"], condition["reason"]) == ("unknown", "HostSilent")

            await world.until(unknown)
            assert 10 <= clock() - began < 25
            assert (await world.get("infra.host", "host0"))["conditions"][0]["status"] == "unknown"
            assert [one.state for one in world.hosts[host].machines.machines.values()] == ["running"]
            world.heal_link(host)
            await world.until(lambda: all_ready(world, 1))

    run(main)


def test_what_is_deleted_while_its_host_is_away_keeps_its_place_until_the_host_says_it_is_gone() -> None:
    async def main() -> None:
        async with survived(vlan_first=3, vlan_last=3) as world:
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: all_ready(world, 1))
            (host,) = world.hosts
            await world.cut_link(host)
            await world.delete("compute.vm", "web", "acme")
            await world.create("tenancy.account", "umbrella")
            await asyncio.sleep(600.0)
            assert len(world.hosts[host].machines.machines) == 1
            assert not await gone(world)
            world.heal_link(host)
            await world.until(lambda: gone(world))
            assert world.hosts[host].machines.machines == {}

    run(main)


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.06, 0.1, 0.3, 0.5, 0.7])
def test_a_vm_deleted_while_it_is_being_made_leaves_nothing_behind(after_s: float) -> None:
    async def main() -> None:
        async with survived() as world:
            await world.create("compute.vm", "web", "acme")
            await asyncio.sleep(after_s)
            (host,) = world.hosts
            await world.cut_link(host)
            await world.delete("compute.vm", "web", "acme")
            await asyncio.sleep(30.0)
            ledger = Ledger()
            await check(world, ledger, full=True)
            assert ledger.orphans_seen == 0
            world.heal_link(host)
            await world.until(lambda: gone(world))
            await check(world, ledger, full=True)
            assert ledger.orphans_seen == 0

    run(main)


def test_a_disk_stays_with_its_machine_while_an_agent_that_just_started_cannot_look() -> None:
    async def main() -> None:
        async with survived() as world:
            await world.create("storage.volume", "disk", "acme", size_gib=1)
            await world.create("compute.vm", "web", "acme", nics=[], volumes=[{"volume": "disk"}])
            await world.until(lambda: all_ready(world, 1))
            ((host, machine),) = world.hosts.items()
            await world.stop_agent(host)
            await world.patch("compute.vm", "web", "acme", volumes=[])
            machine.machines.refuse("observe", "", INJECTED)
            await world.start_agent(host)

            async def told() -> bool:
                return bool((await world.get("compute.vm", "web", "acme"))["conditions"][0]["reason"] == "Injected")

            await world.until(told)
            await asyncio.sleep(60.0)
            with pytest.raises(Conflict, match="attached"):
                await world.create("compute.vm", "two", "acme", nics=[], volumes=[{"volume": "disk"}])
            assert (await world.get("compute.vm", "web", "acme"))["observed"]["power"] == "unknown"
            machine.machines.refuse("observe", "", None)
            await world.until(lambda: _takes(world, "disk", "two"))
            await world.until(lambda: all_ready(world, 2))

    run(main)


async def _takes(world: Cloud, volume: str, vm: str) -> bool:
    """Try to make a VM with the volume, until the one that had it let go."""
    with contextlib.suppress(Conflict):
        await world.create("compute.vm", vm, "acme", nics=[], volumes=[{"volume": volume}])
        return True
    return False


def test_a_host_that_cannot_look_does_not_say_that_nothing_is_there() -> None:
    async def main() -> None:
        async with survived() as world:
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: all_ready(world, 1))
            (host,) = world.hosts
            await world.stop_agent(host)
            world.hosts[host].machines.refuse("observe", "", INJECTED)
            await world.start_agent(host)
            await world.delete("compute.vm", "web", "acme")
            await asyncio.sleep(120.0)
            assert not await gone(world)
            assert (await world.get("compute.vm", "web", "acme"))["conditions"][0]["reason"] == "Deleting"
            world.hosts[host].machines.refuse("observe", "", None)
            await world.until(lambda: gone(world), limit_s=300.0)

    run(main)


def test_an_old_report_changes_nothing() -> None:
    async def main() -> None:
        async with survived() as world:
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: all_ready(world, 1))
            (host,) = world.hosts
            vm = await world.get("compute.vm", "web", "acme")
            old = Fact(vm["id"], "compute.vm", 1, '{"power":"absent"}')
            await world.patch("compute.vm", "web", "acme", power="stopped")
            await world.until(lambda: all_ready(world, 1))
            for number in (1, 10_000):
                await world.links[host].send(encode(Report(number=number, facts=(old,))))
                await asyncio.sleep(1.0)
                assert (await world.get("compute.vm", "web", "acme"))["observed"]["power"] == "stopped"
            foreign = Fact((await world.get("tenancy.account", "acme"))["id"], "tenancy.account", 1, "{}")
            await world.links[host].send(encode(Report(number=10_001, facts=(foreign, foreign))))
            await world.cut_link(host)
            world.heal_link(host)

    run(main)


def test_what_an_agent_said_to_its_former_server_comes_too_late() -> None:
    async def main() -> None:
        async with survived() as world:
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: all_ready(world, 1))
            (host,) = world.hosts
            vm = await world.get("compute.vm", "web", "acme")
            server = world.servers[0]
            other = Agents(Store(server.store.engine, KINDS, clock, "other"), server.hub)
            here: asyncio.Queue[bytes | None] = asyncio.Queue()
            there: asyncio.Queue[bytes | None] = asyncio.Queue()
            former = asyncio.create_task(other.serve(host, Pipe(here, there)))
            here.put_nowait(encode(Hello(version="1", protocol=PROTOCOL, revision=0)))
            await there.get()
            await world.stop_agent(host)
            agent = await world.start_agent(host)
            await agent.connected.wait()
            late = Fact(vm["id"], "compute.vm", 1, '{"power":"absent"}')
            here.put_nowait(encode(Report(number=1, facts=(late,))))
            await former
            assert (await world.get("compute.vm", "web", "acme"))["observed"]["power"] == "running"

    run(main)


def test_a_disk_that_is_lost_is_not_replaced_by_an_empty_one_and_is_used_again_when_it_is_back() -> None:
    async def main() -> None:
        async with survived() as world:
            await world.create("compute.vm", "web", "acme", nics=[])
            await world.until(lambda: all_ready(world, 1))
            ((id, host),) = world.hosts.items()
            await world.stop_agent(id)
            host.machines.reboot()
            disks = dict(host.pool.volumes)
            host.pool.volumes.clear()  # after a reboot without the pool's file system
            await world.start_agent(id)

            async def lost() -> bool:
                (volume,) = await world.list("storage.volume")
                return bool(volume["conditions"][0]["reason"] == "VolumeLost")

            await world.until(lost)
            await asyncio.sleep(60.0)
            assert host.pool.volumes == {}
            host.pool.volumes.update(disks)
            await world.until(lambda: all_ready(world, 1))
            assert host.pool.volumes == disks

    run(main)


def test_a_disk_that_is_lost_can_be_deleted() -> None:
    async def main() -> None:
        async with survived() as world:
            await world.create("compute.vm", "web", "acme", nics=[])
            await world.until(lambda: all_ready(world, 1))
            ((id, host),) = world.hosts.items()
            await world.stop_agent(id)
            host.machines.reboot()
            host.pool.volumes.clear()
            await world.start_agent(id)
            await world.settle()
            await world.delete("compute.vm", "web", "acme")
            await world.until(lambda: gone(world))

    run(main)


def test_a_switch_that_lost_its_ports_gets_them_again() -> None:
    async def main() -> None:
        async with survived() as world:
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: all_ready(world, 1))
            (host,) = world.hosts.values()
            before = dict(host.switch.ports)
            host.switch.ports.clear()

            async def again() -> bool:
                return host.switch.ports == before

            await world.until(again)

    run(main)


@pytest.mark.parametrize("when", ["before", "after"])
def test_any_one_call_of_the_hypervisor_may_fail(when: Any) -> None:
    """The k-th call fails, for every k of a VM's whole life; each run must come to the same end."""

    def one(k: int) -> bool:
        async def main() -> bool:
            async with survived() as world:
                (host,) = world.hosts.values()
                host.machines.fail_call(k, INJECTED, when)
                await live(world)
                return host.machines.calls >= k and not host.machines._faults

        return run(main)

    k = 1
    while one(k) and k < 60:
        k += 1
    print(f"{k} calls")
    assert k > 15


async def live(world: Cloud) -> None:
    """Lead a VM through a whole life."""
    await world.create("storage.volume", "data", "acme", size_gib=1)
    await world.create("compute.vm", "web", "acme", shutdown_timeout_s=5)
    await world.until(lambda: all_ready(world, 1))
    await world.patch("compute.vm", "web", "acme", volumes=[{"volume": "data"}])
    await world.settle(20.0)
    await world.patch("compute.vm", "web", "acme", power="paused")
    await world.until(lambda: all_ready(world, 1))
    await world.patch("compute.vm", "web", "acme", power="running", boot_serial=1, volumes=[])
    await world.settle(20.0)
    await world.patch("compute.vm", "web", "acme", power="stopped")
    await world.until(lambda: all_ready(world, 1))
    await world.delete("compute.vm", "web", "acme")
    await world.until(lambda: gone(world))


class Killed(BaseException):
    """The process ends here."""


class Points:
    """Ends agent or server at the first pass of a named point, and starts it again a little later."""

    def __init__(self, world: Cloud, armed: str) -> None:
        self.world, self.armed = world, armed
        self.passed: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def __call__(self, name: str) -> None:
        self.passed.add(name)
        if name == self.armed:
            self.armed = ""
            self._tasks.append(asyncio.create_task(self._restart(name)))
            raise Killed(name)

    async def _restart(self, name: str) -> None:
        if name.startswith("loop."):
            await self.world.stop_server()
            await asyncio.sleep(1.0)
            await self.world.start_server()
        else:
            (host,) = self.world.hosts
            await self.world.stop_agent(host)
            await asyncio.sleep(1.0)
            await self.world.start_agent(host)


def lived_through(armed: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Lead a VM's life with one death at a point; return all points that were passed."""

    async def main() -> set[str]:
        async with survived() as world:
            points = Points(world, armed)
            monkeypatch.setattr(converge, "failpoint", points)
            monkeypatch.setattr(loop, "failpoint", points)
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)
            await live(world)
            monkeypatch.undo()
            return points.passed

    return run(main)


def test_the_process_may_end_at_any_named_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = lived_through("", monkeypatch)
    print(f"{len(points)} points: {', '.join(sorted(points))}")
    assert len(points) >= 20
    for name in sorted(points):
        assert name in lived_through(name, monkeypatch)


def test_an_outage_of_the_server_does_not_make_its_hosts_unknown() -> None:
    async def main() -> None:
        async with cloud(2) as world:
            await world.stop_server()
            await asyncio.sleep(120.0)
            host = next(iter(world.hosts))
            world.cut.add(host)  # comes back 10 s after the server
            server = await world.start_server()
            await asyncio.sleep(10.0)
            world.heal_link(host)
            await world.settle()
            rows = await server.store.fetch(sa.text("SELECT count(*) FROM event WHERE reason = 'HostSilent'"))
            assert rows[0][0] == 0

    run(main)
