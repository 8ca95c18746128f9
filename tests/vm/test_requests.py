"""Requests to real nodes that have no NIC at all: once, in order, never late, whoever is killed in between."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.backchannel import HINT_TIMEOUT_S
from pileus.drivers.host.guest.base import GuestAnswer, GuestRequest
from pileus.image.appliance_build import appliance_with

if TYPE_CHECKING:
    from tests.vm.appliance_rack import LIMIT_S, Rack, a_rack, ready
    from tests.vm.fleet_rig import IMAGE, Manager, add_image
    from tests.vm.realcloud import split
else:
    from appliance_rack import LIMIT_S, Rack, a_rack, ready
    from fleet_rig import IMAGE, Manager, add_image
    from realcloud import split

pytestmark = pytest.mark.anyio

COUNTER = Path(__file__).parent / "programs/counter"
RECIPE = appliance_with("test-counter", {"counter": COUNTER.read_bytes()}, packages=["ethtool"])
REQUESTS = 200
PAUSE_S = HINT_TIMEOUT_S - 0.5
"""Not as long as the host waits for an answer before it gives up the session."""

QUEUED = 60
"""At one node, while its host's agent is a process that is killed again and again."""

CLOCK_S_MAX = 10.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def rack() -> AsyncIterator[Rack]:
    async with a_rack(RECIPE) as made:
        yield made


class Node:
    """A node with the role ``counter``, and whoever asks it: again and again until it answers."""

    def __init__(self, rack: Rack, machine: str) -> None:
        self.machine = machine
        self.sequences = itertools.count(1)
        self._rack = rack

    async def start(self) -> None:
        await self._rack.start(self.machine, "serial", role="counter")
        await self._rack.guest.attach(self.machine, "serial")

    async def new_agent(self) -> None:
        await self._rack.guest.detach(self.machine)
        await self._rack.guest.attach(self.machine, "serial")

    async def until_ready(self) -> None:
        await self._rack.until(self.machine, ready)

    def asked(self, payload: bytes = b"", in_s: float = 3600.0) -> GuestRequest:
        sequence = next(self.sequences)
        return GuestRequest(id=f"r-{sequence}", sequence=sequence, deadline=time.time() + in_s, payload=payload)

    async def once(self, request: GuestRequest) -> GuestAnswer:
        return await self._rack.guest.request(self.machine, request)

    async def answer(self, request: GuestRequest) -> GuestAnswer:
        async with asyncio.timeout(LIMIT_S):
            while True:
                with suppress(DriverError):
                    return await self.once(request)
                await asyncio.sleep(0.1)

    async def done(self) -> list[str]:
        return (await self.answer(self.asked(b"list"))).answer.decode().split()


async def test_a_node_without_any_nic_does_requests_once(rack: Rack) -> None:
    node = Node(rack, "0197-node")
    await node.start()
    await node.until_ready()
    first = node.asked(b"hello")
    wanted = GuestAnswer(state="applied", answer=b"r-1 5")
    assert await node.once(first) == wanted
    assert await node.once(first) == wanted

    second = node.asked(b"slow")
    cut = asyncio.create_task(node.once(second))
    await asyncio.sleep(1.5)
    await node.new_agent()
    with pytest.raises(DriverError):
        await cut
    assert await node.answer(second) == GuestAnswer(state="applied", answer=b"r-2 4")

    third = node.asked(b"slow")
    cut = asyncio.create_task(node.once(third))
    await asyncio.sleep(1.5)
    await rack.kill(node.machine)
    with pytest.raises(DriverError):
        await cut
    await node.start()
    assert await node.answer(third) == GuestAnswer(state="applied", answer=b"r-3 4")
    assert await node.answer(second) == GuestAnswer(state="applied", answer=b"r-2 4")
    assert await node.done() == ["r-1", "r-2", "r-3"]

    payload = os.urandom(16 << 20)
    before = time.monotonic()
    answer = await node.once(node.asked(payload))
    print(f"16 MiB were taken in {time.monotonic() - before:.1f} s")
    assert answer == GuestAnswer(state="applied", answer=b"r-5 %d" % len(payload))

    with pytest.raises(DriverError, match="this is refused"):
        await rack.guest.configure(node.machine, {"refuse": {"a": 1}})
    await rack.guest.configure(node.machine, {"rules": {"a": 1}})
    fact = await rack.until(node.machine, lambda fact: fact.status.get("done") == 4)
    assert fact.refused == ""


@pytest.mark.long
async def test_a_request_is_not_begun_after_its_deadline_by_a_node_that_was_paused(rack: Rack) -> None:
    node = Node(rack, "0197-paused")
    await node.start()
    await node.until_ready()
    await node.once(node.asked())
    await rack.hypervisor.pause(node.machine)
    late = node.asked(in_s=PAUSE_S - 1)
    asking = asyncio.create_task(node.answer(late))
    await asyncio.sleep(PAUSE_S)
    await rack.hypervisor.resume(node.machine)
    assert await asking == GuestAnswer(state="expired")
    assert (await node.answer(node.asked(in_s=60.0))).state == "applied"
    assert await node.done() == ["r-1", "r-3"]
    clock = await node.answer(node.asked(b"clock"))
    assert abs(float(clock.answer) - time.time()) < CLOCK_S_MAX, "the hardware clock went on"

    await rack.hypervisor.pause(node.machine)
    late = node.asked(in_s=PAUSE_S)
    asking = asyncio.create_task(node.answer(late))
    await asyncio.sleep(2 * HINT_TIMEOUT_S)
    await rack.hypervisor.resume(node.machine)
    assert await asking == GuestAnswer(state="expired"), "also when the host gave up the session meanwhile"
    assert await node.done() == ["r-1", "r-3"]


def seeded() -> random.Random:
    """Return the chance of a run; what it printed repeats it."""
    seed = int(os.environ.get("PILEUS_SEED", "0")) or random.randrange(2**32)
    print(f"PILEUS_SEED={seed}")
    return random.Random(seed)


@pytest.mark.long
def test_a_queue_of_requests_while_the_process_of_the_hosts_agent_is_killed_again_and_again() -> None:
    chance = seeded()
    kills = 0
    with split() as cloud:
        cloud.pileus("patch", "zone", "one", "--router", "none")
        add_image(cloud, IMAGE)
        manager = Manager(cloud, "tests")
        manager.consented("acme")
        manager.package("counter")
        (node,) = manager.ready(manager.node("counter", "acme", package="counter"))
        began = time.monotonic()
        asked = [manager.request(node, chance.choice(["", "slow", 1000 * "x"])) for _ in range(QUEUED)]
        last = f"/v1/fleet.request/{asked[-1]['id']}"
        while (manager.api.call("GET", last)["observed"] or {"state": "queued"})["state"] == "queued":
            lines = cloud.agent_ready_lines()
            cloud.kill(cloud.agent)
            cloud.start_agent()
            kills += 1
            cloud.until_agent(lines)
            time.sleep(chance.uniform(0.0, 2.0))
        for one in asked:
            assert manager.answer(one) == ("applied", f"{one['id']} {len(one['desired']['payload'])}")
        assert manager.ask(node, "runs").split() == [one["id"] for one in asked], "each once, in order"
        print(f"measured: {QUEUED} requests, {kills} kills of the agent, {time.monotonic() - began:.0f} s")
        assert kills > 5
        cloud.pileus("delete", "node", "counter", "--account", "acme", "-y", "--wait")


@pytest.mark.long
async def test_two_hundred_requests_with_random_kills(rack: Rack) -> None:
    chance = seeded()
    nodes = [Node(rack, f"0197-n{number}") for number in range(2)]
    for node in nodes:
        await node.start()
    kills = {"agent": 0, "node": 0, "neither": 0}
    began = time.monotonic()

    async def ask(node: Node) -> list[str]:
        asked = []
        await node.until_ready()
        for _ in range(REQUESTS // len(nodes)):
            request = node.asked(chance.randbytes(chance.choice([0, 100, 100_000])))
            asked.append(request.id)
            victim = chance.choices(["agent", "node", "neither"], [20, 10, 70])[0]
            kills[victim] += 1
            asking = asyncio.create_task(node.answer(request))
            if victim != "neither":
                await asyncio.sleep(chance.random())
            if victim == "node":
                await rack.kill(node.machine)
                await node.start()
            elif victim == "agent":
                await node.new_agent()
            answer = await asking
            assert answer == GuestAnswer(state="applied", answer=f"{request.id} {len(request.payload)}".encode())
        return asked

    for node, asked in zip(nodes, await asyncio.gather(*[ask(node) for node in nodes]), strict=True):
        assert await node.done() == asked
    print(f"{REQUESTS} requests, {kills}, {time.monotonic() - began:.0f} s")
