"""Entries, and a receiver that writes them to a database of a test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.contract.monitor_history.customers_database import PASSWORD, Database, Names

from pileus.kernel.errors import Transient
from pileus.monitor.history.types import HistoryAssigned, HistoryDesired
from pileus.monitor.receiver import Entry, Postgres

STREAM = "history-1"
PATIENCE_S = 60.0
STATE = {
    "vm": "vm-1",
    "name": "web",
    "row": {"execution": {"state": "running", "boots": 1}, "applications": {"shop": {"state": "failed"}}},
}
ACTION = {
    "id": "action-1", "vm": "vm-1", "do": [{"do": "restart-application", "application": "shop"}], "verdict": "do",
    "why": "", "cause": {"actor": "monitor watch", "cause": "applications.shop.state is failed", "key": "p/vm-1/shop/1"},
    "steps": [{"do": "restart-application", "state": "done"}], "state": "done",
}  # fmt: skip


@dataclass
class Rig:
    """``take`` writes as a server does; ``port`` and the rest of the history may be another's."""

    database: Database
    name: str
    names: Names = field(default_factory=Names)

    def desired(self, **changes: Any) -> HistoryDesired:
        """Return a history that leads to the database, unencrypted."""
        about = {"port": self.database.port, "host": "db.example.com", "database": self.name, "user": "postgres"}
        return HistoryDesired(**{"monitor": "watch", "password": PASSWORD, "tls": "off", **about, **changes})

    async def take(self, entries: Sequence[Entry], reach: Any = "any", **changes: Any) -> None:
        """Write entries. Raises: Transient."""
        await Postgres(self.names).take(self.desired(**changes), HistoryAssigned(reach=reach), STREAM, entries)

    async def insist(self, entries: Sequence[Entry], **changes: Any) -> None:
        """Write entries until they are taken, as the controller does."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await self.take(entries, **changes)
                except Transient:
                    await asyncio.sleep(0.05)
                else:
                    return

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Return what the customer sees."""
        return await self.database.fetch(statement, self.name)

    async def numbers(self) -> list[int]:
        """Return the entries' numbers in the order in which they were written there."""
        return [seq for (seq,) in await self.rows("SELECT seq FROM pileus_history ORDER BY ctid")]


def states(first: int, last: int, padding: int = 0) -> list[Entry]:
    """Return entries with these numbers."""
    return [
        Entry(
            number, "2026-01-02T03:04:05Z", "state", json.dumps({**STATE, "number": number, "padding": "x" * padding})
        )
        for number in range(first, last + 1)
    ]


def entry(seq: int, kind: str, body: Any) -> Entry:
    """Return one entry."""
    return Entry(seq, "2026-01-02T03:04:05.250000Z", kind, json.dumps(body))


async def until(is_so: Callable[[], Awaitable[Any]]) -> None:
    """Ask until the answer is neither nothing nor false."""
    async with asyncio.timeout(PATIENCE_S):
        while not await is_so():  # noqa: ASYNC110 - a database tells of itself only when it is asked
            await asyncio.sleep(0.01)
