"""Monitors that run in appliances of the account: the same work, another takes over, and none is its own target."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

from tests.cloud.monitor.monitor_world import ACCOUNT, FAILED, MONITOR, RESTART, Apps
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

from pileus.drivers.host.errors import DriverError
from pileus.kernel.quota import space
from pileus.kernel.store.lists import Filter
from pileus.node.monitor.engine import Engine
from pileus.node.monitor.inventory import Inventory
from pileus.node.monitor.role import PORT, answer

MEND = {"when": [FAILED], "do": [RESTART], "mode": "enforce"}


class EngineStream:
    """A connection to the role ``monitor``, without its machine."""

    def __init__(self, inventory: Inventory | None = None) -> None:
        self._engine = Engine()
        self._inventory = inventory or Inventory(Path("/dev/null/none"))
        self._said: asyncio.Queue[bytes] = asyncio.Queue()
        self._unread = b""

    def cut(self) -> None:
        """End it as a machine that dies does."""
        self._said.put_nowait(b"")

    async def read(self) -> bytes:
        said = await self._said.get()
        if not said:
            raise DriverError("StreamLost", "the node is gone")
        return said

    async def write(self, data: bytes) -> None:
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._said.put_nowait(json.dumps(answer(self._engine, self._inventory, line)).encode() + b"\n")
            if (text := self._inventory.due()) is not None:
                self._inventory.write(text)

    async def finish(self) -> None:
        return

    async def close(self) -> None:
        self.cut()


class Appliances:
    """The monitors' appliances of a simulated cloud, one on each host."""

    def __init__(self, world: Cloud, disk: Path = Path("/dev/null/none")) -> None:
        """``disk``: file of the inventory of whichever appliance."""
        self._world, self._disk = world, disk
        self._streams: dict[str, list[EngineStream]] = {}
        for host in world.hosts:
            self.revive(host)

    def revive(self, host: str) -> None:
        self._world.hosts[host].guests.listening["127.0.0.1", PORT] = self._opener(host)

    def kill(self, host: str) -> None:
        del self._world.hosts[host].guests.listening["127.0.0.1", PORT]
        for stream in self._streams.pop(host, []):
            stream.cut()

    def _opener(self, host: str) -> Callable[[], EngineStream]:
        def opened() -> EngineStream:
            stream = EngineStream(Inventory(self._disk))
            self._streams.setdefault(host, []).append(stream)
            return stream

        return opened


async def watchers(world: Cloud) -> dict[str, str]:
    """Return the host of each watcher's appliance -> the watcher's id."""
    found = {}
    for watcher in await world.store.list(Filter(kind="monitor.watcher")):
        for node in await world.store.list(Filter(kind="fleet.node", owner=watcher.id)):
            found[node.host] = watcher.id
    return found


async def are_two(world: Cloud) -> bool:
    """Tell whether both watchers work and have all appliances; by hash, which now and then gives all to one."""
    seen = (await world.get("monitor.monitor", MONITOR, ACCOUNT))["observed"]
    return bool(seen["watchers"] == 2 and seen["unwatched"] == 0)


def test_two_appliances_share_the_work_and_one_takes_over_for_the_other() -> None:
    async def main() -> None:
        async with cloud(2) as world:
            apps = Apps(world)
            await apps.furnish(4)
            appliances = Appliances(world)
            await apps.watch(MEND, form="appliance", replicas=2, actions_per_hour=1000)

            await world.until(lambda: are_two(world))
            assert {(await world.store.get(row.assigned.vm)).owner for row in await apps.rows()} == {
                (await apps.node(f"n{number}")).id for number in range(4)
            }, "the monitor watches its own appliances"
            vdc = await world.resource("tenancy.vdc", "main", ACCOUNT)
            _, used = await world.store.write(lambda tx: tx.budget(space(vdc.id, "vms")))
            assert used == 6, "its appliances are not on the account's quota"

            for exits, (host, watcher) in enumerate((await watchers(world)).items(), start=1):
                appliances.kill(host)
                for number in range(4):
                    apps.say(await apps.node(f"n{number}"), "web", "failed", exits)
                began = clock()

                async def is_done(exits: int = exits) -> bool:
                    return await apps.states() == ["done"] * 4 * exits

                await world.until(is_done)
                assert clock() - began <= 15.0 + 10.0 * (exits > 1), "cool-downs follow each other from the second on"
                assert watcher not in {row.assigned.watcher for row in await apps.rows()}
                appliances.revive(host)
                await world.until(lambda: are_two(world))
            assert set(apps.done.values()) == {2}
            await world.delete("monitor.policy", "p0", ACCOUNT)

            async def has_no_policy() -> bool:
                return not await world.exists("monitor.policy", "p0", ACCOUNT)

            await world.until(has_no_policy)
            await world.delete("monitor.monitor", "watch", ACCOUNT)

            async def is_gone() -> bool:
                nodes = await world.store.list(Filter(kind="fleet.node"))
                _, used = await world.store.write(lambda tx: tx.budget(space(vdc.id, "vms")))
                return len(nodes) == 4 and used == 4

            await world.until(is_gone)

    run(main)
