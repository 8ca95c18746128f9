"""Sets are watched by the label that their members have: those that come and go, and several sets by several monitors."""

from __future__ import annotations

from tests.cloud.monitor.monitor_world import ACCOUNT
from tests.cloud.world import cloud
from tests.virtual_time import run

from pileus.kernel.store.lists import Filter


def test_a_monitor_watches_the_members_of_a_set_as_it_is_scaled() -> None:
    async def main() -> None:
        async with cloud(2) as world:
            await world.create("tenancy.account", ACCOUNT)
            for name, count in (("web", 2), ("other", 1)):
                await world.create("compute.set", name, ACCOUNT, count=count, nics=[])
            await world.create("compute.vm", "alone", ACCOUNT, nics=[])
            for name in ("first", "second"):
                await world.create("monitor.monitor", name, ACCOUNT, labels={"set": "web"}, replicas=2)

            async def watch(members: set[str]) -> bool:
                found: dict[str, list[str]] = {"first": [], "second": []}
                for row in await world.store.list(Filter(kind="monitor.state")):
                    vm = await world.store.get(row.assigned.vm)
                    if row.assigned.watcher and row.observed is not None and row.observed.execution.state == "running":
                        found[(await world.store.get(row.assigned.monitor)).name].append(vm.name)
                return all(sorted(names) == sorted(members) for names in found.values())

            await world.until(lambda: watch({"web-0001", "web-0002"}))
            await world.patch("compute.set", "web", ACCOUNT, count=4)
            await world.until(lambda: watch({"web-0001", "web-0002", "web-0003", "web-0004"}))
            await world.patch("compute.set", "web", ACCOUNT, count=1)
            await world.until(lambda: watch({"web-0001"}))

    run(main)
