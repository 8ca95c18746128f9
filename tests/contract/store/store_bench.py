"""A fresh database with any number of stores on it, and a kind that exists only here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from pileus.kernel.clock import Clock
from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.kind import Kind, Registry, Resource
from pileus.kernel.store.engine import Engine
from pileus.kernel.store.postgres import PostgresEngine
from pileus.kernel.store.sqlite import SqliteEngine
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

T = TypeVar("T")
PATIENCE_S = 60.0
"""Longer than anything here takes on a busy machine."""


class ThingDesired(Struct, frozen=True, kw_only=True):
    """A number."""

    size: int = 1


class ThingAssigned(Struct, frozen=True, kw_only=True):
    """A place."""

    host: str = ""


def _ready(resource: Resource) -> Condition:
    return ready() if resource.desired.size < 100 else unready("TooLarge", "it is too large")


THING = Kind(
    name="test.thing",
    summary="A thing.",
    desired=ThingDesired,
    assigned=ThingAssigned,
    observed=ThingDesired,
    ready=_ready,
    host_bound=True,
)
REGISTRY = Registry((THING,))


class ManualClock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """One database; ``shared``: several servers may use it at once."""

    def __init__(self, *, path: Path | None = None, url: str = "") -> None:
        self.path, self.url = path, url
        self.shared = bool(url)
        self.clock = ManualClock()

    def engine(self) -> Engine:
        """Return a new engine on the database."""
        return PostgresEngine(self.url) if self.path is None else SqliteEngine(self.path)

    @contextlib.asynccontextmanager
    async def store(self, server: str = "one", clock: Clock | None = None) -> AsyncIterator[Store]:
        """Give an open store until the block ends."""
        engine = self.engine()
        await engine.open()
        try:
            yield Store(engine, REGISTRY, clock or self.clock, server)
        finally:
            await engine.close()

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a test's coroutine in real time."""

        async def limited() -> T:
            async with asyncio.timeout(PATIENCE_S):
                return await main()

        return asyncio.run(limited())


def thing(name: str, *, size: int = 1, host: str = "", owner: str = "", id: str = "", manager: str = "") -> Resource:
    """Return a thing that is not stored yet."""
    return Resource(
        id=id,
        kind=THING.name,
        name=name,
        owner=owner,
        manager=manager,
        desired=ThingDesired(size=size),
        assigned=ThingAssigned(host=host) if host else None,
    )


async def make(store: Store, name: str, **more: Any) -> Resource:
    """Store a thing."""

    async def work(tx: Transaction) -> Resource:
        return await tx.create(thing(name, **more))

    return await store.write(work)
