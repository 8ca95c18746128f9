"""Databases that hang hold up nobody else, and a long outage costs no more than it must."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from tests.cloud.monitor.monitor_world import ACCOUNT, MONITOR, Apps
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import run

from pileus.kernel.errors import Transient
from pileus.monitor.history.controller import TURNS_MAX, TURNS_OF_ACCOUNT_MAX, TURNS_UNPROVEN_MAX
from pileus.monitor.history.types import HistoryAssigned, HistoryDesired
from pileus.monitor.receiver import TIMEOUT_S, Entry

CROWD = 100
AT_ONCE_S = 3.0
"""Of virtual time: what an entry, or a VM, takes on a server that has nothing else to do."""


class Crowd:
    """Databases, one of which answers."""

    def __init__(self) -> None:
        self.kept: list[Entry] = []
        self.hanging = self.most = self.tries = 0

    async def take(
        self, desired: HistoryDesired, assigned: HistoryAssigned, stream: str, entries: Sequence[Entry]
    ) -> None:
        if desired.host == "good.example.com":
            self.kept += entries
            return
        self.hanging += 1
        self.tries += 1
        self.most = max(self.most, self.hanging)
        try:
            await asyncio.sleep(TIMEOUT_S)
        finally:
            self.hanging -= 1
        raise Transient("it hangs")


async def _history(world: Cloud, account: str, number: int, host: str) -> None:
    await world.create("monitor.monitor", f"m{number}", account)
    about = {"monitor": f"m{number}", "host": host, "database": "d", "user": "u"}
    await world.create("monitor.history", f"h{number}", account, **about)


@pytest.mark.long
def test_a_hundred_databases_that_hang_hold_up_neither_vms_nor_a_database_that_answers() -> None:
    receiver = Crowd()

    async def main() -> None:
        async with cloud(1, receiver=receiver) as world:
            apps = Apps(world)
            await apps.furnish(1)
            await apps.watch()
            about = {"monitor": MONITOR, "host": "good.example.com", "database": "d", "user": "u"}
            await world.create("monitor.history", "good", ACCOUNT, **about)
            await world.until(lambda: world.is_ready("monitor.history", "good", ACCOUNT))
            for number in range(CROWD):
                account = f"a{number // 2}"
                if number % 2 == 0:
                    await world.create("tenancy.account", account)
                await _history(world, account, number, "hangs.example.com")
            node = await apps.node("n0")
            loop = asyncio.get_running_loop()
            for number in range(10):
                before, began = len(receiver.kept), loop.time()
                apps.say(node, "web", "stopped" if number % 2 else "running", number)
                vm = f"vm{number}"
                await world.create("compute.vm", vm, ACCOUNT)

                async def is_done(before: int = before, vm: str = vm) -> bool:
                    return len(receiver.kept) > before and await world.is_ready("compute.vm", vm, ACCOUNT)

                await world.until(is_done, limit_s=AT_ONCE_S)
                assert receiver.hanging > 0, f"nothing hung at {began}"
                await asyncio.sleep(20.0)
            assert receiver.most == TURNS_UNPROVEN_MAX < TURNS_MAX
            assert receiver.tries > 50

    run(main)


def test_an_account_has_only_its_share() -> None:
    receiver = Crowd()

    async def main() -> None:
        async with cloud(1, receiver=receiver) as world:
            await world.create("tenancy.account", ACCOUNT)
            for number in range(8):
                await _history(world, ACCOUNT, number, "hangs.example.com")
            await asyncio.sleep(300.0)
            assert receiver.most == TURNS_OF_ACCOUNT_MAX
            seen = [await world.resource("monitor.history", f"h{number}", ACCOUNT) for number in range(8)]
            assert all(each.observed is not None and each.observed.failures > 0 for each in seen), "each has its turn"

    run(main)
