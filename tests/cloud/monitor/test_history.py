"""Histories: what is sent when, and to whom."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence

import pytest
from tests.cloud.monitor.monitor_world import ACCOUNT, MONITOR, Apps
from tests.cloud.world import cloud
from tests.virtual_time import run

from pileus.kernel.errors import Conflict, Invalid, Transient
from pileus.kernel.transaction import Transaction
from pileus.monitor.history.controller import LOOK_S
from pileus.monitor.history.types import HistoryAssigned, HistoryDesired
from pileus.monitor.receiver import Entry

CUSTOMER = {"monitor": MONITOR, "host": "db.example.com", "database": "d", "user": "u", "password": "p"}


class Receiver:
    """A database that is down, or loses the answer to what it kept."""

    def __init__(self, seed: int) -> None:
        self.rows: dict[tuple[str, int], Entry] = {}
        self.order: list[int] = []
        self.is_down = False
        self.losing = 0
        """How many of the next answers are lost whatever chance says."""
        self.repeated = 0
        self._random = random.Random(seed)

    async def take(
        self, desired: HistoryDesired, assigned: HistoryAssigned, stream: str, entries: Sequence[Entry]
    ) -> None:
        await asyncio.sleep(0.01)
        if self.is_down or self._random.random() < 0.1:
            raise Transient("the database is down")
        for entry in entries:
            if (stream, entry.seq) in self.rows:
                self.repeated += 1
                continue
            self.rows[stream, entry.seq] = entry
            self.order.append(entry.seq)
        if (self.losing and entries) or self._random.random() < 0.2:
            self.losing = max(self.losing - 1, 0)
            raise Transient("the connection broke before the answer")

    def actions(self) -> list[tuple[str, str]]:
        told = [json.loads(entry.body) for _, entry in sorted(self.rows.items()) if entry.kind == "action"]
        return [(each["cause"]["key"], each["state"]) for each in told]


def test_what_a_person_does_is_there_too_before_it_is_done() -> None:
    receiver = Receiver(seed=9)

    async def main() -> None:
        async with cloud(1, receiver=receiver) as world:
            await Apps(world).furnish(1)
            await world.create("monitor.monitor", MONITOR, ACCOUNT)
            await world.create("monitor.history", "outside", ACCOUNT, **CUSTOMER)
            await world.create("tenancy.account", "other")
            await world.create("monitor.monitor", MONITOR, "other")
            await world.create("monitor.history", "outside", "other", **CUSTOMER)
            await world.create("compute.vm", "web", ACCOUNT)
            await world.until(lambda: world.is_ready("compute.vm", "web", ACCOUNT))
            act = {"vm": "web", "do": [{"do": "terminate"}], "reason": "it is not needed any more"}
            await world.create("monitor.action", "", ACCOUNT, **act)

            async def is_told() -> bool:
                return bool(receiver.actions()) and receiver.actions()[-1][1] == "done"

            await world.until(is_told)
            told = [state for _, state in receiver.actions()]
            assert told[0] == "waiting"
            own = await world.resource("monitor.history", "outside", ACCOUNT)
            assert {stream for (stream, _), entry in receiver.rows.items() if entry.kind == "action"} == {own.id}

    run(main)


def test_a_history_begins_with_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pileus.monitor.history.controller.PAGE", 2)
    receiver = Receiver(seed=10)

    async def main() -> None:
        async with cloud(1, receiver=receiver) as world:
            apps = Apps(world)
            await apps.furnish(5)
            await apps.watch()
            await asyncio.sleep(60.0)
            await world.create("monitor.history", "outside", ACCOUNT, **CUSTOMER)
            vms = {row.assigned.vm for row in await apps.rows()}

            async def is_told() -> bool:
                return {json.loads(entry.body)["vm"] for entry in receiver.rows.values()} == vms

            await world.until(is_told, limit_s=60.0)
            assert len(receiver.rows) == len(vms) == 5

    run(main)


def test_what_nobody_pulls_is_bounded_and_the_history_says_so() -> None:
    async def main() -> None:
        async with cloud(1, receiver=Receiver(seed=11)) as world:
            await world.create("tenancy.account", ACCOUNT)
            await world.create("monitor.monitor", MONITOR, ACCOUNT)
            trial = {"monitor": MONITOR, "form": "sqlite", "waiting_max": 1000}
            id = (await world.create("monitor.history", "trial", ACCOUNT, **trial))["id"]

            async def condition() -> tuple[str, str]:
                told = (await world.get("monitor.history", "trial", ACCOUNT))["conditions"][0]
                return told["reason"], told["message"]

            async def note(count: int) -> None:
                async def work(tx: Transaction) -> None:
                    for number in range(count):
                        await tx.note(id, "state", json.dumps({"number": number}))

                await world.store.write(work)
                await asyncio.sleep(2 * LOOK_S)

            await note(900)
            reason, message = await condition()
            assert (reason, message.split()[0]) == ("Kept", "900")
            await note(900)
            reason, message = await condition()
            assert reason == "Full"
            assert "1000 entries wait, and the oldest of more go; 800 were dropped" in message
            await world.patch(
                "monitor.history", "trial", ACCOUNT, form="postgresql", host="h.io", database="d", user="u"
            )

            async def is_delivered() -> bool:
                return (await condition())[0] == "Delivering"

            await world.until(is_delivered, limit_s=600.0)

    run(main)


def test_a_monitor_has_one_history_and_it_ends_with_it() -> None:
    receiver = Receiver(seed=8)

    async def main() -> None:
        async with cloud(1, receiver=receiver) as world:
            await Apps(world).furnish(1)
            await world.create("monitor.monitor", MONITOR, ACCOUNT)
            with pytest.raises(Invalid, match="ca: is no certificate in PEM"):
                await world.create("monitor.history", "one", ACCOUNT, **CUSTOMER | {"ca": "password: 1234"})
            await world.create("monitor.history", "one", ACCOUNT, **CUSTOMER)
            with pytest.raises(Conflict, match="has history one already"):
                await world.create("monitor.history", "two", ACCOUNT, **CUSTOMER)
            assert "password" not in (await world.get("monitor.history", "one", ACCOUNT))["desired"]
            await world.delete("monitor.history", "one", ACCOUNT)

            async def is_gone() -> bool:
                return not await world.exists("monitor.history", "one", ACCOUNT)

            await world.until(is_gone)
            await world.create("monitor.history", "two", ACCOUNT, **CUSTOMER)

    run(main)
