"""A hundred thousand changes wait through an outage and the deaths of servers, and arrive once, in order."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence

import pytest
from tests.cloud.monitor.monitor_world import ACCOUNT, MONITOR
from tests.cloud.world import cloud
from tests.virtual_time import run

from pileus.kernel.errors import Transient
from pileus.kernel.transaction import Transaction
from pileus.monitor.history.types import HistoryAssigned, HistoryDesired
from pileus.monitor.receiver import Entry

ROWS = 1000
"""Changes of one transaction."""


class Volume:
    """A database that loses an answer now and then; ``order``: what was kept, as it came."""

    def __init__(self) -> None:
        self.is_down = True
        self.order: list[tuple[int, int]] = []
        self.known: set[int] = set()
        self.repeated = 0
        self._random = random.Random(11)

    async def take(
        self, desired: HistoryDesired, assigned: HistoryAssigned, stream: str, entries: Sequence[Entry]
    ) -> None:
        await asyncio.sleep(0.01)
        if self.is_down:
            raise Transient("it is down")
        for entry in entries:
            if entry.seq in self.known:
                self.repeated += 1
            else:
                self.known.add(entry.seq)
                self.order.append((entry.seq, json.loads(entry.body)["number"]))
        if self._random.random() < 0.05:
            raise Transient("the answer was lost")


@pytest.mark.parametrize("changes", [4000, pytest.param(100_000, marks=pytest.mark.long)])
def test_all_changes_of_an_outage_arrive_once_and_in_order(changes: int) -> None:
    receiver = Volume()

    async def main() -> None:
        async with cloud(1, receiver=receiver) as world:
            await world.create("tenancy.account", ACCOUNT)
            await world.create("monitor.monitor", MONITOR, ACCOUNT)
            about = {"monitor": MONITOR, "host": "db.example.com", "database": "d", "user": "u"}
            await world.create("monitor.history", "outside", ACCOUNT, **about)
            stream = (await world.resource("monitor.history", "outside", ACCOUNT)).id
            began = time.process_time()
            for first in range(0, changes, ROWS):

                async def note(tx: Transaction, first: int = first) -> None:
                    for number in range(first, first + ROWS):
                        await tx.note(stream, "state", json.dumps({"number": number, "row": "x" * 400}))

                await world.store.write(note)
                if first % 10_000 == 0:
                    await world.stop_server()
                    await world.start_server(f"server{first}")
            noted = time.process_time()
            receiver.is_down = False
            for number in range(5):
                await asyncio.sleep(20.0)
                await world.stop_server()
                await world.start_server(f"late{number}")

            async def is_empty() -> bool:
                found = await world.resource("monitor.history", "outside", ACCOUNT)
                return found.observed is not None and found.observed.waiting == 0 and not found.observed.failures

            await world.until(is_empty, limit_s=3600.0)
            ended = time.process_time()
            print(f"{changes} changes: noted {noted - began:.1f} s, delivered {ended - noted:.1f} s of CPU")
            assert [number for _, number in receiver.order] == list(range(changes))
            assert receiver.order == sorted(receiver.order)
            found = await world.resource("monitor.history", "outside", ACCOUNT)
            assert found.assigned.dropped == 0
            if changes > 10_000:
                assert receiver.repeated > 0, "no answer was lost: this shows nothing"

    run(main)
