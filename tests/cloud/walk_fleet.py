"""The walk's steps with nodes of a fleet manager: accounts let it in, nodes come and go, requests are sent and withdrawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pileus.kernel.clock import iso
from tests.virtual_time import clock

if TYPE_CHECKING:
    from tests.cloud.walk import Walk

NODES, REQUESTS = 2, 9
"""Names that there are of each in an account."""


class FleetSteps:
    """Steps of a walk."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk

    async def prepare(self) -> None:
        """Make the manager, and what its nodes are made of."""
        package: dict[str, Any] = {"version": "1", "image": "appliance", "vcpus": 1, "memory_mib": 64, "nics": 0}
        await self._walk.world.create("fleet.manager", "m")
        await self._walk.world.create("fleet.package", "p", manager="m", **package)

    async def node(self) -> None:
        """Let the manager in, and make a node of it."""
        account = self._walk.account()
        await self._walk.create("fleet.consent", "m", account, manager="m", nodes_max=NODES)
        await self._walk.create("fleet.node", self._walk.name("f", NODES), account, manager="m", package="p")

    async def node_goes(self) -> None:
        """Delete a node, with requests that wait for it."""
        account, name = self._walk.one("fleet.node", "f", NODES)
        await self._walk.delete("fleet.node", name, account)

    async def request(self) -> None:
        """Ask a node something, with more or less time."""
        account, name = self._walk.one("fleet.node", "f", NODES)
        deadline = iso(clock() + self._walk.random.choice((1.0, 60.0, 3600.0)))
        await self._walk.create("fleet.request", self._walk.name("r", REQUESTS), account, node=name, deadline=deadline)

    async def request_goes(self) -> None:
        """Withdraw a request, or forget one that is settled."""
        account, name = self._walk.one("fleet.request", "r", REQUESTS)
        await self._walk.delete("fleet.request", name, account)
