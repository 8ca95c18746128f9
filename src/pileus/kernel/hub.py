"""Tells watchers what changed: one reader follows the revisions and wakes those whose scope is touched.

A watcher is told that something changed, never what to do: it reads the state itself, so a lost wake-up costs a
delay and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator

from pileus.kernel.background import for_ever
from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store

POLL_S = 1.0
"""How late a change of another server is seen when its notification is lost."""

PAGE = 1000


class Watcher:
    """An event with the revision up to which everything in the scope was announced."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        """Say that something in the scope changed."""
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for a change in the scope; False after ``timeout_s`` without one."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class Hub:
    """Wakes watchers by scope: ``("host", id)``, ``("kind", kind)`` or ``("all", "")``."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watchers: dict[tuple[str, str], set[Watcher]] = defaultdict(set)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._revision = 0

    async def open(self) -> None:
        """Start following from the newest revision."""
        rows = await self._store.fetch(sql.NEWEST)
        self._revision = rows[0][0]
        self._store.engine.on_commit = lambda revision: self._changed.set()
        self._task = for_ever(self._follow, "hub")

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def notify(self) -> None:
        """Look for changes now: another server committed some."""
        self._changed.set()

    @property
    def revision(self) -> int:
        """The newest revision that was announced."""
        return self._revision

    @contextlib.contextmanager
    def watch(self, *scopes: tuple[str, str]) -> Iterator[Watcher]:
        """Give a watcher that is woken for changes in any of the scopes, until the block ends."""
        watcher = Watcher()
        for scope in scopes:
            self._watchers[scope].add(watcher)
        try:
            yield watcher
        finally:
            for scope in scopes:
                self._watchers[scope].discard(watcher)
                if not self._watchers[scope]:
                    del self._watchers[scope]

    async def _follow(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._changed.wait()
        self._changed.clear()
        while await self._announce():
            pass

    async def _announce(self) -> bool:
        newest = (await self._store.fetch(sql.NEWEST))[0][0]
        changes = await self._store.fetch(sql.CHANGES, after=self._revision, n=PAGE)
        gone = await self._store.fetch(sql.GONE, after=self._revision, n=PAGE)
        seen = [(row[0], row[2], row[4]) for row in changes] + [(row[0], row[2], row[4]) for row in gone]
        full = [rows[-1][0] for rows in (changes, gone) if len(rows) == PAGE]
        # What was committed between the reads may show in one of them only: it is announced again.
        self._revision = max(self._revision, min([newest, *full]))
        if not seen:
            return False
        touched = {scope for _, kind, host in seen for scope in (("kind", kind), ("host", host))}
        touched.add(("all", ""))
        for scope in touched & self._watchers.keys():
            for watcher in self._watchers[scope]:
                watcher.wake()
        return bool(full)
