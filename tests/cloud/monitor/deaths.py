"""Servers that die at any of their writes: before it, or after it was committed and nobody was told."""

from __future__ import annotations

import asyncio
import functools
import random
from collections import Counter
from typing import Any

from tests.cloud.world import Cloud, Server


class Deaths:
    """Kills servers of a cloud, and starts others in their place."""

    def __init__(self, world: Cloud, seed: int) -> None:
        self.random = random.Random(seed)
        self.happened: Counter[str] = Counter()
        self._world = world
        self._left = -1
        """Writes until the next death; below zero: none is due."""
        self._dying: list[asyncio.Task[None]] = []
        for server in world.servers:
            self.follow(server)

    def arm(self, writes_max: int) -> None:
        """Let the server that does one of the next writes die there."""
        self._left = self.random.randrange(writes_max)

    async def strike(self) -> None:
        """Kill a server now if the armed death has not come, and wait until another server runs."""
        if self._left >= 0:
            self._left = -1
            self.happened["between writes"] += 1
            await self._replace(self.random.choice(self._world.servers))
        dying, self._dying = self._dying, []
        await asyncio.gather(*dying)

    def follow(self, server: Server) -> None:
        """Let a server die when its time comes."""
        write = server.store.write

        @functools.wraps(write)
        async def written(*arguments: Any, **named: Any) -> Any:
            if server not in self._world.servers:
                raise asyncio.CancelledError
            is_last = self._left == 0
            self._left = max(self._left - 1, -1)
            if is_last and self.random.random() < 0.5:
                self._end(server, "before a write")
            result = await write(*arguments, **named)
            if is_last:
                self._end(server, "after a write")
            return result

        server.store.write = written  # type: ignore[method-assign]

    def _end(self, server: Server, where: str) -> None:
        self.happened[where] += 1
        self._dying.append(asyncio.create_task(self._replace(server), name="death"))
        raise asyncio.CancelledError

    async def _replace(self, server: Server) -> None:
        await self._world.stop_server(server)
        await asyncio.sleep(self.random.choice((0.0, 0.3, 3.0, 20.0)))
        self.follow(await self._world.start_server(f"server{sum(self.happened.values())}"))
