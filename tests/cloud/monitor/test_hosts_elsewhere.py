"""A watcher whose server does not speak with a host's agent: another server does, and what that noted tells enough."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tests.cloud.monitor.monitor_world import Apps
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

from pileus.fleet.vitals import Vitals
from pileus.kernel.errors import Transient
from pileus.kernel.store.store import Store
from pileus.registry import KINDS
from pileus.server.links import Connection
from pileus.server.watching import Watching

MEND = {"when": [{"field": "execution.state", "value": "hung"}], "do": [{"do": "restart"}], "mode": "enforce"}


class NoHosts:
    """No agent speaks with this server."""

    async def vitals(self, host_id: str, vm_ids: Iterable[str], timeout_s: float = 2.0) -> dict[str, Vitals]:
        raise Transient("its agent speaks with another server", code="no-agent")

    async def connect(self, host_id: str, appliance: str, address: str, port: int) -> Connection:
        raise Transient("its agent speaks with another server", code="no-agent")


async def let_another_watch(world: Cloud) -> asyncio.Task[None]:
    """Take the watchers from the server that speaks with the hosts."""
    server = world.servers[0]
    task = server.tasks.pop()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await server.watching.close()
    other = Watching(Store(server.store.engine, KINDS, clock, "elsewhere"), server.hub, NoHosts())

    async def watch() -> None:
        try:
            while True:
                await other.look()
        finally:
            await other.kill()

    return asyncio.create_task(watch())


def test_a_silent_appliance_without_io_is_found_to_hang_and_one_with_io_is_not() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(2)
            await apps.watch(MEND)
            watching = await let_another_watch(world)
            idle, busy = await apps.node("n0"), await apps.node("n1")
            host = world.hosts[idle.host]
            for node in (idle, busy):
                host.guests.silent[node.assigned.vm] = clock()
                host.machines.machines[node.assigned.vm].disk = (1 << 20, 1)

            async def is_mended() -> bool:
                turn = int(clock())
                host.machines.machines[busy.assigned.vm].disk = (turn << 20, turn)
                return "done" in await apps.states()

            began = clock()
            await world.until(is_mended, limit_s=150.0)
            print(f"measured: found and mended {clock() - began:.0f} s later")
            (action,) = await apps.actions()
            assert action.assigned.vm == idle.assigned.vm
            assert (await apps.row(busy)).observed.execution.state in ("running", "silent")
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    run(main)
