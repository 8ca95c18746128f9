"""What befalls a cloud by chance, for walks that draw what happens next."""

from __future__ import annotations

import asyncio
import random

from tests.cloud.world import Cloud


class Accidents:
    """Draws what befalls agents and links."""

    def __init__(self, world: Cloud, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)

    async def kill_agent(self) -> None:
        """End an agent, which comes back at once or in a moment."""
        id = self.random.choice(sorted(self.world.agents))
        await self.world.stop_agent(id)
        await asyncio.sleep(self.random.choice([0.0, 5.0]))
        await self.world.start_agent(id)

    async def cut(self) -> None:
        """Cut a host off."""
        await self.world.cut_link(self.random.choice(sorted(self.world.hosts)))

    async def heal(self) -> None:
        """Join all hosts again that were cut off."""
        for id in list(self.world.cut):
            self.world.heal_link(id)
