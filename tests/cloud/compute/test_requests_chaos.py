"""Sets and requests while servers, agents, links and hosts fail: what must always hold holds, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from tests.cloud.accidents import Accidents
from tests.cloud.invariants import Ledger, check
from tests.cloud.settling import check_truth, clear, reach_fixed_point
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

from pileus.drivers.host.qemu.base import ExitReason
from pileus.kernel.clock import iso
from pileus.kernel.errors import Conflict, Denied, Invalid, NotFound, QuotaExceeded, Transient

STEPS = 40
HOSTS = 5
QUOTA = {"vms": 200, "vcpus": 400, "memory_mib": 4_000_000, "volumes": 200, "disk_gib": 400}
REFUSED = (Conflict, Denied, Invalid, NotFound, QuotaExceeded, Transient)


class Chaos(Accidents):
    """Draws what happens next."""

    def __init__(self, world: Cloud, seed: int) -> None:
        super().__init__(world, seed)
        self.named = 0
        self.servers = 1
        self.memory = {id: host.machines.memory_mib for id, host in world.hosts.items()}

    async def step(self) -> None:
        """Do one thing, refused or not."""
        often = [self.ask] * 2
        wishes = [self.make_set, self.change_set, self.change_request, self.remove]
        faults = [self.end_machine, self.kill_server, self.kill_agent, self.cut, self.break_host, self.cordon]
        doing = self.random.choice([*often, *wishes, *faults, self.heal, self.mend_host])
        with contextlib.suppress(*REFUSED):
            await doing()

    async def ask(self) -> None:
        draw = self.random
        self.named += 1
        wish: dict[str, Any] = {
            "count": draw.choice([1, 2, 5, 12]),
            "mode": draw.choice(["all-or-nothing", "best-effort"]),
            "service": draw.choice(["guaranteed", "best-effort"]),
            "duration_s": draw.choice([0, 30, 120, 600]),
            "until": draw.choice(["end", "exit"]),
            "vcpus": 1,
            "memory_mib": draw.choice([64, 20_000, 90_000]),
            "nics": draw.choice([[], [{"network": "default"}]]),
        }
        when = draw.choice(["now", "within", "at"])
        if when == "within":
            wish["start_within_s"] = draw.choice([20, 200])
        elif when == "at":
            wish["start_at"] = iso(clock() + draw.choice([10, 100]))
        await self.world.create("compute.request", f"r{self.named}", "acme", **wish)

    async def make_set(self) -> None:
        self.named += 1
        count = self.random.choice([0, 1, 4])
        await self.world.create("compute.set", f"s{self.named}", "acme", count=count, nics=[])

    async def pick(self, kind: str) -> str:
        found = [each["name"] for each in await self.world.list(kind)]
        return self.random.choice(found) if found else "none"

    async def change_set(self) -> None:
        serial = self.random.choice([1, 2])
        wish: dict[str, Any] = self.random.choice(
            [{"count": 2}, {"count": 6}, {"power": "stopped"}, {"power": "running"}]
        )
        end = {"duration_s": self.random.choice([0, 60, 200, 1000]), "at_end": self.random.choice(["stop", "delete"])}
        wish = self.random.choice([wish, {"restart_serial": serial}, end])
        await self.world.patch("compute.set", await self.pick("compute.set"), "acme", **wish)

    async def change_request(self) -> None:
        name = await self.pick("compute.request")
        await self.world.patch("compute.request", name, "acme", duration_s=self.random.choice([0, 60, 900]))

    async def remove(self) -> None:
        kind = self.random.choice(["compute.set", "compute.request"])
        await self.world.delete(kind, await self.pick(kind), "acme")

    async def end_machine(self) -> None:
        host = self.random.choice(list(self.world.hosts.values())).machines
        if host.machines:
            reasons: list[ExitReason] = ["guest-shutdown", "killed"]
            host.crash(self.random.choice(sorted(host.machines)), self.random.choice(reasons), "")

    async def kill_server(self) -> None:
        self.servers += 1
        await self.world.stop_server()
        await asyncio.sleep(self.random.choice([0.0, 5.0, 40.0]))
        await self.world.start_server(f"server{self.servers}")

    async def break_host(self) -> None:
        self.world.hosts[self.random.choice(sorted(self.world.hosts))].machines.memory_mib = 0

    async def mend_host(self) -> None:
        for id, memory_mib in self.memory.items():
            self.world.hosts[id].machines.memory_mib = memory_mib

    async def cordon(self) -> None:
        wish = self.random.choice(["cordoned", "enabled"])
        await self.world.patch("infra.host", f"host{self.random.randrange(HOSTS)}", scheduling=wish)


async def _end_all(world: Cloud) -> None:
    """Let everything be well, end every request, and wait until nothing changes."""
    for number in range(HOSTS):
        await world.patch("infra.host", f"host{number}", scheduling="enabled")
    for each in await world.list("compute.request"):
        with contextlib.suppress(Conflict):
            await world.delete("compute.request", each["name"], "acme")
    await reach_fixed_point(world)


async def whatever_fails(world: Cloud, seed: int) -> None:
    """Let things happen in a furnished cloud, heal all, and see that everything holds and can be deleted."""
    print(f"seed {seed}")
    await world.create("tenancy.account", "acme")
    await world.patch("tenancy.vdc", "main", "acme", quota=QUOTA)
    chaos, ledger = Chaos(world, seed), Ledger()
    for _ in range(STEPS):
        await chaos.step()
        await asyncio.sleep(chaos.random.choice([0.1, 2.0, 20.0]))
        await check(world, ledger, full=False)
    await chaos.heal()
    await chaos.mend_host()
    await _end_all(world)
    await check(world, ledger, full=True)
    await check_truth(world)
    await clear(world)


@pytest.mark.parametrize("seed", [7, 21])
def test_whatever_fails_nothing_is_given_twice_and_nothing_is_left(seed: int) -> None:
    async def main() -> None:
        async with cloud(HOSTS, seed=seed) as world:
            await whatever_fails(world, seed)

    run(main)
