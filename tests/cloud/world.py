"""A whole cloud in one process: real store, controllers and agents, simulated hosts, virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pileus.agent.agent import Agent
from pileus.compute.offering.types import BUILTIN as OFFERINGS
from pileus.drivers.host.mirror.fake import FakeTunnel
from pileus.infra.host.controller import wake_silent
from pileus.kernel.access import Principal, Rule
from pileus.kernel.errors import NotFound, Transient
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Loop
from pileus.kernel.outbound import Internet, Outbound
from pileus.kernel.reading import Call, ListQuery
from pileus.kernel.store import statements as sql
from pileus.kernel.store.engine import Engine
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.postgres import PostgresEngine
from pileus.kernel.store.sqlite import SqliteEngine
from pileus.kernel.store.store import Store
from pileus.kernel.surface import Surface
from pileus.kernel.transaction import Transaction
from pileus.lab.simulated import IMAGE, SimulatedHost
from pileus.monitor.receiver import Receiver
from pileus.registry import KINDS
from pileus.server.agents import Agents
from pileus.server.watching import Watching
from pileus.server.wiring import admissions, controllers
from pileus.storage.image.types import ImageObserved
from pileus.tenancy.role.types import BUILTIN as ROLES
from tests.virtual_time import clock

OPERATOR = Principal(
    user_id="operator",
    user="admin",
    account_id="",
    account="",
    role="operator",
    rules=(Rule(kinds=("*",), verbs=("get", "create", "update", "delete", "console")),),
)
GIB = 2**30


class Pipe:
    """Half of an in-process connection."""

    def __init__(self, inbox: asyncio.Queue[bytes | None], outbox: asyncio.Queue[bytes | None]) -> None:
        self._inbox, self._outbox = inbox, outbox
        self.lost = asyncio.Event()

    async def receive(self) -> bytes | None:
        if self.lost.is_set():
            return None
        return await self._inbox.get()

    async def send(self, message: bytes) -> None:
        if self.lost.is_set():
            raise Transient("the connection is closed")
        self._outbox.put_nowait(message)

    async def close(self) -> None:
        self.lost.set()
        self._outbox.put_nowait(None)
        self._inbox.put_nowait(None)


class NoFiles:
    """Images of a simulated cloud have no files."""

    def present(self, image_id: str, file: str) -> Path | None:
        return None

    def remove(self, image_id: str) -> None:
        return


@dataclass
class Server:
    """One running server."""

    store: Store
    hub: Hub
    loop: Loop
    agents: Agents
    surface: Surface
    watching: Watching
    tasks: list[asyncio.Task[Any]]
    pipes: list[Pipe]


class Cloud:
    """Starts with zone, pod and one host; ``settle`` lets time pass until nothing more is due."""

    def __init__(self, engine: Callable[[], Engine], *, seed: int = 0) -> None:
        self._engine = engine
        self.seed = seed
        self.random = random.Random(seed)
        self.servers: list[Server] = []
        self.hosts: dict[str, SimulatedHost] = {}
        self.agents: dict[str, asyncio.Task[None]] = {}
        self.cut: set[str] = set()
        """Hosts whose agents cannot reach any server."""
        self.tunnel = FakeTunnel()
        """Carries mirrored packets between hosts that have an address on it."""
        self.outbound: Outbound = Internet()
        """Where servers that start from now on send notices."""
        self.receiver: Receiver | None = None
        """Where they deliver histories; None: to customers' databases."""
        self.running: dict[str, Agent] = {}
        self.links: dict[str, Pipe] = {}
        """The agents' ends of their newest connections."""

    # servers and agents

    async def start_server(self, name: str = "server") -> Server:
        engine = self._engine()
        await engine.open()
        store = Store(engine, KINDS, clock, name)
        hub = Hub(store)
        await hub.open()
        if isinstance(engine, PostgresEngine):
            engine.on_notify = hub.notify
        loop = Loop(store, hub, controllers(store, NoFiles(), self.outbound, self.receiver), seed=self.seed)
        await loop.open()
        agents = Agents(store, hub)
        await agents.open()
        surface = Surface(store, hub, KINDS, admissions())
        server = Server(store, hub, loop, agents, surface, Watching(store, hub, agents), [], [])
        server.tasks.append(asyncio.create_task(self._watch_silence(store)))
        server.tasks.append(asyncio.create_task(self._watch_appliances(server.watching)))
        self.servers.append(server)
        return server

    async def _watch_silence(self, store: Store) -> None:
        while True:
            await asyncio.sleep(5.0)
            with contextlib.suppress(Transient):
                await wake_silent(store)

    async def _watch_appliances(self, watching: Watching) -> None:
        while True:
            with contextlib.suppress(Transient):
                await watching.look()

    async def stop_server(self, server: Server | None = None) -> None:
        """End a server (the first) as a kill would: nothing is handed over."""
        server = server or self._server
        self.servers.remove(server)
        for pipe in server.pipes:
            await pipe.close()
        for task in server.tasks:
            task.cancel()
        await asyncio.gather(*server.tasks, return_exceptions=True)
        await server.watching.kill()
        await server.agents.close()
        await server.loop.close()
        await server.hub.close()
        await server.store.engine.close()

    @property
    def _server(self) -> Server:
        if not self.servers:
            raise Transient("no server answers")
        return self.servers[0]

    @property
    def store(self) -> Store:
        return self._server.store

    async def start_agent(self, host: str) -> Agent:
        agent = await self.hosts[host].start_agent(lambda: self._connect(host), self._content)
        agent._random.seed(self.random.random())
        agent._converger._random.seed(self.random.random())
        self.running[host] = agent
        self.agents[host] = asyncio.create_task(agent.run(), name=f"agent {host}")
        return agent

    async def stop_agent(self, host: str) -> None:
        """End the agent as a kill would; its machines go on."""
        task = self.agents.pop(host)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        link = self.links.pop(host, None)
        if link is not None:
            await link.close()

    async def _content(self, id: str, part: str) -> AsyncIterator[bytes]:
        await asyncio.sleep(0.01)
        body = await self.store.content(id, part)
        if body is None:
            raise Transient("the server does not give it")
        yield body

    async def _connect(self, host: str) -> Pipe:
        await asyncio.sleep(0.01)
        if not self.servers or host in self.cut:
            raise Transient("no server answers")
        server = self.random.choice(self.servers)
        here: asyncio.Queue[bytes | None] = asyncio.Queue()
        there: asyncio.Queue[bytes | None] = asyncio.Queue()
        mine, theirs = Pipe(here, there), Pipe(there, here)
        server.pipes.append(theirs)
        server.tasks.append(asyncio.create_task(self._serve(server, host, theirs)))
        self.links[host] = mine
        return mine

    async def _serve(self, server: Server, host: str, pipe: Pipe) -> None:
        try:
            await server.agents.serve(host, pipe)
        finally:
            await pipe.close()
            if server in self.servers:
                server.pipes.remove(pipe)

    async def cut_link(self, host: str) -> None:
        """Part a host's agent from all servers until ``heal_link``."""
        self.cut.add(host)
        link = self.links.pop(host, None)
        if link is not None:
            await link.close()

    def heal_link(self, host: str) -> None:
        """Let the agent connect again."""
        self.cut.discard(host)

    # the operator's and tenants' hands

    def call(self, account: str = "", principal: Principal = OPERATOR, **more: Any) -> Call:
        return Call(principal=principal, account=account, **more)

    async def create(self, kind: str, name: str, account: str = "", **desired: Any) -> dict[str, Any]:
        body = msgspec.json.encode({"name": name, "desired": desired})
        answer = await self._server.surface.create(self.call(account), kind, body)
        result: dict[str, Any] = msgspec.json.decode(answer.body)
        return result

    async def get(self, kind: str, name: str, account: str = "") -> dict[str, Any]:
        answer = await self._server.surface.get(self.call(account), kind, name)
        result: dict[str, Any] = msgspec.json.decode(answer.body)
        return result

    async def exists(self, kind: str, name: str, account: str = "") -> bool:
        try:
            await self.get(kind, name, account)
        except NotFound:
            return False
        return True

    async def patch(self, kind: str, name: str, account: str = "", **desired: Any) -> dict[str, Any]:
        body = msgspec.json.encode({"desired": desired})
        answer = await self._server.surface.patch(self.call(account), kind, name, body)
        result: dict[str, Any] = msgspec.json.decode(answer.body)
        return result

    async def delete(self, kind: str, name: str, account: str = "") -> None:
        await self._server.surface.delete(self.call(account), kind, name)

    async def list(self, kind: str, **query: Any) -> list[dict[str, Any]]:
        call = Call(principal=OPERATOR, all_accounts=True)
        answer = await self._server.surface.list(call, kind, ListQuery(limit=1000, **query))
        items: list[dict[str, Any]] = msgspec.json.decode(answer.body)["items"]
        return items

    async def resource(self, kind: str, name: str, account: str = "") -> Resource:
        return await self.store.get((await self.get(kind, name, account))["id"])

    async def settle(self, limit_s: float = 120.0) -> None:
        """Let virtual time pass until no work is due within the next seconds and every agent has told its facts."""
        end = clock() + limit_s
        quiet = 0
        while clock() < end:
            await asyncio.sleep(0.25)
            due = await self.store.fetch(sql.WORK_DUE, now=clock() + 1.0, n=1)
            busy = bool(due) or not all(server.loop.idle for server in self.servers)
            quiet = 0 if busy else quiet + 1
            if quiet >= 4:
                return

    async def until(self, true: Callable[[], Any], limit_s: float = 120.0) -> None:
        """Let time pass until ``true`` (a coroutine function) holds; no answer counts as no."""
        end = clock() + limit_s
        while not await self._answers(true):
            assert clock() < end, f"not so within {limit_s} s"
            await asyncio.sleep(0.1)

    async def _answers(self, true: Callable[[], Any]) -> bool:
        try:
            return bool(await true())
        except Transient:
            return False

    async def is_ready(self, kind: str, name: str, account: str = "") -> bool:
        return bool((await self.get(kind, name, account))["conditions"][0]["status"] == "true")

    # building

    async def add_host(self, name: str, **sizes: Any) -> str:
        host = await self.create("infra.host", name)
        await self._start_host(host["id"], sizes)
        return str(host["id"])

    async def adopt_host(self, name: str, **sizes: Any) -> None:
        """Start an agent on a new machine for a host that was made already."""
        id = (await self.get("infra.host", name))["id"]
        await self._start_host(id, sizes)

    async def _start_host(self, id: str, sizes: dict[str, Any]) -> None:
        self.hosts[id] = SimulatedHost(clock, seed=self.seed, **sizes)
        self.hosts[id].join(self.tunnel)
        await self.start_agent(id)

    async def furnish(self, hosts: int = 1, *, cpus: int = 32, memory_mib: int = 262_144, **zone: Any) -> None:
        """Make zone, pod, hosts, offerings, roles and the image tiny."""
        await self.create("infra.zone", "local", **zone)
        await self.create("infra.pod", "local")
        for position in range(hosts):
            await self.add_host(f"host{position}", cpus=cpus, memory_mib=memory_mib)
        for kind, builtin in (("compute.offering", OFFERINGS), ("tenancy.role", ROLES)):
            for name, desired in builtin.items():
                await self.create(kind, name, **msgspec.to_builtins(desired))
        for name in ("tiny", "appliance"):
            await self.add_image(name)
        await self.settle()

    async def add_image(self, name: str, virtual_size_bytes: int = GIB, account: str = "") -> None:
        await self.create("storage.image", name, account, append="quiet")
        image = await self.resource("storage.image", name, account)
        digest = hashlib.sha256(IMAGE).hexdigest()
        facts = ImageObserved(
            state="available",
            size_bytes=len(IMAGE),
            virtual_size_bytes=virtual_size_bytes,
            sha256=digest,
            kernel_sha256=digest,
            kernel_size_bytes=len(IMAGE),
            initrd_sha256=digest,
            initrd_size_bytes=len(IMAGE),
        )

        async def available(tx: Transaction) -> None:
            await tx.update(image, observed=facts)

        await self.store.write(available)

    async def close(self) -> None:
        for host in list(self.agents):
            await self.stop_agent(host)
        while self.servers:
            await self.stop_server()


@contextlib.asynccontextmanager
async def cloud(
    hosts: int = 1, *, seed: int = 0, receiver: Receiver | None = None, **zone: Any
) -> AsyncIterator[Cloud]:
    """Give a furnished cloud on SQLite until the block ends."""
    with tempfile.TemporaryDirectory(prefix="pileus-", dir="/dev/shm") as folder:
        made = Cloud(lambda: SqliteEngine(Path(folder) / "db", commit_inline=True), seed=seed)
        made.receiver = receiver
        await made.start_server()
        try:
            await made.furnish(hosts, **zone)
            yield made
        finally:
            await made.close()


async def leftovers(world: Cloud) -> dict[str, Any]:
    """Return what hosts and tables still hold that belongs to an account; empty: nothing was left behind."""
    found: dict[str, Any] = {}
    for id, host in world.hosts.items():
        things = {
            "machines": list(host.machines.machines),
            "ports": list(host.switch.ports),
            "segments": list(host.switch.segments),
            "mirror legs": list(host.mirror.legs),
            "volumes": list(host.pool.volumes),
            "seeds": list(host.guests.seeds),
            "notes": host.notes.ids(),
            "volume notes": host.volume_notes.ids(),
            "snapshots": list(host.pool.snapshots),
            "snapshot notes": host.snapshot_notes.ids(),
            "leg notes": host.leg_notes.ids(),
        }
        found.update({f"{id}/{word}": held for word, held in things.items() if held})
    for kind in ("compute.vm", "storage.volume", "network.port", "network.segment"):
        rows = await world.store.list(Filter(kind=kind))
        if rows:
            found[kind] = [row.name for row in rows]
    return found
