"""A simulated cloud for mirrors: three hosts in two pods, joined by one tunnel."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from tests.cloud.world import Cloud, cloud, leftovers
from tests.virtual_time import clock

from pileus.drivers.host.mirror.fake import FakeTunnel
from pileus.drivers.host.ovs.base import Uplinks
from pileus.kernel.store.lists import Filter
from pileus.lab.simulated import SimulatedHost

HOSTS = {"a1": "10.0.1.11", "a2": "10.0.1.12", "b1": "10.0.2.11"}
IDLE_S = 20


class MirrorCloud:
    """A cloud whose hosts' mirrors reach each other."""

    def __init__(self, world: Cloud) -> None:
        self.world = world
        self.tunnel = FakeTunnel()
        self.ids: dict[str, str] = {}

    async def build(self) -> None:
        """Make pods and hosts, and two accounts."""
        world = self.world
        await world.create("infra.pod", "other")
        await world.patch("infra.host", "host0", scheduling="cordoned")
        for name, address in HOSTS.items():
            pod = "local" if name.startswith("a") else "other"
            self.ids[name] = (await world.create("infra.host", name, pod=pod))["id"]
            links = Uplinks(tunnel="tunnel0", tunnel_address=f"{address}/24", tunnel_gateway="10.0.0.1")
            host = SimulatedHost(clock, seed=world.seed, uplinks=links)
            host.join(self.tunnel)
            world.hosts[self.ids[name]] = host
            await world.start_agent(self.ids[name])
        for account in ("acme", "globex"):
            await world.create("tenancy.account", account)
        await world.settle()

    async def only(self, *hosts: str) -> None:
        """Let new VMs go to these hosts only."""
        for name in HOSTS:
            await self.world.patch("infra.host", name, scheduling="enabled" if name in hosts else "cordoned")
        await self.world.settle(10.0)

    async def vm(self, name: str, host: str, account: str = "acme", **desired: Any) -> str:
        """Run a VM on a host and return the id of its first port."""
        await self.only(host)
        await self.world.create("compute.vm", name, account, **desired)
        await self.world.until(lambda: self.world.is_ready("compute.vm", name, account))
        await self.only(*HOSTS)
        return str((await self.world.get("compute.vm", name, account))["assigned"]["ports"][0])

    async def session(self, name: str, account: str = "acme", **desired: Any) -> dict[str, Any]:
        """Make a session and wait until packets are copied."""
        await self.world.create("mirror.session", name, account, **desired)
        await self.world.until(lambda: self.runs(name, account))
        return await self.world.get("mirror.session", name, account)

    async def runs(self, name: str, account: str = "acme") -> bool:
        """Tell whether the session copies packets."""
        found = await self.world.get("mirror.session", name, account)
        return bool(found["observed"] and found["observed"]["state"] == "running")

    async def counts(self, name: str, account: str = "acme") -> dict[str, int]:
        """Return the session's counts."""
        counts: dict[str, int] = (await self.world.get("mirror.session", name, account))["observed"]["counts"]
        return counts

    def host_of(self, port: str) -> SimulatedHost:
        """Return the host that has the port."""
        return next(host for host in self.world.hosts.values() if port in host.switch.ports)

    def legs(self) -> list[str]:
        """Return the ids of all legs on all hosts."""
        return [id for host in self.world.hosts.values() for id in host.mirror.legs]

    async def is_tidy(self) -> bool:
        """Tell whether no leg, decapsulator or account of the platform is left."""
        kinds = ("mirror.leg", "mirror.decapsulator", "fleet.node")
        rows = [row for kind in kinds for row in await self.world.store.list(Filter(kind=kind))]
        return not rows and not self.legs() and not await self.world.exists("tenancy.account", "platform")


@contextlib.asynccontextmanager
async def mirror_cloud(*, seed: int = 0, **zone: Any) -> AsyncIterator[MirrorCloud]:
    """Give such a cloud; at the end nothing of it may be left on hosts that has no owner."""
    async with cloud(1, seed=seed, decapsulator_idle_s=IDLE_S, **zone) as world:
        made = MirrorCloud(world)
        await made.build()
        yield made


__all__ = ["HOSTS", "IDLE_S", "MirrorCloud", "leftovers", "mirror_cloud"]
