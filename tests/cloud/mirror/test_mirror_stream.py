"""Packets that pass all the time while a session's decapsulator dies or leaves: each is copied once, and each is counted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.cloud.mirror.mirror_world import MirrorCloud, mirror_cloud
from tests.virtual_time import run

from pileus.kernel.kind import Resource
from pileus.mirror.session.types import SessionAssigned

FRAME = bytes.fromhex("0250000000020250000000010800450000281234400040060000") + bytes(
    [10, 1, 1, 11, 10, 1, 1, 10, *20 * [0]]
)
EACH_S = 0.02
CALL_S = 0.05
"""What a host takes for a change of its mirror: on one that takes no time nothing could pass meanwhile."""


class Stream:
    """Packets that a port has passed."""

    passed = 0


@contextlib.asynccontextmanager
async def streaming(made: MirrorCloud, port: str) -> AsyncIterator[Stream]:
    """Let packets pass the port for the block, one every 20 ms."""
    stream = Stream()

    async def go_on() -> None:
        while True:
            made.host_of(port).mirror.pass_frame(port, FRAME, "egress")
            stream.passed += 1
            await asyncio.sleep(EACH_S)

    task = asyncio.create_task(go_on())
    try:
        yield stream
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def begin(made: MirrorCloud) -> str:
    """Watch a VM in a cloud whose two decapsulators are ready; return its port."""
    for host in made.world.hosts.values():
        host.mirror.call_s = CALL_S
    web = await made.vm("web", "a1")
    await made.only("a2")
    await made.session("tap", vm="web")
    await made.only("b1")

    async def are_both_ready() -> bool:
        found = await made.world.list("mirror.decapsulator")
        return [each["observed"] and each["observed"]["state"] for each in found] == ["ready", "ready"]

    await made.world.until(are_both_ready, 60.0)
    return web


async def decided(made: MirrorCloud) -> SessionAssigned:
    """Return what was decided of the session."""
    found: SessionAssigned = (await made.world.resource("mirror.session", "tap", "acme")).assigned
    return found


async def node_of(made: MirrorCloud) -> Resource:
    """Return the node that the session's packets go through."""
    return await made.world.store.get((await decided(made)).node)


async def until_elsewhere(made: MirrorCloud, key: str) -> None:
    """Wait until the session runs with another key."""

    async def is_elsewhere() -> bool:
        return (await decided(made)).key != key and await made.runs("tap")

    await made.world.until(is_elsewhere, 60.0)


async def until_whole(made: MirrorCloud, passed: int) -> dict[str, int]:
    """Return the counts once every packet that passed is counted, as received or as lost."""

    async def is_whole() -> bool:
        counts = await made.counts("tap")
        return counts["seen"] == counts["sent"] == counts["received"] + counts["lost"] == passed

    await made.world.until(is_whole, 60.0)
    return await made.counts("tap")


def test_while_another_decapsulator_takes_over_every_packet_is_counted() -> None:
    async def scene() -> None:
        async with mirror_cloud(decapsulators=2) as made:
            web = await begin(made)
            node, before = await node_of(made), await decided(made)
            async with streaming(made, web) as stream:
                await asyncio.sleep(5.0)
                made.world.hosts[node.host].machines.crash(node.assigned.vm)
                at_death = stream.passed
                await until_elsewhere(made, before.key)
                at_other = stream.passed
                await asyncio.sleep(5.0)
            counts = await until_whole(made, stream.passed)
            assert counts["lost"] >= at_other - at_death
            assert counts["received"] >= stream.passed - at_other

    run(scene)


def test_a_decapsulator_that_leaves_takes_no_packet_with_it_uncounted() -> None:
    async def scene() -> None:
        async with mirror_cloud(decapsulators=2) as made:
            web = await begin(made)
            async with streaming(made, web) as stream:
                before = await decided(made)
                used = await made.world.store.get(before.decapsulator)
                await asyncio.sleep(5.0)
                if used.assigned.number == 0:
                    node = await node_of(made)
                    made.world.hosts[node.host].machines.crash(node.assigned.vm)
                    await until_elsewhere(made, before.key)
                    before = await decided(made)
                await made.world.patch("infra.zone", "local", decapsulators=1)
                await until_elsewhere(made, before.key)
                await asyncio.sleep(5.0)
            await until_whole(made, stream.passed)

    run(scene)


def test_what_a_decapsulator_said_just_before_it_died_is_not_counted_as_lost() -> None:
    async def scene() -> None:
        async with mirror_cloud(decapsulators=2) as made:
            web = await begin(made)
            node, before = await node_of(made), await decided(made)
            session = (await made.world.get("mirror.session", "tap", "acme"))["id"]
            for _ in range(10):
                made.host_of(web).mirror.pass_frame(web, FRAME, "egress")

            async def has_said_so() -> bool:
                said = (await made.world.store.get(node.id)).observed.status["sessions"][session]
                return bool(said[1] == 10)

            await made.world.until(has_said_so)
            made.world.hosts[node.host].machines.crash(node.assigned.vm)
            await until_elsewhere(made, before.key)
            assert (await until_whole(made, 10))["lost"] == 0

    run(scene)
