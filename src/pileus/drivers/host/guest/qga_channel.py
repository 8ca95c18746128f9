"""The host's end of the backchannel of a machine that has only QEMU's guest agent: held over every restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest import qga_work
from pileus.drivers.host.guest.base import Document, GuestAnswer, GuestRequest, NodeFact
from pileus.drivers.host.guest.flood import Flood, Limits, Offences
from pileus.drivers.host.guest.qga import GuestAgent, connect
from pileus.drivers.host.guest.qga_allowed import Allowed, check
from pileus.drivers.host.guest.untrusted import readable
from pileus.node.document import document_hash

log = logging.getLogger(__name__)

CONNECT_PAUSE_S = 1.0
SYNC_TIMEOUT_S = 30.0
"""An agent that starts later answers what was said before, so there is no hurry; what a dying one swallowed is lost."""

HINT_TIMEOUT_S = 3.0
PING_EVERY_S = 10.0

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class AgentChannel:
    """``run`` it; ``fact`` is what is known, ``heard_at`` since when. ``changed`` is called whenever it changed."""

    def __init__(
        self, machine: str, socket: Path, allowed: Allowed, changed: Callable[[], None], limits: Limits
    ) -> None:
        """Raises DriverError (BadPackage)."""
        check(allowed)
        self.fact = NodeFact(machine=machine, state="silent")
        self.heard_at = 0.0
        self._machine = machine
        self._socket = socket
        self._allowed = allowed
        self._changed = changed
        self._flood = Flood(limits)
        self._offences = Offences(limits)
        self._agent: GuestAgent | None = None
        self._poll: asyncio.Future[None] | None = None
        self._hinted = asyncio.Event()
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Hold the channel until cancelled, or until its machine is quarantined."""
        while self.fact.state != "quarantined":
            self._hinted.clear()
            hostile = ""
            try:
                await self._hold()
            except DriverError as error:
                hostile = error.message if error.reason == "NodeHostile" else ""
            self._note(NodeFact(machine=self._machine, state="silent"))
            if hostile:
                await self._rest(hostile)
            else:
                await _wait(self._hinted, CONNECT_PAUSE_S)

    def hint(self) -> None:
        """The machine may have started, ended or booted: look now."""
        self._hinted.set()

    async def configure(self, document: Document) -> None:
        """Let the guest run ``document``. Raises: DriverError (NodeSilent, NodeRefused and others of ``qga_work``)."""
        async with self._turn:
            agent = self._ready()
            try:
                await qga_work.configure(agent, self._allowed, document)
            except DriverError as error:
                agent.blame(error)
                if error.reason == "NodeRefused" and self._agent is agent:
                    self._note(msgspec.structs.replace(self.fact, hash="", refused=error.message))
                raise
            if self._agent is agent:
                self._note(msgspec.structs.replace(self.fact, hash=document_hash(document), refused=""))

    async def request(self, request: GuestRequest) -> GuestAnswer:
        """Return how the request ended. Raises: DriverError (NodeSilent and others of ``qga_work``)."""
        async with self._turn:
            agent = self._ready()
            try:
                return await qga_work.perform(agent, self._allowed, request)
            except DriverError as error:
                agent.blame(error)
                raise

    async def poll(self, timeout_s: float) -> NodeFact:
        """Ask the agent for a sign of life; it has no role to look at. Raises: DriverError (NodeSilent, NodeHostile)."""
        if self._poll is None or self._poll.done():
            self._poll = asyncio.ensure_future(self._ping(self._ready()))
            # The agent may end when nobody waits any more.
            self._poll.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        await asyncio.wait([self._poll], timeout=timeout_s)
        if not self._poll.done():
            # It does one thing at a time: what is slow is no reason to hang up on it.
            raise DriverError("NodeSilent", f"the guest agent of machine {self._machine} did not answer in time")
        self._poll.result()
        return self.fact

    async def connect(self, address: str, port: int, timeout_s: float) -> NoReturn:
        """Raises: DriverError (ConnectRefused)."""
        raise DriverError("ConnectRefused", f"{address}:{port}: QEMU's guest agent makes no connections")

    async def _rest(self, hostile: str) -> None:
        """Stay away from a machine that did harm, or for ever from one that did it again and again."""
        if self._offences.note(asyncio.get_running_loop().time()):
            log.warning("machine %s is quarantined: %s", self._machine, hostile)
            words = f"again and again: {hostile}"
            self._note(NodeFact(machine=self._machine, state="quarantined", refused=words))
        else:
            self._flood.hang_ups += 1
            log.warning("%s; its backchannel rests", hostile)
            await asyncio.sleep(self._flood.hang_up_s())

    async def _hold(self) -> None:
        """Reach the agent, and return or raise when it is gone. Raises: DriverError (NodeSilent, NodeHostile)."""
        agent = await connect(self._socket, self._machine)
        try:
            await self._meet(agent)
            await self._watch(agent)
        finally:
            self._agent = None
            agent.close()

    async def _watch(self, agent: GuestAgent) -> None:
        """Ping from time to time, and when there is a reason; return when somebody closed the connection."""
        while not agent.closed.is_set():
            await _first(agent.closed, self._hinted, PING_EVERY_S)
            hinted = self._hinted.is_set()
            self._hinted.clear()
            # A call whose answer a dead agent took with it keeps the turn, so the time for that counts too.
            await _in_time(self._ping(agent), HINT_TIMEOUT_S if hinted else None, agent)
            if hinted:
                # It may have booted between two of our pings, and then serves the same connection.
                await self._learn(agent)

    async def _ping(self, agent: GuestAgent) -> None:
        await agent.ping()
        self.heard_at = asyncio.get_running_loop().time()

    async def _meet(self, agent: GuestAgent) -> None:
        """Get in step with the agent, which may start later; a hint leaves it a few seconds."""
        sync = asyncio.ensure_future(agent.sync(SYNC_TIMEOUT_S))
        hinted = asyncio.ensure_future(self._hinted.wait())
        try:
            await asyncio.wait({sync, hinted}, return_when=asyncio.FIRST_COMPLETED)
            await _in_time(sync, HINT_TIMEOUT_S, agent)
        finally:
            for one in (sync, hinted):
                one.cancel()
            await asyncio.gather(sync, hinted, return_exceptions=True)
        await self._learn(agent)

    async def _learn(self, agent: GuestAgent) -> None:
        """Learn who the guest is, and whether it can be worked with."""
        version, lacks = await agent.facts()
        self.heard_at = asyncio.get_running_loop().time()
        boot_id = hash_ = refused = ""
        if lacks:
            refused = f"its guest agent does not allow {', '.join(sorted(lacks))}"
        else:
            try:
                boot_id = readable((await agent.read(_BOOT_ID, 64))[0].decode(errors="replace"))
                hash_ = await qga_work.configured(agent, self._allowed)
            except DriverError as error:
                if agent.closed.is_set():
                    raise
                refused = error.message
        self._agent = agent
        self._note(
            NodeFact(
                machine=self._machine,
                state="ready",
                hash=hash_,
                version=version,
                boot_id=boot_id,
                refused=refused,
            )
        )

    def _ready(self) -> GuestAgent:
        if self.fact.state == "quarantined":
            raise DriverError("NodeSilent", f"machine {self._machine} is quarantined: {self.fact.refused}")
        if self._agent is None or self._agent.closed.is_set():
            raise DriverError("NodeSilent", f"the guest agent of machine {self._machine} does not answer; does it run?")
        return self._agent

    def _note(self, fact: NodeFact) -> None:
        if fact != self.fact:
            self.fact = fact
            self._changed()


async def _in_time(work: Awaitable[None], limit_s: float | None, agent: GuestAgent) -> None:
    """Return when ``work`` is done. Raises: DriverError (NodeSilent)."""
    try:
        async with asyncio.timeout(limit_s):
            await work
    except TimeoutError as wrong:
        raise agent.silent() from wrong


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


async def _first(one: asyncio.Event, other: asyncio.Event, timeout_s: float) -> None:
    """Wait until either is set, or for ``timeout_s``."""
    waits = [asyncio.ensure_future(one.wait()), asyncio.ensure_future(other.wait())]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            each.cancel()
