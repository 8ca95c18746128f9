"""From the transaction that notes to the customer's rows: the kernel's loop, the controller and a PostgreSQL that is killed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.contract.monitor_history.history_rig import Rig, until

from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Loop
from pileus.kernel.store.sqlite import SqliteEngine
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.monitor.history.controller import HistoryController
from pileus.monitor.history.types import HistoryAssigned
from pileus.monitor.monitor.types import MonitorDesired
from pileus.monitor.receiver import Postgres
from pileus.registry import KINDS

pytestmark = pytest.mark.anyio

CHANGES = 1200


@asynccontextmanager
async def server(rig: Rig, path: Path, name: str) -> AsyncIterator[Store]:
    """Give the store of a server for the block, whose loop delivers histories."""
    engine = SqliteEngine(path)
    await engine.open()
    store = Store(engine, KINDS, time.time, name)
    hub = Hub(store)
    loop = Loop(store, hub, {"monitor.history": HistoryController(Postgres(rig.names), time.time)})
    await hub.open()
    await loop.open()
    try:
        yield store
    finally:
        await loop.close()
        await hub.close()
        await engine.close()


async def furnish(store: Store, rig: Rig) -> str:
    """Make a monitor with a history; return the history's id."""
    desired = rig.desired(tls="verify", ca=rig.database.ca)

    async def work(tx: Transaction) -> str:
        monitor = await tx.create(Resource(id="", kind="monitor.monitor", name="watch", desired=MonitorDesired()))
        history = Resource(
            id="", kind="monitor.history", name="outside", desired=desired, assigned=HistoryAssigned(reach="any")
        )
        return (await tx.create(history, {"monitor": monitor.id})).id

    return await store.write(work)


async def note(store: Store, stream: str, number: int) -> None:
    """Note one change."""
    body = json.dumps({"vm": "vm-1", "number": number, "padding": "x" * 500})
    await store.write(lambda tx: tx.note(stream, "state", body))


@pytest.mark.long
async def test_changes_are_there_once_and_in_order_while_the_database_and_a_server_die(
    rig: Rig, tmp_path: Path
) -> None:
    async with server(rig, tmp_path / "db", "one") as store:
        stream = await furnish(store, rig)
        for number in range(CHANGES):
            await note(store, stream, number)
            if number == CHANGES // 3:
                await asyncio.to_thread(rig.database.kill)
            if number == CHANGES // 2:
                await asyncio.to_thread(rig.database.start)
    async with server(rig, tmp_path / "db", "two") as store:

        async def is_delivered() -> bool:
            return await rig.rows("SELECT count(*) FROM pileus_history") == [(CHANGES,)]

        await until(is_delivered)
        assert (await store.get(stream)).assigned.dropped == 0
    rows = await rig.rows("SELECT (body->>'number')::int FROM pileus_history ORDER BY stream, seq")
    assert [number for (number,) in rows] == list(range(CHANGES))
    assert await rig.numbers() == sorted(await rig.numbers())
