"""Two servers of one cloud on PostgreSQL share a monitor's watchers: either may die at any write, none misses an incident."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest
from structlog.testing import capture_logs
from tests.cloud.monitor.monitor_world import Apps
from tests.cloud.monitor.test_failovers import MEND, Failovers
from tests.cloud.virtual_postgres import VirtualPostgres
from tests.cloud.world import Cloud
from tests.postgres import postgres, postgres_url
from tests.virtual_time import clock, run

from pileus.kernel.lease import holder
from pileus.kernel.store.lists import Filter

__all__ = ["postgres", "postgres_url"]

TAKEN_OVER_S = 15.0


@pytest.mark.long
@pytest.mark.parametrize("rounds", [5, 20])
def test_whichever_of_two_servers_dies_each_incident_has_one_action(postgres_url: str, rounds: int) -> None:
    async def main() -> None:
        seed = int(time.time())
        print(f"seed {seed}")
        world = Cloud(lambda: VirtualPostgres(postgres_url), seed=seed)
        for name in ("one", "two"):
            await world.start_server(name)
        try:
            await world.furnish(2)
            failovers = Failovers(world, seed)
            await failovers.go(await failovers.prepare(replicas=2), rounds)
            await failovers.check()
            waited = sorted(failovers.waited_s)
            print(
                f"measured: {rounds} deaths {dict(failovers.deaths.happened)}, {failovers.failed.total()} incidents,"
                f" acted on {waited[len(waited) // 2]:.1f} s later at the median, {waited[-1]:.1f} s at most"
            )
        finally:
            await world.close()

    with capture_logs() as logs:
        run(main)
    assert not [entry for entry in logs if _is_of_the_database(entry.values())]


def _is_of_the_database(words: Iterable[object]) -> bool:
    """Tell whether a line of the log says that two servers' transactions were in each other's way."""
    return any(word in str(each).lower() for each in words for word in ("serialize", "deadlock", "defect"))


def test_a_watcher_goes_to_the_server_that_lives_within_its_time(postgres_url: str) -> None:
    async def main() -> None:
        world = Cloud(lambda: VirtualPostgres(postgres_url), seed=6)
        for name in ("one", "two"):
            await world.start_server(name)
        try:
            await world.furnish(1)
            apps = Apps(world)
            await apps.furnish(2)
            await apps.watch(MEND, actions_per_hour=1000, replicas=2)
            watchers = [each.id for each in await world.store.list(Filter(kind="monitor.watcher"))]
            node = await apps.node("n0")
            for number, dying in enumerate(("one", "two"), 1):
                server = next(each for each in world.servers if each.store.server == dying)
                other = next(each for each in world.servers if each is not server)
                await world.stop_server(server)
                stopped_at = clock()
                apps.say(node, "web", "failed", number)

                async def are_taken(other: str = other.store.server) -> bool:
                    return [await holder(world.store, id) for id in watchers] == [other] * 2

                await world.until(are_taken, TAKEN_OVER_S)
                print(f"measured: taken over {clock() - stopped_at:.1f} s after {dying} died")

                async def is_done(number: int = number) -> bool:
                    return await apps.states() == ["done"] * number

                await world.until(is_done, 60.0)
                await world.start_server(dying)
            assert apps.done == {(node.assigned.vm, "restart", "web"): 2}
        finally:
            await world.close()

    run(main)
