"""How many notices a second one manager's callback takes, and how soon one comes after its fact was written.

The receiver is real HTTPS on the loopback, in the same process and on the same core as store, loop and sender.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.receiver import Receiver, receiving

from benchmarks.clouds import folder
from benchmarks.report import Report, Result, percentile
from pileus.fleet.manager.controller import ManagerController
from pileus.fleet.manager.types import ManagerAssigned, ManagerDesired
from pileus.fleet.request.types import RequestAssigned, RequestDesired, RequestObserved
from pileus.kernel.clock import system_clock
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Loop
from pileus.kernel.notice import TOLD_SPACE
from pileus.kernel.outbound import Internet
from pileus.kernel.store.sqlite import SqliteEngine
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.registry import KINDS

ALONE = 100
AT_A_TIME = 200
"""Facts written in one transaction."""


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    nodes, each = (100, 10) if quick else (500, 20)
    report.say(f"notices: {nodes * each} of {nodes} nodes to one HTTPS receiver, on SQLite")
    with folder("notices") as where:
        asyncio.run(_measure(report, where, nodes, each))


async def _measure(report: Report, where: Path, nodes: int, each: int) -> None:
    async with receiving(where) as receiver, _server(where) as store:
        manager = await _manager(store, receiver)
        late_ms = [await _alone(store, receiver, manager, number) for number in range(ALONE)]
        receiver.status = 503
        for first in range(0, nodes * each, AT_A_TIME):
            await _write(store, manager, [f"node{number % nodes}" for number in range(first, first + AT_A_TIME)])
        receiver.came.clear()
        receiver.status = 204
        await receiver.has(1)  # the sender had to wait for its next try
        began = time.monotonic()
        await receiver.has(nodes * each)
        spent_s = time.monotonic() - began
    for percent in (50, 99):
        name = f"notices: from the fact to the callback, p{percent}"
        report.add(Result(name=name, value=percentile(late_ms, percent), unit="ms"))
    report.add(
        Result(name=f"notices: a backlog of {nodes * each} sent", value=(nodes * each - 1) / spent_s, unit="notices/s")
    )


async def _alone(store: Store, receiver: Receiver, manager: str, number: int) -> float:
    before, began = len(receiver.came), time.monotonic()
    await _write(store, manager, [f"alone{number}"])
    await receiver.has(before + 1)
    return (time.monotonic() - began) * 1000


@contextlib.asynccontextmanager
async def _server(where: Path) -> AsyncIterator[Store]:
    store = Store(SqliteEngine(where / "pileus.db"), KINDS, system_clock)
    await store.engine.open()
    hub = Hub(store)
    await hub.open()
    loop = Loop(store, hub, {"fleet.manager": ManagerController(Internet())})
    await loop.open()
    try:
        yield store
    finally:
        await loop.close()
        await hub.close()
        await store.engine.close()


async def _manager(store: Store, receiver: Receiver) -> str:
    async def made(tx: Transaction) -> str:
        desired = ManagerDesired(callback_url=receiver.url, callback_ca=receiver.ca)
        assigned = ManagerAssigned(reach="any")
        manager = await tx.create(Resource(id="", kind="fleet.manager", name="m", desired=desired, assigned=assigned))
        await tx.claim(TOLD_SPACE, manager.id, manager.id)
        return manager.id

    return await store.write(made)


async def _write(store: Store, manager: str, nodes: list[str]) -> None:
    """Write the ends of requests, one of each node named."""

    async def write(tx: Transaction) -> None:
        for node in nodes:
            assigned = RequestAssigned(manager=manager, node=node, deadline=0.0, settled_at=tx.now)
            observed = RequestObserved(state="applied", answer="done" * 20)
            desired = RequestDesired(node=node)
            about: dict[str, Any] = {"desired": desired, "assigned": assigned, "observed": observed}
            await tx.create(Resource(id="", kind="fleet.request", name=tx.new_id().lower(), **about))

    await store.write(write)
