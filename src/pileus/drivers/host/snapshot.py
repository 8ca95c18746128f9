"""Shares one look at the host among many resources that want it at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Snapshot(Generic[T]):
    """Remembers what ``look`` returned for ``max_age_s``, unless told that the world was changed."""

    def __init__(self, look: Callable[[], Awaitable[T]], max_age_s: float = 0.1) -> None:
        self._look = look
        self._max_age_s = max_age_s
        self._lock = asyncio.Lock()
        self._seen: T | None = None
        self._seen_at = float("-inf")
        self._changes = 0

    async def get(self) -> T:
        """Return what is, at most ``max_age_s`` old and never older than the last ``changed``."""
        changes = self._changes
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if self._seen is None or now - self._seen_at > self._max_age_s:
                self._seen = await self._look()
                self._seen_at = now if changes == self._changes else float("-inf")
            return self._seen

    def changed(self) -> None:
        """Look again at the next ``get``: something was done."""
        self._changes += 1
        self._seen_at = float("-inf")
