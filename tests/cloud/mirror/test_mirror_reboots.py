"""Sessions whose host or decapsulator is started anew or waits to take over: they go on by themselves, and count on."""

from __future__ import annotations

import asyncio

from tests.cloud.mirror.mirror_world import IDLE_S, MirrorCloud, mirror_cloud
from tests.virtual_time import run

from pileus.mirror.session.types import SessionAssigned

FRAME = bytes.fromhex("0250000000020250000000010800450000281234400040060000") + bytes(
    [10, 1, 1, 11, 10, 1, 1, 10, *20 * [0]]
)


async def begin(made: MirrorCloud) -> str:
    """Watch a VM from a decapsulator on another host, and return its port when ten packets were counted."""
    web = await made.vm("web", "a1")
    await made.only("a2")
    await made.session("tap", vm="web")
    passes(made, web, 10)
    await made.world.until(lambda: has_received(made, 10))
    return web


def passes(made: MirrorCloud, port: str, count: int) -> None:
    """Let so many packets pass the port."""
    for _ in range(count):
        made.host_of(port).mirror.pass_frame(port, FRAME, "egress")


async def has_received(made: MirrorCloud, count: int) -> bool:
    """Tell whether so many packets were counted at both ends."""
    counts = await made.counts("tap")
    return (counts["sent"], counts["received"], counts["lost"]) == (count, count, 0)


async def decided(made: MirrorCloud) -> SessionAssigned:
    """Return what was decided of the session."""
    found: SessionAssigned = (await made.world.resource("mirror.session", "tap", "acme")).assigned
    return found


def test_a_host_that_was_rebooted_gets_another_key_and_the_counts_go_on() -> None:
    async def scene() -> None:
        async with mirror_cloud() as made:
            web = await begin(made)
            before = await decided(made)
            host = made.ids["a1"]
            await made.world.stop_agent(host)
            made.world.hosts[host].machines.reboot()
            made.world.hosts[host].mirror.legs.clear()
            await made.world.start_agent(host)

            async def runs_again() -> bool:
                return (await decided(made)).key != before.key and await made.runs("tap")

            await made.world.until(runs_again)
            assert (await decided(made)).decapsulator == before.decapsulator
            passes(made, web, 5)
            await made.world.until(lambda: has_received(made, 15))

    run(scene)


def test_a_decapsulator_that_was_rebooted_counts_on() -> None:
    async def scene() -> None:
        async with mirror_cloud() as made:
            web = await begin(made)
            node = await made.world.store.get((await decided(made)).node)
            host = made.world.hosts[node.host]
            pid = host.machines.machines[node.assigned.vm].pid
            host.machines.crash(node.assigned.vm)

            async def is_back() -> bool:
                return host.machines.machines[node.assigned.vm].pid not in (None, pid)

            await made.world.until(is_back)
            await made.world.until(lambda: made.runs("tap"))
            passes(made, web, 5)
            await made.world.until(lambda: has_received(made, 15))

    run(scene)


def test_a_session_that_was_forbidden_for_a_while_goes_on_and_lost_nothing() -> None:
    async def scene() -> None:
        async with mirror_cloud() as made:
            web = await begin(made)
            await made.world.patch("infra.zone", "local", mirroring="forbidden")

            async def is_silent() -> bool:
                return not made.legs()

            await made.world.until(is_silent)
            passes(made, web, 3)
            await made.world.patch("infra.zone", "local", mirroring="allowed")
            await made.world.until(lambda: made.runs("tap"))
            passes(made, web, 5)
            await made.world.until(lambda: has_received(made, 15))

    run(scene)


def test_a_spare_decapsulator_stays_as_long_as_the_other_has_sessions() -> None:
    async def scene() -> None:
        async with mirror_cloud(decapsulators=2) as made:
            await begin(made)

            async def ids() -> set[str]:
                found = await made.world.list("mirror.decapsulator")
                return {each["id"] for each in found if each["conditions"][0]["status"] == "true"}

            async def are_both_ready() -> bool:
                return len(await ids()) == 2

            await made.world.until(are_both_ready)
            before = await ids()
            await asyncio.sleep(4.0 * IDLE_S)
            assert await ids() == before
            await made.world.delete("mirror.session", "tap", "acme")
            await made.world.until(made.is_tidy, IDLE_S + 60.0)

    run(scene)
