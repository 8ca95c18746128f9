"""Two managers of the cloud, one of an account, two accounts that consented to some of them, and their nodes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cloud.server.server_world import Caller, Reply, World
from tests.cloud.server.server_world import world as made_world

from pileus.server.wiring import admissions
from pileus.storage.image.types import ImageObserved

SOON_S = 5.0
CENTRAL, SECOND, OWN = "firewalls", "stores", "house"
ACME, UMBRELLA = "acme", "umbrella"
NODES = (("acme-1", ACME, CENTRAL), ("umbrella-1", UMBRELLA, CENTRAL), ("umbrella-2", UMBRELLA, SECOND),
         ("acme-2", ACME, OWN))  # fmt: skip
"""Name, account and manager of each node; each has a request, named as it is."""
CONSENTS = ((ACME, CENTRAL), (UMBRELLA, CENTRAL), (UMBRELLA, SECOND))


@dataclass
class Fleet:
    """Everything of one test: who may call, and the ids of what there is by kind and name."""

    world: World
    callers: dict[str, Caller] = field(default_factory=dict)
    ids: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def operator(self) -> Caller:
        """The first administrator."""
        return self.world.operator

    async def make(self, caller: Caller, kind: str, name: str, account: str = "", **desired: Any) -> str:
        """Make something and return its id."""
        made = await caller("POST", f"/v1/{kind}", {"name": name, "account": account, "desired": desired})
        assert made.status == 201, (kind, name, made.body)
        self.ids[kind, name] = made.json["id"]
        return str(made.json["id"])

    async def key(self, manager: str, account: str = "") -> Caller:
        """Make a key of a manager, as who may, and return its holder."""
        sender = self.callers[account] if account else self.operator
        wish = {"name": f"{manager}-key", "desired": {"manager": manager}}
        made = await sender("POST", "/v1/tenancy.key", wish)
        assert made.status == 201, made.body
        return self.world.caller(made.json["secret"])

    async def image(self, caller: Caller, name: str, **desired: Any) -> str:
        """Make an image that VMs can start from."""
        id = await self.make(caller, "storage.image", name, **desired)
        image = await self.world.store.get(id)
        facts = ImageObserved(state="available", virtual_size_bytes=2**20)
        await self.world.store.write(lambda tx: tx.update(image, observed=facts))
        return id

    async def names(self, caller: Caller, kind: str, query: str = "") -> list[str]:
        """Return the names of what the caller's list shows."""
        answer = await caller("GET", f"/v1/{kind}{query}")
        assert answer.status == 200, answer.body
        return sorted(item["name"] for item in answer.json["items"])

    async def withdraw(self, account: str, manager: str) -> None:
        """Delete a consent, and return once the manager knows nothing of it."""
        answer = await self.callers[account]("DELETE", f"/v1/fleet.consent/{manager}")
        assert answer.status == 202, answer.body
        account_id = (await self.world.store.get(self.ids["fleet.consent", f"{account}-{manager}"])).account_id
        await soon(self.callers[manager], "/v1/whoami", lambda said: account_id not in said.json["consents"])


async def soon(caller: Caller, path: str, wanted: Callable[[Reply], bool]) -> Reply:
    """Return the first answer that is as wanted."""
    async with asyncio.timeout(SOON_S):
        while True:
            answer = await caller("GET", path)
            if wanted(answer):
                return answer
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def fleet(folder: Path) -> AsyncIterator[Fleet]:
    """Give the fleet for the block."""
    async with made_world(folder, admissions()) as world:
        made = Fleet(world)
        for kind, name in (("infra.zone", "z"), ("infra.pod", "p"), ("infra.host", "h")):
            await made.make(world.operator, kind, name)
        for account in (ACME, UMBRELLA):
            made.callers[account] = world.caller(await world.account(account))
        await _managers(made)
        for account, manager in CONSENTS:
            id = await made.make(made.callers[account], "fleet.consent", manager, manager=manager)
            made.ids["fleet.consent", f"{account}-{manager}"] = id
        for manager in (CENTRAL, SECOND, OWN):
            await soon(made.callers[manager], "/v1/whoami", lambda said: said.status == 200)
        for name, account, manager in NODES:
            caller = made.callers[manager]
            if manager != OWN:
                await soon(caller, f"/v1/fleet.node?account={account}", lambda said: said.status == 200)
            await made.make(caller, "fleet.node", name, account, manager=manager, package=f"{manager}-package")
            await made.make(caller, "fleet.request", name, account, node=name, payload=name)
        yield made


async def _managers(made: Fleet) -> None:
    """Make the managers, their keys, and what their nodes are made of."""
    for manager, account in ((CENTRAL, ""), (SECOND, ""), (OWN, ACME)):
        await made.make(made.callers[account] if account else made.operator, "fleet.manager", manager)
        made.callers[manager] = await made.key(manager, account)
        await made.image(made.callers[manager], f"{manager}-image")
        await made.make(
            made.callers[manager], "fleet.package", f"{manager}-package", manager=manager, version="1",
            image=f"{manager}-image", role="firewall", vcpus=1, memory_mib=64, nics=0,
        )  # fmt: skip
