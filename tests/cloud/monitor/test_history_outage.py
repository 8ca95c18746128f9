"""An hour without the customer's database, in which everything else dies, too: all of it arrives once, in order."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

import pytest
from tests.cloud.monitor.deaths import Deaths
from tests.cloud.monitor.monitor_world import ACCOUNT, FAILED, RESTART
from tests.cloud.monitor.test_failovers import Heard
from tests.cloud.monitor.test_history import CUSTOMER, Receiver
from tests.cloud.monitor.test_monitor_appliances import Appliances
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.monitor.history.types import HistoryObserved

MEND = {"when": [FAILED], "do": [RESTART], "mode": "enforce", "cooldown_s": 0}
OUTAGE_S = 3600.0
ROUND_S = 700.0
"""Between two failures of one application: what follows sooner waits longer and longer for its action."""
WRITES_MAX = 200
NOTES = 500
"""Changes that are noted in one transaction."""


class Outage:
    """Appliances that fail and talk while servers and the monitor's own appliances die."""

    def __init__(self, world: Cloud, receiver: Receiver, seed: int) -> None:
        self.world, self.receiver = world, receiver
        self.apps = Heard(world)
        self.deaths = Deaths(world, seed)
        self.monitors = Appliances(world)
        self.ended = 0
        """How often each application ended."""
        self.noted = 0

    async def prepare(self, nodes: int) -> list[Resource]:
        """Return nodes that are watched, with a history whose database is down."""
        await self.apps.furnish(nodes)
        await self.apps.watch(MEND, form="appliance", replicas=2, actions_per_hour=1000)
        await self.world.create("monitor.history", "outside", ACCOUNT, **CUSTOMER)
        self.receiver.is_down = True
        return [await self.apps.node(f"n{number}") for number in range(nodes)]

    async def fail(self, nodes: list[Resource]) -> None:
        """Let the application of each end while a server and an appliance of the monitor die; wait for all actions."""
        self.ended += 1
        self.deaths.arm(WRITES_MAX)
        for node in nodes:
            self.apps.say(node, "web", "failed", self.ended)
        host = self.deaths.random.choice(list(self.world.hosts))
        self.monitors.kill(host)
        await asyncio.sleep(self.deaths.random.uniform(0.0, 12.0))
        await self.deaths.strike()
        self.monitors.revive(host)

        async def are_done() -> bool:
            states = Counter(await self.apps.states())
            return states == {"done": self.ended * len(nodes)}

        await self.world.until(are_done, limit_s=ROUND_S)

    async def talk(self, changes: int) -> None:
        """Note that many changes of rows, as a watcher does."""
        stream = (await self.world.resource("monitor.history", "outside", ACCOUNT)).id
        for _ in range(0, changes, NOTES):
            texts = [json.dumps({"number": self.noted + place, "row": "x" * 400}) for place in range(NOTES)]

            async def note(tx: Transaction, texts: list[str] = texts) -> None:
                for text in texts:
                    await tx.note(stream, "state", text)

            await self.world.store.write(note)
            self.noted += NOTES

    async def recover(self) -> None:
        """Let the database answer, and servers die while they deliver; return when nothing waits."""
        self.receiver.is_down, self.receiver.losing = False, 1

        async def is_empty() -> bool:
            found = await self.world.resource("monitor.history", "outside", ACCOUNT)
            observed: HistoryObserved = found.observed
            return observed.waiting == 0 and not observed.failures

        for _ in range(5):
            self.deaths.arm(WRITES_MAX)
            await asyncio.sleep(20.0)
            await self.deaths.strike()
        await self.world.until(is_empty, limit_s=OUTAGE_S)


@pytest.mark.parametrize(
    ("nodes", "rounds", "changes"), [(4, 2, 1000), pytest.param(100, 5, 100_000, marks=pytest.mark.long)]
)
def test_everything_of_an_outage_arrives_once_and_in_order(nodes: int, rounds: int, changes: int) -> None:
    seed = int(time.time())
    receiver = Receiver(seed)

    async def main() -> None:
        print(f"seed {seed}")
        async with cloud(4, seed=seed, receiver=receiver) as world:
            outage = Outage(world, receiver, seed)
            watched = await outage.prepare(nodes)
            before, began, began_cpu_s = len(receiver.rows), clock(), time.process_time()
            for _ in range(rounds):
                await outage.talk(changes // rounds)
                await outage.fail(watched)
                await asyncio.sleep(ROUND_S)
            await asyncio.sleep(max(0.0, began + OUTAGE_S - clock()))
            assert len(receiver.rows) == before, "it was down"
            history = await world.resource("monitor.history", "outside", ACCOUNT)
            assert history.observed.waiting >= changes + 3 * nodes * rounds
            down_cpu_s = time.process_time() - began_cpu_s
            await outage.recover()
            keys = {action.assigned.cause.key for action in await outage.apps.actions()}
            told = receiver.actions()
            assert Counter(key for key, state in told if state == "done") == dict.fromkeys(keys, 1)
            assert len(keys) == nodes * rounds
            first = {key: place for place, (key, _) in reversed(list(enumerate(told)))}
            assert all(told[first[key]][1] == "waiting" for key in keys), "an action was told of after it was begun"
            bodies = [json.loads(entry.body) for _, entry in sorted(receiver.rows.items())]
            assert [body["number"] for body in bodies if "number" in body] == list(range(outage.noted))
            assert receiver.order == sorted(receiver.order)
            assert receiver.repeated > 0, "no answer was lost: this shows nothing"
            print(
                f"measured: {len(keys)} actions and {len(bodies) - len(told)} states arrived once, in order, after"
                f" {clock() - began:.0f} s with deaths {dict(outage.deaths.happened)}; CPU {down_cpu_s:.0f} s down,"
                f" {time.process_time() - began_cpu_s - down_cpu_s:.0f} s afterwards; {receiver.repeated} came twice"
            )

    run(main)
