"""A server in one process: real store, hub, loop, surface and application; agents are stand-ins."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import msgspec

from pileus.kernel.admission import Admission
from pileus.kernel.errors import Conflict, Transient
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Loop
from pileus.kernel.store.sqlite import SqliteEngine
from pileus.kernel.store.store import Store
from pileus.kernel.surface import Surface
from pileus.registry import KINDS
from pileus.server import app
from pileus.server.auth import Auth, ensure_operator
from pileus.server.ca import Authority, open_authority
from pileus.server.edge import Edge
from pileus.server.images import ImageStore
from pileus.server.joining import Joining
from pileus.server.links import Channel, Connection
from pileus.server.parts import Parts
from pileus.server.run import Wiring
from pileus.server.tls import CERTIFICATE, PeerCertificate
from pileus.tenancy.key.api import KeyAdmission
from pileus.tenancy.user.api import RoleAdmission, UserAdmission

LIMIT_S = 20.0
ADMISSIONS: dict[str, Admission] = {
    "tenancy.key": KeyAdmission(),
    "tenancy.user": UserAdmission(),
    "tenancy.role": RoleAdmission(),
}


@dataclass
class Reply:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body decoded."""
        return msgspec.json.decode(self.body)

    @property
    def code(self) -> str:
        """The problem's code."""
        return str(self.json["code"])


class Console:
    """A console that answers in capitals."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._output: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self) -> bytes:
        """Return the next output."""
        return await self._output.get()

    async def write(self, content: bytes) -> None:
        """Answer; ``bye`` ends it."""
        self._output.put_nowait(b"" if content == b"bye" else content.upper())

    async def close(self) -> None:
        """Note the end."""
        self.closed.set()


class StandInAgents:
    """Agents that echo their frames, and hosts that have logs and consoles."""

    def __init__(self) -> None:
        self.connected: dict[str, int] = {}
        self.logs: dict[str, bytes] = {}
        self.listening: dict[tuple[str, int], Callable[[], Connection]] = {}
        self.disks: dict[str, Connection] = {}
        self.consoles: list[Console] = []
        self.changed = asyncio.Event()

    async def serve(self, host_id: str, channel: Channel) -> None:
        """Echo until the connection closes."""
        self.connected[host_id] = self.connected.get(host_id, 0) + 1
        self.changed.set()
        try:
            while (frame := await channel.receive()) is not None:
                await channel.send(frame)
        finally:
            self.connected[host_id] -= 1
            self.changed.set()

    async def call(self, host_id: str, verb: str, id: str, arguments: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """Yield the end of a log."""
        if id not in self.logs:
            raise Transient(f"host {host_id} is not connected")
        assert verb == "log"
        tail = self.logs[id][-int(arguments["tail_bytes"]) :]
        for start in range(0, len(tail), 1000):
            yield tail[start : start + 1000]

    async def console(self, host_id: str, vm_id: str) -> Console:
        """Open a console."""
        self.consoles.append(Console())
        return self.consoles[-1]

    async def connect(self, host_id: str, appliance: str, address: str, port: int) -> Connection:
        """Connect to what listens at the address."""
        if (address, port) not in self.listening:
            raise Conflict(f"{address} port {port} refused the connection", code="connect-refused")
        return self.listening[address, port]()

    async def disk(self, host_id: str, volume: str) -> Connection:
        """Send what a volume holds."""
        if volume not in self.disks:
            raise Transient(f"volume {volume} is not in the pool", code="host-refused")
        return self.disks[volume]


class TestClock:
    """Unix seconds that a test can move."""

    __test__ = False

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Caller:
    """Sends requests to an application in this process, as somebody."""

    def __init__(self, application: Edge, key: str = "", certificate: PeerCertificate | None = None) -> None:
        self._application = application
        self._key = key
        self._certificate = certificate

    async def __call__(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Return the whole answer. ``body``: bytes as they are, parts of it as a list, anything else as JSON."""
        parts = body if isinstance(body, list) else [body if isinstance(body, bytes) else _json(body)]
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async with asyncio.timeout(LIMIT_S):
            await self._application(self.scope(method, path, headers or {}), _body(parts), send)
        return reply(sent)

    @contextlib.asynccontextmanager
    async def stream(self, path: str, headers: Mapping[str, str] | None = None) -> AsyncIterator[Stream]:
        """Open a long answer for the block."""
        stream = Stream()
        work = self._application(self.scope("GET", path, headers or {}), stream.receive, stream.send)
        task = asyncio.create_task(_whole(work))
        task.add_done_callback(lambda _: stream.messages.put_nowait(None))
        try:
            yield stream
        finally:
            stream.left.set()
            await task

    async def websocket(self, path: str) -> Reply:
        """Return the refusal of a WebSocket."""
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append({**message, "type": message["type"].removeprefix("websocket.")})

        scope = self.scope("GET", path, {})
        extra = {"type": "websocket", "subprotocols": [], "extensions": {"websocket.http.response": {}}}
        async with asyncio.timeout(LIMIT_S):
            await self._application(scope | extra, receive, send)
        return reply(sent)

    def scope(self, method: str, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
        """Return the ASGI scope of a request."""
        parts = urlsplit(path)
        given = {"host": "127.0.0.1:7443", **({"authorization": f"Bearer {self._key}"} if self._key else {}), **headers}
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "https",
            "path": unquote(parts.path),
            "raw_path": quote(parts.path, safe="/%").encode(),
            "query_string": parts.query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
            "client": ("192.0.2.7", 4711),
            "server": ("127.0.0.1", 7443),
        }
        return scope | ({CERTIFICATE: self._certificate} if self._certificate else {})


class Stream:
    """A long answer, message by message."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.left = asyncio.Event()
        self._text = ""

    async def receive(self) -> dict[str, Any]:
        """Return the caller's going, once it goes."""
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """Take a message of the answer."""
        self.messages.put_nowait(message)

    async def event(self) -> tuple[str, dict[str, Any]] | None:
        """Return the next server-sent event as (name, JSON); None at the end of the stream."""
        while "\n\n" not in self._text:
            async with asyncio.timeout(LIMIT_S):
                message = await self.messages.get()
            if message is None or (message["type"] == "http.response.body" and not message.get("more_body")):
                return None
            self._text += message.get("body", b"").decode()
        record, _, self._text = self._text.partition("\n\n")
        lines = dict(line.split(": ", 1) for line in record.split("\n") if not line.startswith(":"))
        if not lines:
            return await self.event()
        return lines["event"], msgspec.json.decode(lines["data"])


@dataclass
class World:
    """Everything of one test."""

    store: Store
    hub: Hub
    parts: Parts
    authority: Authority
    agents: StandInAgents
    clock: TestClock
    operator_key: str
    application: Edge
    uploads: list[tuple[str, str, str, int]] = field(default_factory=list)
    keys_made: int = 0

    @property
    def operator(self) -> Caller:
        """The first administrator."""
        return self.caller(self.operator_key)

    def caller(self, key: str = "", certificate: PeerCertificate | None = None) -> Caller:
        """Return somebody with this key; nobody without."""
        return Caller(self.application, key, certificate)

    async def account(self, name: str) -> str:
        """Make an account with an owner; return the owner's key."""
        made = await self.operator("POST", "/v1/tenancy.account", {"name": name})
        assert made.status == 201, made.body
        return await self.user(name, "boss", "owner")

    async def user(self, account: str, name: str, role: str, **key: str) -> str:
        """Make a user (of the cluster when ``account`` is empty) with a key; return the key."""
        wish = {"name": name, "account": account, "desired": {"role": role}}
        made = await self.operator("POST", "/v1/tenancy.user", wish)
        assert made.status == 201, made.body
        return str((await self.key(account, name, **key)).json["secret"])

    async def key(self, account: str, user: str, **desired: str) -> Reply:
        """Make one more key of a user."""
        self.keys_made += 1
        wish = {"name": f"{user}-{self.keys_made}", "account": account, "desired": {"user": user, **desired}}
        made = await self.operator("POST", "/v1/tenancy.key", wish)
        assert made.status == 201, made.body
        return made

    async def put(self, kind: str, name: str, desired: Any, **columns: Any) -> Resource:
        """Write a resource as a controller would, past admission."""
        resource = Resource(id="", kind=kind, name=name, desired=desired, **columns)
        return await self.store.write(lambda tx: tx.create(resource))


@contextlib.asynccontextmanager
async def world(folder: Path, admissions: Mapping[str, Admission] = ADMISSIONS) -> AsyncIterator[World]:
    """A fresh cluster for the block."""
    clock = TestClock()
    store = Store(SqliteEngine(folder / "pileus.db"), KINDS, clock, "one")
    await store.engine.open()
    hub, agents = Hub(store), StandInAgents()
    await hub.open()
    auth, loop = Auth(store, hub), Loop(store, hub, {}, seed=1)
    await auth.open()
    await loop.open()
    key = await ensure_operator(store)
    assert key is not None
    authority = await open_authority(store)
    images = ImageStore(folder / "images", free_bytes_min=0)
    images.open()
    uploads: list[tuple[str, str, str, int]] = []

    async def uploaded(image: Resource, part: str, sha256: str, size_bytes: int) -> None:
        uploads.append((image.id, part, sha256, size_bytes))

    parts = Parts(
        store=store,
        hub=hub,
        registry=KINDS,
        surface=Surface(store, hub, KINDS, admissions),
        auth=auth,
        joining=Joining(store, authority),
        images=images,
        agents=agents,
        uploaded=uploaded,
        image_bytes_max=1_000_000,
    )
    try:
        yield World(store, hub, parts, authority, agents, clock, key, app.build(parts), uploads)
    finally:
        parts.streams.close()
        await loop.close()
        await auth.close()
        await hub.close()
        await store.engine.close()


def wiring(agents: StandInAgents) -> Wiring:
    """What ``serve`` needs, with stand-in agents."""

    @contextlib.asynccontextmanager
    async def stand_in(store: Store, hub: Hub) -> AsyncIterator[StandInAgents]:
        yield agents

    async def uploaded(image: Resource, part: str, sha256: str, size_bytes: int) -> None:
        return None

    return Wiring(
        admissions=ADMISSIONS,
        controllers=lambda store, images: {},
        agents=stand_in,
        uploaded=lambda store, images: uploaded,
    )


def reply(sent: list[dict[str, Any]]) -> Reply:
    """Return the answer that these ASGI messages are."""
    start = next(message for message in sent if message["type"] == "http.response.start")
    assert sent[-1]["type"] == "http.response.body"
    assert not sent[-1].get("more_body")
    body = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
    return Reply(start["status"], {name.decode(): value.decode() for name, value in start["headers"]}, body)


def _json(body: Any) -> bytes:
    return b"" if body is None else msgspec.json.encode(body)


def _body(parts: list[bytes]) -> Any:
    left = list(parts)
    over = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not left:
            await over.wait()
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    return receive


async def _whole(work: Any) -> None:
    await work
