"""Connections to ports of VMs over a WebSocket: who may, what is refused before it opens, and what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.cloud.server.server_rig import Rig, refusal_of, running
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from pileus.compute.vm.types import VmAppliance, VmAssigned, VmDesired, VmObserved
from pileus.fleet.node.types import NodeAssigned, NodeDesired
from pileus.gateway.router.types import RouterAssigned, RouterDesired, RouterObserved
from pileus.kernel.flow import WINDOW_BYTES
from pileus.kernel.kind import Resource
from pileus.network.network.types import NetworkAssigned, NetworkDesired, NetworkObserved
from pileus.network.port.types import PortAssigned, PortDesired

pytestmark = pytest.mark.anyio

ADDRESS = "10.1.1.10"
PLACE: dict[str, Any] = {"zone": "z", "vdc": "v"}
SIZE: dict[str, Any] = {"vcpus": 1, "memory_mib": 128, "disk_gib": 1}


class Service:
    """A service that answers in capitals, and ends when the caller does; ``stuck``: it reads nothing."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.stuck = False
        self.done = False
        self._output: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self) -> bytes:
        return await self._output.get()

    async def write(self, content: bytes, /) -> None:
        if self.stuck:
            await asyncio.Event().wait()
        self._output.put_nowait(content.upper())

    async def finish(self) -> None:
        self.done = True
        self._output.put_nowait(b"")

    async def close(self) -> None:
        self.closed.set()


class Site:
    """A server with an account and the VM web, whose network has a router; a service on its port 80."""

    def __init__(self, rig: Rig, keys: dict[str, str]) -> None:
        self.rig, self.keys = rig, keys
        self.services: list[Service] = []
        rig.agents.listening[ADDRESS, 80] = self._accept

    def _accept(self) -> Service:
        self.services.append(Service())
        return self.services[-1]

    def connect(self, query: str = "port=80", *, who: str = "owner", vm: str = "web", word: str = "connect") -> connect:
        place = "&account=acme" if who == "operator" else ""
        return connect(
            f"wss://127.0.0.1:{self.rig.started.port}/v1/compute.vm/{vm}/{word}?{query}{place}",
            ssl=self.rig.trust(),
            additional_headers={"authorization": f"Bearer {self.keys[who]}"},
            proxy=None,
        )

    async def refusal(self, *arguments: Any, **named: Any) -> tuple[int, str, str]:
        """Return status, code and message of a connection that is not made."""
        return await refusal_of(self.connect(*arguments, **named))

    async def change(self, kind: str, name: str, **sections: Any) -> None:
        async def write(tx: Any) -> None:
            account = await tx.find("tenancy.account", "", "acme")
            await tx.update(await tx.find(kind, account.id, name), **sections)

        await self.rig.started.parts.store.write(write)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running(tmp_path) as rig:
        account = (await rig("POST", "/v1/tenancy.account", {"name": "acme"})).json["id"]
        keys = {"operator": rig.key}
        for role in ("owner", "reader"):
            user = {"name": role, "account": "acme", "desired": {"role": role}}
            assert (await rig("POST", "/v1/tenancy.user", user)).status == 201
            key = {"name": role, "account": "acme", "desired": {"user": role}}
            keys[role] = (await rig("POST", "/v1/tenancy.key", key)).json["secret"]
        await _furnish(rig, account)
        yield Site(rig, keys)


async def _furnish(rig: Rig, account: str) -> None:
    host = await rig.host("h1")

    async def write(tx: Any) -> None:
        async def make(kind: str, name: str, **sections: Any) -> Any:
            return await tx.create(
                Resource(id="", kind=kind, name=name, account_id=account, account="acme", owner=account, **sections)
            )

        node = await make(
            "fleet.node",
            "node",
            desired=NodeDesired(manager="routers", vdc="v"),
            assigned=NodeAssigned(**PLACE, vm="appliance", host=host),
        )
        router = await make(
            "gateway.router",
            "router",
            desired=RouterDesired(**PLACE),
            assigned=RouterAssigned(**PLACE),
            observed=RouterObserved(state="ready", active_node=node.id),
        )
        net = await make(
            "network.network",
            "default",
            desired=NetworkDesired(),
            assigned=NetworkAssigned(**PLACE, gateway="10.1.1.1", router="single"),
            observed=NetworkObserved(state="served", router=router.id),
        )
        port = await make(
            "network.port",
            "port",
            desired=PortDesired(),
            assigned=PortAssigned(
                **PLACE, network=net.id, mac="02:50:00:00:00:01", address=ADDRESS, prefix_length=24, gateway="", vlan=1
            ),
        )
        for name, ports, appliance in (
            ("web", (port.id,), None),
            ("router-a", (), VmAppliance(channel="serial", role="router")),
        ):
            await make(
                "compute.vm",
                name,
                desired=VmDesired(appliance=appliance),
                assigned=VmAssigned(**PLACE, **SIZE, host=host, ports=ports),
                observed=VmObserved(power="running"),
            )

    await rig.started.parts.store.write(write)


async def _all(socket: ClientConnection) -> None:
    async with asyncio.timeout(5):
        while True:
            await socket.recv()


async def _say(socket: ClientConnection, content: bytes) -> None:
    await socket.send(str(WINDOW_BYTES))
    assert await socket.recv() == str(WINDOW_BYTES)
    await socket.send(content)


async def test_bytes_go_both_ways_each_direction_ends_and_it_is_on_record(site: Site) -> None:
    async with site.connect() as socket:
        await _say(socket, b"abc")
        assert await socket.recv() == b"ABC"
        await socket.send(b"")
        assert await socket.recv() == b""
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1000
    async with asyncio.timeout(5):
        await site.services[0].closed.wait()
    entries = (await site.rig("GET", "/v1/audit?account=acme")).json["items"]
    assert any((entry["verb"], entry["actor"], entry["name"]) == ("connect", "owner", "web") for entry in entries)


async def test_nothing_is_sent_before_the_caller_takes_it(site: Site) -> None:
    async with site.connect() as socket:
        assert await socket.recv() == str(WINDOW_BYTES)
        await socket.send(b"abcdef")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await socket.recv()
        await socket.send("4")
        assert await socket.recv() == b"ABCD"
        await socket.send("100")
        assert await socket.recv() == b"EF"


@pytest.mark.parametrize("nonsense", ["x", "-1", "", "9" * 11, "٣", b"x" * (WINDOW_BYTES + 1)])
async def test_a_caller_that_does_not_keep_the_rules_is_left(site: Site, nonsense: str | bytes) -> None:
    async with site.connect() as socket:
        await socket.send(nonsense)
        with pytest.raises(ConnectionClosed):
            await _all(socket)
        assert socket.close_code == 1011
    async with asyncio.timeout(5):
        await site.services[0].closed.wait()


async def test_a_caller_that_goes_ends_it_at_the_host_although_the_vm_reads_nothing(site: Site) -> None:
    async with site.connect() as socket:
        site.services[0].stuck = True
        await _say(socket, b"abc")
    async with asyncio.timeout(5):
        await site.services[0].closed.wait()


@pytest.mark.parametrize("change", [{"state": "disabled"}, {"role": "reader"}])
async def test_it_ends_within_five_seconds_of_its_user_losing_the_right(site: Site, change: Any) -> None:
    async with site.connect() as socket:
        assert await socket.recv() == str(WINDOW_BYTES)
        await site.rig("PATCH", "/v1/tenancy.user/owner?account=acme", {"desired": change})
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(5):
                await socket.recv()
        assert (socket.close_code, socket.close_reason) == (
            1008,
            "what you may do has changed; connect again if you may",
        )


async def test_it_ends_when_the_vm_is_stopped(site: Site) -> None:
    async with site.connect() as socket:
        assert await socket.recv() == str(WINDOW_BYTES)
        await site.change("compute.vm", "web", observed=VmObserved(power="stopped"))
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(10):
                await socket.recv()
        assert socket.close_reason == "vm web was stopped"


async def test_what_is_refused_is_refused_before_it_opens(site: Site) -> None:
    assert (await site.refusal(who="reader"))[:2] == (403, "denied")
    for query in ("", "port=0", "port=65536", "port=x"):
        assert (await site.refusal(query))[:2] == (400, "invalid"), query
    assert (await site.refusal("prot=80"))[:2] == (400, "unknown-parameter")
    assert (await site.refusal(vm="none"))[:2] == (404, "not-found")
    assert await site.refusal("port=81") == (
        409,
        "connect-refused",
        "vm web does not answer: 10.1.1.10 port 81 refused the connection; does something listen on port 81?",
    )
    assert (await site.refusal("port=80&network=dmz"))[:2] == (409, "no-nic")
    assert not site.services


async def test_each_missing_part_of_the_router_is_named(site: Site) -> None:
    changes: list[tuple[str, str, Any, tuple[int, str, str]]] = [
        (
            "gateway.router",
            "router",
            RouterObserved(state="degraded", message="no node answers"),
            (503, "router-not-ready", "the router of network default cannot be used now: no node answers; try again"),
        ),
        (
            "network.network",
            "default",
            NetworkObserved(state="waiting", router="", message="its router starts"),
            (503, "router-not-ready", "network default is not served yet: its router starts"),
        ),
        (
            "compute.vm",
            "web",
            VmObserved(power="stopped"),
            (409, "not-running", "vm web is stopped; `pileus start vm web` starts it"),
        ),
    ]
    for kind, name, observed, said in changes:
        await site.change(kind, name, observed=observed)
        assert await site.refusal() == said
    assert await site.refusal(word="console", query="") == changes[-1][3]


@pytest.mark.parametrize("word", ["console", "connect"])
async def test_an_appliance_is_its_operators_only(site: Site, word: str) -> None:
    query = "port=22" if word == "connect" else ""
    status, code, message = await site.refusal(query, vm="router-a", word=word)
    assert (status, code) == (403, "denied")
    assert message == "vm router-a is an appliance of the cloud; only its operator may use its console and log"
    if word == "console":
        async with site.connect("", who="operator", vm="router-a", word=word) as socket:
            await socket.send(b"ls")
            assert await socket.recv() == b"LS"
    else:
        assert (await site.refusal(query, who="operator", vm="router-a"))[1] == "no-nic"
    headers = {"authorization": f"Bearer {site.keys['owner']}"}
    assert (await site.rig("GET", "/v1/compute.vm/router-a/log", headers=headers)).status == 403
