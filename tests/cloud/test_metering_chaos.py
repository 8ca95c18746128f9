"""Metering while processes die, links break and guests end: nothing is lost, nothing is counted twice."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from pileus.drivers.host.ovs.base import PortCounters
from pileus.drivers.host.qemu.fake import FakeLatency
from pileus.kernel.errors import Conflict, Denied, Invalid, NotFound, QuotaExceeded, Transient
from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.stream import PROTOCOL, Frame, Hello, Samples, encode
from pileus.registry import KINDS
from pileus.server.agents import Agents
from pileus.server.chores import meter_all
from tests.cloud.accidents import Accidents
from tests.cloud.invariants import Ledger, check
from tests.cloud.metering_world import ROUNDING_S, Book, metered, usage
from tests.cloud.monitor.deaths import Deaths
from tests.cloud.settling import reach_fixed_point
from tests.cloud.virtual_postgres import VirtualPostgres
from tests.cloud.world import Cloud, Pipe, cloud
from tests.postgres import postgres, postgres_url
from tests.virtual_time import clock, run

__all__ = ["postgres", "postgres_url"]

HOSTS = 2
HOUR_S = 3600.0
REMOVAL_S = 1.2 * FakeLatency().power_off_s + 0.002
"""A machine that ends by itself while it is being removed ended when it was removed."""
RUNS = sa.text("SELECT id, since, until, amounts FROM usage ORDER BY id, since")
REFUSED = (Conflict, Denied, Invalid, NotFound, QuotaExceeded, Transient)
SAMPLED_S = 15.0
"""Until counters are in the database: 12 s at most between two samples, and a second until they are written."""


class Life(Accidents):
    """Draws what VMs do and what befalls the cloud; a server may die at any of its writes."""

    def __init__(self, world: Cloud, seed: int) -> None:
        super().__init__(world, seed)
        self.deaths = Deaths(world, seed)
        self.names: list[str] = []
        self.done: Counter[str] = Counter()
        wishes = [
            self.make,
            self.make,
            self.start,
            self.start,
            self.start,
            self.stop,
            self.pause,
            self.resize,
            self.remove,
        ]
        self.steps = [*wishes, self.crash, self.crash, self.kill_agent, self.cut, self.heal, self.heal]

    async def step(self) -> None:
        """Do one thing, refused or not."""
        doing = self.random.choice(self.steps)
        dies = self.random.random() < 0.4
        await self.world.until(self._is_served)
        if dies:
            self.deaths.arm(25)
        with contextlib.suppress(*REFUSED, asyncio.CancelledError):
            await doing()
            self.done[doing.__name__] += 1
        await asyncio.sleep(self.random.choice([0.0, 0.1, 1.0, 5.0, 30.0, 120.0]))
        if dies:
            await self.world.until(self._is_served)
            await self.deaths.strike()

    async def _is_served(self) -> bool:
        return bool(self.world.servers)

    async def end(self) -> None:
        """Let everything be well, and every VM be off."""
        await self.deaths.strike()
        await self.heal()
        await reach_fixed_point(self.world)
        for vm in await self.world.list("compute.vm"):
            await self.world.patch("compute.vm", vm["name"], "acme", power="stopped")
        await reach_fixed_point(self.world)

    async def make(self) -> None:
        if len(self.names) < 12:
            self.names.append(f"vm{len(self.names)}")
            size = {"vcpus": self.random.choice([1, 2, 3]), "memory_mib": self.random.choice([64, 128])}
            await self.world.create("compute.vm", self.names[-1], "acme", restart="never", nics=[], **size)

    async def _wish(self, **wish: Any) -> None:
        name = self.random.choice(self.names or ["none"])
        await self.world.patch("compute.vm", name, "acme", **wish)

    async def start(self) -> None:
        name = self.random.choice(self.names or ["none"])
        serial = (await self.world.get("compute.vm", name, "acme"))["desired"]["boot_serial"] + 1
        await self.world.patch("compute.vm", name, "acme", power="running", boot_serial=serial)

    async def stop(self) -> None:
        await self._wish(power="stopped")

    async def pause(self) -> None:
        await self._wish(power="paused")

    async def resize(self) -> None:
        await self._wish(vcpus=self.random.choice([1, 2, 4]), memory_mib=256, offering="")

    async def remove(self) -> None:
        if self.random.random() < 0.3:
            await self.world.delete("compute.vm", self.random.choice(self.names or ["none"]), "acme")

    async def crash(self) -> None:
        on = [
            (host, id)
            for host in self.world.hosts.values()
            for id, machine in sorted(host.machines.machines.items())
            if machine.state != "stopped"
        ]
        if on:
            host, id = self.random.choice(on)
            is_killed = self.random.random() < 0.5
            host.machines.crash(id, "killed" if is_killed else "guest-shutdown", "")


async def live(world: Cloud, seed: int, steps: int) -> None:
    """Let VMs live through a chaos, and compare what is metered with what their hosts' machines were."""
    print(f"seed {seed}")
    await world.create("tenancy.account", "acme")
    book, life, ledger = Book(world), Life(world, seed), Ledger()
    for _ in range(4):
        await life.make()
    for _ in range(steps):
        await life.step()
        if world.servers:
            await check(world, ledger, full=False)
    await life.end()
    await check(world, ledger, full=True)
    runs = await world.store.fetch(RUNS)
    await meter_all(world.store)
    assert await world.store.fetch(RUNS) == runs
    counted = {each["id"]: each for each in (await usage(world))["items"] if each["kind"] == "compute.vm"}
    spans = sum(len(list(book.all(id))) for id in book.ids())
    print(f"did {dict(life.done)}, deaths {dict(life.deaths.happened)}, {len(book.ids())} VMs were on {spans} times")
    assert spans > 4
    for id in book.ids():
        times = 2 * len(list(book.all(id)))
        vcpu_s = counted[id]["vcpu_hours"] * HOUR_S
        within_s = 4 * times * ROUNDING_S
        most = book.vcpu_s(id) + 4 * REMOVAL_S + within_s
        assert book.vcpu_s(id) - within_s <= vcpu_s <= most, f"{id}: {list(book.all(id))}"
        memory_mib_s = counted[id]["memory_gib_hours"] * HOUR_S * 1024
        most = book.memory_mib_s(id) + 256 * (REMOVAL_S + times * ROUNDING_S) + 2
        assert book.memory_mib_s(id) - 256 * times * ROUNDING_S - 2 <= memory_mib_s <= most
    assert not [id for id, each in counted.items() if id not in book.ids() and each["vcpu_hours"]]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long), int(time.time())])
def test_what_is_metered_is_what_machines_were_though_servers_die_at_any_write(seed: int) -> None:
    async def main() -> None:
        async with cloud(HOSTS, seed=seed) as world:
            await live(world, seed, 80)

    run(main)


@pytest.mark.long
def test_what_is_metered_is_what_machines_were_though_one_of_two_servers_on_postgresql_dies(postgres_url: str) -> None:
    async def main() -> None:
        seed = int(time.time())
        world = Cloud(lambda: VirtualPostgres(postgres_url), seed=seed)
        for name in ("one", "two"):
            await world.start_server(name)
        try:
            await world.furnish(HOSTS)
            await live(world, seed, 40)
        finally:
            await world.close()

    run(main)


# traffic


class Wire:
    """What passes the only port of a host, and what may have been lost of it."""

    def __init__(self, world: Cloud, port: str) -> None:
        (self._host,) = world.hosts.values()
        self._world, self._port = world, port
        self.passed, self.lost = (0, 0), 0

    @property
    def now(self) -> tuple[int, int]:
        """The counters."""
        found = self._host.switch.traffic.get(self._port)
        return (found.rx_bytes, found.tx_bytes) if found is not None else (0, 0)

    def set(self, received: int, sent: int) -> None:
        """Let the counters be so."""
        counters = PortCounters(rx_bytes=received, rx_packets=0, tx_bytes=sent, tx_packets=0)
        self._host.switch.traffic[self._port] = counters

    def passes(self, received: int, sent: int) -> None:
        """Let so much pass."""
        self.passed = self.passed[0] + received, self.passed[1] + sent
        self.set(self.now[0] + received, self.now[1] + sent)

    async def stored(self) -> tuple[int, int]:
        """Return the sample in the database."""
        rows = await self._world.store.fetch(sql.SAMPLE, id=self._port)
        found = msgspec.json.decode(rows[0][1]) if rows else {}
        return found.get("rx_bytes", 0), found.get("tx_bytes", 0)

    async def reset(self) -> None:
        """Make the port anew: what it counted since the last sample, nobody knows."""
        stored = await self.stored()
        self.lost += self.now[0] - stored[0] + self.now[1] - stored[1]
        self.set(0, 0)


async def counted(world: Cloud) -> tuple[int, int]:
    """Return the bytes that were metered in all."""
    rows = await world.store.fetch(sa.text("SELECT SUM(received_bytes), SUM(sent_bytes) FROM traffic"))
    return int(rows[0][0] or 0), int(rows[0][1] or 0)


async def wired(world: Cloud, create_account: bool = False) -> Wire:
    """Make a VM with a port."""
    if create_account:
        await world.create("tenancy.account", "acme")
    await world.create("compute.vm", "web", "acme")
    await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
    return Wire(world, (await world.get("compute.vm", "web", "acme"))["assigned"]["ports"][0])


def reaches(world: Cloud, wire: Wire) -> Callable[[], Any]:
    async def so() -> bool:
        return await wire.stored() == wire.now

    return so


async def flow(world: Cloud, seed: int, steps: int) -> None:
    """Let traffic pass while ports are made anew, servers die at their writes, agents die and links break."""
    print(f"seed {seed}")
    wire, life, draw = await wired(world, create_account=True), Life(world, seed), random.Random(seed)
    resets = 0
    for step in range(steps):
        await world.until(life._is_served)
        if draw.random() < 0.3:
            life.deaths.arm(10)
        if step % 5 == 0:
            await life.heal()
        if draw.random() < 0.2:
            await draw.choice([life.kill_agent, life.cut, life.heal])()
        for _ in range(draw.randrange(1, 20)):
            wire.passes(draw.randrange(200), draw.randrange(200))
            await asyncio.sleep(1.0)
        await world.until(life._is_served)
        await life.deaths.strike()
        if min(await wire.stored()) > 20_000:  # more than passes until the next sample: else nobody could see it
            await life.heal()
            await wire.reset()
            await world.until(reaches(world, wire))
            resets += 1
        received, sent = await counted(world)
        assert received <= wire.passed[0]
        assert sent <= wire.passed[1]
    await life.heal()
    await world.until(reaches(world, wire))
    received, sent = await counted(world)
    print(f"passed {wire.passed}, counted {(received, sent)}, at most {wire.lost} lost in {resets} resets")
    assert resets > 0
    assert received <= wire.passed[0]
    assert sent <= wire.passed[1]
    assert received + sent >= sum(wire.passed) - wire.lost
    await world.settle()
    (item,) = [each for each in (await usage(world))["items"] if each["name"] == "web"]
    assert (item["received_gb"], item["sent_gb"]) == (round(received / 1e9, 6), round(sent / 1e9, 6))


@pytest.mark.parametrize("seed", [1, int(time.time())])
def test_never_more_traffic_is_counted_than_passed_and_only_what_a_port_took_with_it_less(seed: int) -> None:
    async def main() -> None:
        async with cloud(seed=seed) as world:
            await flow(world, seed, 80)

    run(main)


@pytest.mark.long
def test_traffic_is_counted_once_by_two_servers_on_postgresql(postgres_url: str) -> None:
    async def main() -> None:
        seed = int(time.time())
        world = Cloud(lambda: VirtualPostgres(postgres_url), seed=seed)
        for name in ("one", "two"):
            await world.start_server(name)
        try:
            await world.furnish(1)
            await flow(world, seed, 60)
        finally:
            await world.close()

    run(main)


def test_a_port_that_is_quiet_or_counts_on_after_an_outage_loses_nothing() -> None:
    async def main() -> None:
        async with metered() as (world, _):
            wire = await wired(world)
            (host,) = world.hosts
            for number in range(1, 6):
                wire.passes(1000 * number, 10)
                await [world.stop_agent, world.cut_link, world.stop_agent][number % 3](host)
                await asyncio.sleep(3 * HOUR_S if number == 2 else 30.0)
                wire.passes(7, 0)
                world.heal_link(host)
                if host not in world.agents:
                    await world.start_agent(host)
                await asyncio.sleep(2 * SAMPLED_S)
                assert await counted(world) == wire.passed
            hours = await world.store.fetch(sa.text("SELECT hour FROM traffic ORDER BY hour"))
            assert len(hours) == 2
            assert all(hour % HOUR_S == 0 for (hour,) in hours)

    run(main)


def test_the_same_sample_again_counts_nothing() -> None:
    async def main() -> None:
        async with metered() as (world, _):
            wire = await wired(world)
            (host,) = world.hosts
            wire.passes(5000, 300)
            again = encode(Samples(counters={wire._port: '{"rx_bytes":5000,"tx_bytes":300}'}))
            for _ in range(5):
                await world.links[host].send(again)
                await asyncio.sleep(1.5)
            await asyncio.sleep(SAMPLED_S)
            assert await counted(world) == (5000, 300)

    run(main)


class Former:
    """Another server of the cloud that an agent spoke with; it was stopped in the middle of its work."""

    def __init__(self, world: Cloud, host: str) -> None:
        server = world.servers[0]
        self.agents = Agents(Store(server.store.engine, KINDS, clock, "former"), server.hub)
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._serving = asyncio.create_task(self.agents.serve(host, Pipe(self._inbox, self._answers)))

    async def hear(self, *frames: Frame) -> None:
        """Let the agent come and say something."""
        self._inbox.put_nowait(encode(Hello(version="1", protocol=PROTOCOL, revision=0)))
        await self._answers.get()
        for frame in frames:
            self._inbox.put_nowait(encode(frame))
        await asyncio.sleep(0.1)

    async def leave(self) -> None:
        """Let the agent go."""
        self._inbox.put_nowait(None)
        await self._serving

    async def go_on(self) -> None:
        """Let the server write what it has not written."""
        await self.agents.open()
        await asyncio.sleep(5.0)
        await self.agents.close()


@pytest.mark.parametrize("comes_back", ["no", "yes"])
def test_what_a_server_heard_long_ago_and_writes_late_is_not_taken_for_a_new_ports(comes_back: str) -> None:
    async def main() -> None:
        async with metered() as (world, _):
            wire = await wired(world)
            (host,) = world.hosts
            await world.stop_agent(host)
            wire.passes(100_000, 50_000)
            former = Former(world, host)
            await former.hear(Samples(counters={wire._port: '{"rx_bytes":100000,"tx_bytes":50000}'}))
            await former.leave()
            wire.passes(7, 5)
            await world.start_agent(host)
            await asyncio.sleep(SAMPLED_S)
            assert await counted(world) == wire.passed
            if comes_back == "yes":
                await world.stop_agent(host)
                former._serving = asyncio.create_task(former.agents.serve(host, Pipe(former._inbox, former._answers)))
                await former.hear()
            await former.go_on()
            if comes_back == "yes":
                await former.leave()
                await world.start_agent(host)
            await asyncio.sleep(SAMPLED_S)
            assert await counted(world) == wire.passed

    run(main)
