"""Needed seats while everything fails: never do more VMs run than there are seats, and in the end nobody waits in vain."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa
from tests.cloud.accidents import Accidents
from tests.cloud.monitor.deaths import Deaths
from tests.cloud.monitor.seat_world import ACCOUNT, NEED, check_books, furnish, label, license, live, make_vm, vms
from tests.cloud.settling import reach_fixed_point
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import run

from pileus.compute.vm.plan import is_resting
from pileus.kernel.errors import Conflict, Denied, Invalid, NotFound, QuotaExceeded, Transient
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.statements import SPACES_OF

HOSTS = 2
SEATS = 5
VMS_MAX = 14
STEPS = 60
WAITING = sa.text("SELECT DISTINCT space FROM claim WHERE space LIKE 'waiting/%/%'")
REFUSED = (Conflict, Denied, Invalid, NotFound, QuotaExceeded, Transient)


class Walk(Accidents):
    """Draws what happens next. ``strict``: nothing that lets a VM run on which has no seat by right."""

    def __init__(self, world: Cloud, seed: int, *, strict: bool) -> None:
        super().__init__(world, seed)
        self.deaths = Deaths(world, seed)
        self.named = 0
        self.done: Counter[str] = Counter()
        wishes = [self.make, self.make, self.start, self.start, self.stop, self.stop, self.remove, self.resize]
        faults = [self.end_machine, self.end_machine, self.kill_agent, self.cut, self.heal]
        self.steps = [*wishes, *faults] if strict else [*wishes, *faults, self.label, self.license, self.unlicense]

    async def step(self) -> None:
        """Do one thing, refused or not; a server may die at one of the writes of it."""
        doing = self.random.choice(self.steps)
        dies = self.random.random() < 0.3
        await self.world.until(self._is_served)  # one that was in the middle of a write died after all
        if dies:
            self.deaths.arm(30)
        with contextlib.suppress(*REFUSED, asyncio.CancelledError):
            await doing()
            self.done[doing.__name__] += 1
        await asyncio.sleep(self.random.choice([0.0, 0.1, 2.0, 20.0]))
        if dies:
            await self.world.until(self._is_served)
            await self.deaths.strike()

    async def _is_served(self) -> bool:
        return bool(self.world.servers)

    async def pick(self) -> Resource:
        found = await vms(self.world)
        if not found:
            raise NotFound("there is none")
        return self.random.choice(found)

    async def make(self) -> None:
        if len(await vms(self.world)) < VMS_MAX:
            self.named += 1
            power = self.random.choice(["running", "running", "stopped", "paused"])
            restart = self.random.choice(["always", "on-failure", "never"])
            await make_vm(self.world, f"vm{self.named}", power=power, restart=restart, nics=[], shutdown_timeout_s=5)

    async def start(self) -> None:
        vm = await self.pick()
        wish: dict[str, Any] = {"power": "running"}
        if self.random.random() < 0.5:
            wish["boot_serial"] = vm.desired.boot_serial + 1
        await self.world.patch("compute.vm", vm.name, ACCOUNT, **wish)

    async def stop(self) -> None:
        await self.world.patch("compute.vm", (await self.pick()).name, ACCOUNT, power="stopped")

    async def remove(self) -> None:
        await self.world.delete("compute.vm", (await self.pick()).name, ACCOUNT)

    async def resize(self) -> None:
        wish = {"vcpus": self.random.choice([1, 2, 3, 6]), "memory_mib": 256, "offering": ""}
        await self.world.patch("compute.vm", (await self.pick()).name, ACCOUNT, **wish)

    async def end_machine(self) -> None:
        there = sorted(live(self.world))
        if there:
            machine = self.random.choice(there)
            for host in self.world.hosts.values():
                host.machines.crash(machine, self.random.choice(["guest-shutdown", "killed"]), "")

    async def label(self) -> None:
        key, value = self.random.choice([("product", "db"), ("os", "x")])
        await label(self.world, (await self.pick()).name, {key: self.random.choice([value, None])})

    async def license(self) -> None:
        self.named += 1
        product, need = self.random.choice([("Database", NEED), ("System", {"os": "x"})])
        wish = {"limit": self.random.choice([0, 2, 4]), "binding": self.random.choice(["floating", "pinned"])}
        name = f"more{self.named}"
        await self.world.create("monitor.entitlement", name, ACCOUNT, product=product, needed_by=need, **wish)

    async def unlicense(self) -> None:
        found = [each["name"] for each in await self.world.list("monitor.entitlement")]
        if found:
            await self.world.delete("monitor.entitlement", self.random.choice(found), ACCOUNT)


async def _watch(world: Cloud, needs: dict[str, int], limit: int) -> None:
    """Look all the time: the machines that run need no more units than there are."""
    while True:
        used = sum(needs.get(id, 1) for id in live(world))
        assert used <= limit, f"{used} of {limit}"
        await asyncio.sleep(0.02)


async def _check_all_run_that_can(world: Cloud) -> None:
    """Assert: who is to run and does not has the reason that it waits, and there is no seat for who waits longest."""
    there = live(world)
    waiting = {each for (each,) in await world.store.fetch(WAITING)}
    for vm in await vms(world):
        if vm.desired.power != "stopped" and not is_resting(vm) and vm.id not in there:
            assert vm.ready is not None
            assert vm.ready.reason == "NoSeat", f"{vm} is {vm.ready}"
        waits = any([space in waiting for (space,) in await world.store.fetch(SPACES_OF, owner=vm.id)])
        is_hopeless = vm.assigned.bar is not None and "needed; register more" in vm.assigned.bar.message
        assert waits == (vm.assigned.bar is not None and not is_hopeless), f"{vm}: {vm.assigned.bar}"
    for space in waiting:
        for first in await world.store.queue(space, 1):
            await _check_short(world, space.rpartition("/")[2], await world.store.get(first))


async def _check_short(world: Cloud, product: str, vm: Resource) -> None:
    for each in await world.store.list(Filter(kind="monitor.entitlement")):
        desired = each.desired
        if (
            desired.product == product
            and desired.binding == "floating"
            and desired.needed_by.items() <= vm.labels.items()
        ):
            units = {"instances": 1, "vcpus": vm.assigned.vcpus}[desired.metric]
            assert each.observed.used + units > desired.limit, f"{vm} waits in vain for {each}: {each.observed}"


async def _end(walk: Walk) -> None:
    await walk.deaths.strike()
    await walk.heal()
    await reach_fixed_point(walk.world)
    print(f"did {dict(walk.done)}, servers died {dict(walk.deaths.happened)}")
    await check_books(walk.world)
    await _check_all_run_that_can(walk.world)


@pytest.mark.parametrize(("seed", "lease_s"), [(3, 0), pytest.param(4, 30, marks=pytest.mark.long)])
def test_never_do_more_run_than_there_are_seats(seed: int, lease_s: int) -> None:
    async def main() -> None:
        print(f"seed {seed}")
        async with cloud(HOSTS, seed=seed) as world:
            await furnish(world)
            await license(world, limit=SEATS, lease_s=lease_s)
            walk = Walk(world, seed, strict=True)
            watching = asyncio.create_task(_watch(world, {}, SEATS))
            for _ in range(STEPS):
                await walk.step()
                assert not watching.done(), watching.exception()
            await _end(walk)
            assert not watching.done(), watching.exception()
            watching.cancel()

    run(main)


@pytest.mark.parametrize("seed", [5, pytest.param(6, marks=pytest.mark.long)])
def test_whatever_becomes_of_entitlements_and_labels_nobody_waits_in_vain(seed: int) -> None:
    async def main() -> None:
        print(f"seed {seed}")
        async with cloud(HOSTS, seed=seed) as world:
            await furnish(world)
            await license(world, limit=SEATS, metric="vcpus", lease_s=20)
            walk = Walk(world, seed, strict=False)
            for _ in range(STEPS):
                await walk.step()
            await _end(walk)
            for each in await world.list("monitor.entitlement"):
                await world.delete("monitor.entitlement", each["name"], ACCOUNT)
            await reach_fixed_point(world)
            assert [vm.name for vm in await vms(world) if vm.assigned.bar is not None] == []
            assert await world.list("monitor.seat") == []
            await _check_all_run_that_can(world)

    run(main)
