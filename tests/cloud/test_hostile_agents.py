"""An agent that says nonsense harms its own host at most."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from pileus.kernel.condition import Condition
from pileus.kernel.kind import Resource
from pileus.kernel.store import statements as sql
from pileus.kernel.stream import PROTOCOL, Acknowledge, Fact, Heartbeat, Hello, Report, Samples, Slice, decode, encode
from pileus.kernel.transaction import Transaction
from pileus.registry import KINDS
from tests.cloud.world import Cloud, Pipe, cloud
from tests.virtual_time import clock, run


class Forger:
    """What has a host's certificate and says what it likes."""

    def __init__(self, world: Cloud, host: str) -> None:
        self._here: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._there: asyncio.Queue[bytes | None] = asyncio.Queue()
        server = world.servers[0]
        pipe = Pipe(self._here, self._there)
        server.tasks.append(asyncio.create_task(server.agents.serve(host, pipe)))

    def say(self, frame: Any) -> None:
        self._here.put_nowait(encode(frame))

    async def hear(self, kind: type) -> Any:
        async with asyncio.timeout(10.0):
            while not isinstance(frame := decode(await self._there.get() or b""), kind):
                pass
        return frame


async def forger(world: Cloud, host: str) -> Forger:
    await world.stop_agent(host)
    made = Forger(world, host)
    made.say(Hello(version="1", protocol=PROTOCOL, revision=0))
    await made.hear(Slice)
    return made


async def running_vm(world: Cloud) -> dict[str, Any]:
    await world.create("tenancy.account", "acme")
    await world.create("compute.vm", "web", "acme", nics=[])
    await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
    found = await world.get("compute.vm", "web", "acme")

    async def sampled() -> bool:
        return await world.store.sample(found["id"]) is not None

    await world.until(sampled)
    return found


def test_counters_of_another_hosts_vm_are_not_taken_and_do_not_hide_the_true_ones() -> None:
    async def main() -> None:
        async with cloud(hosts=2) as world:
            vm = await running_vm(world)
            bad = await forger(world, next(host for host in world.hosts if host != vm["host"]))
            for _ in range(1200):
                bad.say(Samples(counters={vm["id"]: "{}"}))
                await asyncio.sleep(0.05)
            at, body = await world.store.sample(vm["id"]) or (0.0, "")
            assert clock() - at < 20.0
            assert body != "{}"

    run(main)


NONSENSE = ['{}},"forged":{"x":1}', '{"a":"\0"}', "[]", "", '{"a":"' + 100_000 * "x" + '"}']


@pytest.mark.parametrize("text", NONSENSE, ids=["two values", "NUL", "a list", "nothing", "too long"])
def test_counters_that_are_no_small_json_object_are_not_taken(text: str) -> None:
    async def main() -> None:
        async with cloud() as world:
            vm = await running_vm(world)
            bad = await forger(world, vm["host"])
            bad.say(Samples(counters={vm["id"]: '{"mine":1}'}))
            await asyncio.sleep(5.0)
            bad.say(Samples(counters={vm["id"]: text, "no\0id": "{}"}))
            await asyncio.sleep(5.0)
            assert (await world.store.sample(vm["id"]) or ("", ""))[1] == '{"mine":1}'

    run(main)


def test_hosts_are_heard_although_their_counters_cannot_be_written() -> None:
    async def main() -> None:
        async with cloud() as world:
            await running_vm(world)

            async def drop(tx: Transaction) -> None:
                await tx.change(sa.text("DROP TABLE sample"))

            await world.store.write(drop)
            (host,) = world.hosts
            await world.stop_agent(host)
            bad = Forger(world, host)
            bad.say(Hello(version="1", protocol=PROTOCOL, revision=0))
            ids = (await bad.hear(Slice)).ids
            for _ in range(60):
                bad.say(Heartbeat())
                bad.say(Samples(counters={id: "{}" for id in ids}))
                await asyncio.sleep(1.0)
            ((seen_at, _),) = await world.store.fetch(sql.PRESENCE, host=host)
            assert clock() - seen_at < 5.0
            assert await world.is_ready("infra.host", "host0")

    run(main)


@pytest.fixture
def fragile() -> Iterator[None]:
    """Let the condition of a pool of 666 GiB be a defect."""
    kind = KINDS["storage.pool"]
    sound = kind.ready

    def ready(resource: Resource) -> Condition:
        assert resource.observed is None or resource.observed.total_gib != 666
        return sound(resource)

    msgspec.structs.force_setattr(kind, "ready", ready)
    yield
    msgspec.structs.force_setattr(kind, "ready", sound)


@pytest.mark.usefixtures("fragile")
def test_a_fact_that_its_kind_does_not_cope_with_keeps_no_other_fact_back() -> None:
    async def main() -> None:
        async with cloud() as world:
            (host,) = world.hosts
            pool = await world.resource("storage.pool", "host0")
            bad = await forger(world, host)
            facts = (
                Fact(pool.id, "storage.pool", 1, '{"total_gib":666,"free_gib":0}'),
                Fact(host, "infra.host", 1, '{"version":"9","cpus":7,"memory_mib":4096}'),
            )
            bad.say(Report(number=1, facts=facts))
            await bad.hear(Acknowledge)
            assert (await world.get("infra.host", "host0"))["observed"]["cpus"] == 7
            assert (await world.get("storage.pool", "host0"))["observed"]["total_gib"] != 666

    run(main)
