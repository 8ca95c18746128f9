"""Guests without machines, for tests and simulated hosts: seeds and scripted consoles in memory.

What outlives the agent lives in a ``GuestWorld``, so that a new ``FakeGuest`` over it is an agent that started again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct, field

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import (
    PAYLOAD_BYTES_MAX,
    ChannelForm,
    Console,
    Document,
    GuestAnswer,
    GuestRequest,
    NodeFact,
    Seed,
    Stream,
)
from pileus.drivers.host.guest.fake_node import FakeNode, echo
from pileus.drivers.host.guest.qga_allowed import Allowed
from pileus.drivers.host.guest.seed import seed_files
from pileus.node.document import document_hash


def _always(machine: str) -> bool:
    return True


def _never(machine: str) -> bool:
    return False


def _nothing(document: Document) -> dict[str, Any]:
    return {}


def _first(machine: str) -> int:
    return 1


class GuestWorld(Struct, kw_only=True):
    """Seeds, consoles and logs of a host's guests. ``running`` says whether a machine runs, ``boot_of`` since which boot."""

    running: Callable[[str], bool] = _always
    boot_of: Callable[[str], int] = _first
    seeds: dict[str, Seed] = field(default_factory=dict)
    logs: dict[str, bytes] = field(default_factory=dict)
    older: dict[str, bytes] = field(default_factory=dict)
    typed: dict[str, bytes] = field(default_factory=dict)
    """What was typed to each console."""
    consoles: dict[str, FakeConsole] = field(default_factory=dict)
    answers: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    """For each machine: what its console prints when that line was typed."""
    documents: dict[str, Document] = field(default_factory=dict)
    """What each node runs; a node keeps it over restarts of its machine."""
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each node's role says of itself."""
    status_of: Callable[[Document], dict[str, Any]] = _nothing
    """What a role says of itself that runs this document, besides."""
    refusals: dict[str, str] = field(default_factory=dict)
    """Why each node refuses every document."""
    quarantined: dict[str, str] = field(default_factory=dict)
    """What each node did that was too much."""
    allowed: dict[str, Allowed | None] = field(default_factory=dict)
    """What may be done in each foreign guest, as its channel was attached last."""
    clock: Callable[[], float] = time.time
    nodes: dict[str, FakeNode] = field(default_factory=dict)
    """Each node's disk; hosts between which machines move share it."""
    roles: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    """What each node's role answers to a payload (may raise RoleRefused); without one it is an echo."""
    cut: Callable[[str], bool] = _never
    """Whether the machine's node ends now and begins anew: asked at each step of a request."""
    silent: dict[str, float] = field(default_factory=dict)
    """Nodes that say nothing although their machine runs, and since when (Unix seconds)."""
    unpolled: set[str] = field(default_factory=set)
    """Nodes that answer no poll, as those of a version that knows none."""
    configured: int = 0
    """How many documents were taken."""
    listening: dict[tuple[str, int], Callable[[], Stream]] = field(default_factory=dict)
    """What answers at an address and port of the nodes' networks, for each connection."""

    def print(self, machine: str, text: bytes) -> None:
        """Let the guest print ``text`` on its console."""
        self.logs[machine] = self.logs.get(machine, b"") + text
        if machine in self.consoles:
            self.consoles[machine].arrive(text)

    def boot(self, machine: str, uptime_s: float = 2.5) -> None:
        """Print what the tiny image prints when it is up and has run its user data."""
        seed = self.seeds.get(machine)
        self.print(machine, f"PILEUS-READY {seed.hostname if seed else 'tiny'} {uptime_s:.2f}\r\n".encode())
        if seed is not None and seed.user_data:
            self.print(machine, b"\r\nPILEUS-USER-DATA exit 0\r\n")

    def end(self, machine: str) -> None:
        """The machine's process is gone: its console ends."""
        console = self.consoles.pop(machine, None)
        if console is not None:
            console.finish()


class FakeConsole:
    """An open console of a fake guest."""

    def __init__(self, world: GuestWorld, machine: str) -> None:
        self._world = world
        self._machine = machine
        self._unread = b""
        self._open = True
        self._arrived = asyncio.Event()

    async def read(self) -> bytes:
        """Return what was printed since; waits for at least a byte. Empty when the console is gone."""
        await self._arrived.wait()
        found, self._unread = self._unread, b""
        if self._open:
            self._arrived.clear()
        return found

    async def write(self, text: bytes) -> None:
        """Type ``text``; a scripted answer comes at once. Raises DriverError (NoConsole) when the console is gone."""
        if not self._open:
            raise DriverError("NoConsole", "the serial console is closed; open it again")
        world, machine = self._world, self._machine
        world.typed[machine] = world.typed.get(machine, b"") + text
        for line in text.splitlines():
            answer = world.answers.get(machine, {}).get(line)
            if answer is not None:
                world.print(machine, answer)

    async def close(self) -> None:
        """Let go of the console."""
        if self._world.consoles.get(self._machine) is self:
            del self._world.consoles[self._machine]
        self.finish()

    def arrive(self, text: bytes) -> None:
        """The guest printed ``text``."""
        self._unread += text
        self._arrived.set()

    def finish(self) -> None:
        """The console is gone; what arrived before can still be read."""
        self._open = False
        self._arrived.set()


class FakeGuest:
    """The contract over a ``GuestWorld``, with the same checks of what a seed may say."""

    def __init__(self, world: GuestWorld) -> None:
        self.world = world
        self._attached: set[str] = set()
        self._heard_at: dict[str, float] = {}
        self._listeners: list[Callable[[str], None]] = []

    async def attach(self, machine: str, form: ChannelForm, port: str = "", allowed: Allowed | None = None) -> None:
        """Hold the machine's backchannel."""
        self._attached.add(machine)
        self.world.allowed[machine] = allowed
        self._tell(machine)

    async def detach(self, machine: str) -> None:
        """Let go of it."""
        self._attached.discard(machine)

    async def nodes(self) -> dict[str, NodeFact]:
        """Return what is known of the attached machines' nodes; one whose machine does not run is silent."""
        return {machine: self._fact(machine) for machine in self._attached}

    def _fact(self, machine: str) -> NodeFact:
        world = self.world
        if not world.running(machine) or machine in world.silent:
            return NodeFact(machine=machine, state="silent")
        if machine in world.quarantined:
            return NodeFact(machine=machine, state="quarantined", refused=world.quarantined[machine])
        self._heard_at[machine] = world.clock()
        return NodeFact(
            machine=machine,
            state="ready",
            hash=document_hash(world.documents[machine]) if machine in world.documents else "",
            version="fake",
            boot_id=f"{machine}-{world.boot_of(machine)}",
            refused=world.refusals.get(machine, ""),
            status={**world.status_of(world.documents.get(machine, {})), **world.statuses.get(machine, {})},
        )

    async def configure(self, machine: str, document: Document) -> None:
        """Let the node take the document. Raises: DriverError (NodeSilent, NodeRefused)."""
        self._check(machine)
        if machine in self.world.refusals:
            raise DriverError("NodeRefused", self.world.refusals[machine])
        self.world.documents[machine] = json.loads(json.dumps(document))
        self.world.configured += 1
        self._tell(machine)

    async def request(self, machine: str, request: GuestRequest) -> GuestAnswer:
        """Let the node do ``request`` once. Raises: DriverError (NodeSilent, BadRequest)."""
        self._check(machine)
        if len(request.payload) > PAYLOAD_BYTES_MAX:
            raise DriverError("BadRequest", f"a request has at most {PAYLOAD_BYTES_MAX} bytes")
        world = self.world
        node = world.nodes.setdefault(machine, FakeNode())
        for answer in node.steps(request, world.roles.get(machine, echo), world.clock()):
            if answer is not None:
                return answer
            if world.cut(machine):
                break
        raise DriverError("NodeSilent", f"the node of machine {machine} ended in the middle of a request")

    def _check(self, machine: str) -> None:
        if not self._lives(machine):
            raise DriverError("NodeSilent", f"the node of machine {machine} does not answer")

    def _lives(self, machine: str) -> bool:
        world = self.world
        is_mute = machine in world.quarantined or machine in world.silent
        return machine in self._attached and world.running(machine) and not is_mute

    async def poll(self, machine: str, timeout_s: float) -> NodeFact:
        """Return what the node says. Raises: DriverError (NodeSilent)."""
        if machine in self.world.silent:
            await asyncio.sleep(timeout_s)
        self._check(machine)
        if machine in self.world.unpolled:
            raise DriverError("NodeSilent", f"the node of machine {machine} does not answer")
        return self._fact(machine)

    def heard_s(self, machine: str) -> float:
        """Return how long ago the node was seen alive; 0.0 for one that could answer now."""
        if machine not in self._attached:
            return -1.0
        now = self.world.clock()
        if self._lives(machine):
            self._heard_at[machine] = now
        heard_at = self.world.silent.get(machine, self._heard_at.get(machine))
        return now - heard_at if heard_at is not None else -1.0

    async def connect(self, machine: str, address: str, port: int, timeout_s: float = 10.0) -> Stream:
        """Return what ``listening`` makes. Raises: DriverError (NodeSilent, ConnectRefused)."""
        self._check(machine)
        if (address, port) not in self.world.listening:
            raise DriverError("ConnectRefused", f"{address} port {port} refused the connection")
        return self.world.listening[address, port]()

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call ``listener`` with the machine whose node changed."""
        self._listeners.append(listener)

    def hint(self, machine: str) -> None:
        """The machine started, ended or rebooted: its node came or went with it."""
        if machine in self._attached:
            self._tell(machine)

    def _tell(self, machine: str) -> None:
        for listener in self._listeners:
            listener(machine)

    async def write_seed(self, machine: str, seed: Seed) -> str:
        """Keep the seed and return a path that names it. Raises DriverError (BadSeed)."""
        seed_files(seed)
        self.world.seeds[machine] = seed
        return f"/fake/machines/{machine}/seed.iso"

    async def log(self, machine: str, tail_bytes: int) -> bytes:
        """Return the end of what the console printed, over rotations."""
        printed = self.world.older.get(machine, b"") + self.world.logs.get(machine, b"")
        return printed[max(0, len(printed) - tail_bytes) :]

    async def rotate(self, limit_bytes: int) -> None:
        """Keep one older part of at most ``limit_bytes``."""
        for machine, printed in self.world.logs.items():
            if len(printed) > limit_bytes:
                self.world.older[machine] = printed[-limit_bytes:]
                self.world.logs[machine] = b""

    async def console(self, machine: str) -> Console:
        """Open the console; a second open takes it over. Raises DriverError (NoConsole)."""
        if not self.world.running(machine):
            raise DriverError("NoConsole", f"machine {machine} has no serial console now; is it running?")
        former = self.world.consoles.get(machine)
        if former is not None:
            await former.close()
        console = FakeConsole(self.world, machine)
        self.world.consoles[machine] = console
        return console

    async def remove(self, machine: str) -> None:
        """Forget seed, logs and console of the machine."""
        self.world.end(machine)
        self.world.seeds.pop(machine, None)
        self.world.logs.pop(machine, None)
        self.world.older.pop(machine, None)
        self.world.documents.pop(machine, None)
        self._attached.discard(machine)
