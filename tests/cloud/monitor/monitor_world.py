"""A cloud with a monitor and nodes that have applications."""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.cloud.world import Cloud

from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter

ACCOUNT, MANAGER, MONITOR = "acme", "software", "watch"
FAILED = {"field": "applications.*.state", "value": "failed"}
RESTART = {"do": "restart-application"}


@dataclass
class Apps:
    """The applications of nodes: what they say, and what was done to them."""

    world: Cloud
    done: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(VM, verb, application) -> how often it was asked for and done."""
    ids: set[str] = field(default_factory=set)
    stubborn: set[str] = field(default_factory=set)
    """VMs whose applications stay failed, whatever is done."""

    async def furnish(self, nodes: int = 2) -> None:
        """Make an account with a manager of its own and nodes of its package."""
        await self.world.create("tenancy.account", ACCOUNT)
        quota = {"vms": 20 + nodes, "vcpus": 40 + nodes, "volumes": 60 + nodes}
        await self.world.patch("tenancy.vdc", "main", ACCOUNT, quota=quota)
        await self.world.create("fleet.manager", MANAGER, ACCOUNT)
        await self.world.create(
            "fleet.package", "apps", ACCOUNT, manager=MANAGER, version="1", image="appliance", role="applications",
            vcpus=1, memory_mib=64, nics=0,
        )  # fmt: skip
        for number in range(nodes):
            await self.world.create("fleet.node", f"n{number}", ACCOUNT, manager=MANAGER, package="apps")
        for number in range(nodes):
            await self.world.until(functools.partial(self.world.is_ready, "fleet.node", f"n{number}", ACCOUNT))
            await self._begin(await self.node(f"n{number}"))

    async def _begin(self, node: Resource) -> None:
        vm, guests = node.assigned.vm, self.world.hosts[node.host].guests
        guests.statuses[vm] = {"role": "applications", "applications": {"web": _app("running", 0)}}

        def role(payload: bytes) -> bytes:
            asked = json.loads(payload)
            self.done[vm, asked["do"], asked["application"]] += 1
            if vm not in self.stubborn:
                known = guests.statuses[vm]["applications"][asked["application"]]
                self.say(node, asked["application"], "running", known["exits"])
            return b'{"state":"running"}'

        guests.roles[vm] = role

    def say(self, node: Resource, name: str, state: str, exits: int) -> None:
        """Let the node say so of its application, and be heard."""
        guests = self.world.hosts[node.host].guests
        vm = node.assigned.vm
        others = guests.statuses[vm]["applications"]
        guests.statuses[vm] = {"role": "applications", "applications": {**others, name: _app(state, exits)}}

    async def node(self, name: str) -> Resource:
        return await self.world.resource("fleet.node", name, ACCOUNT)

    async def watch(self, *policies: dict[str, Any], **monitor: Any) -> None:
        """Make the monitor with its policies, and wait until it watches."""
        await self.world.create("monitor.monitor", MONITOR, ACCOUNT, **monitor)
        for number, policy in enumerate(policies):
            await self.world.create("monitor.policy", f"p{number}", ACCOUNT, monitor=MONITOR, **policy)
        await self.world.until(lambda: self.world.is_ready("monitor.monitor", MONITOR, ACCOUNT))
        await self.world.until(self._all_heard)

    async def _all_heard(self) -> bool:
        rows = await self.rows()
        return bool(rows) and all(
            row.observed is not None and row.observed.execution.state != "unknown" for row in rows
        )

    async def rows(self) -> list[Resource]:
        return await self.world.store.list(Filter(kind="monitor.state"))

    async def row(self, node: Resource) -> Resource:
        return next(row for row in await self.rows() if row.assigned.vm == node.assigned.vm)

    async def actions(self) -> list[Resource]:
        return await self.world.store.list(Filter(kind="monitor.action"), limit=10_000)

    async def states(self) -> list[str]:
        return [action.observed.state for action in await self.actions() if action.observed is not None]


def _app(state: str, exits: int) -> dict[str, Any]:
    return {"state": state, "version": "1", "exits": exits, "code": "", "since": 0}
