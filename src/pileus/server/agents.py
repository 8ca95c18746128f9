"""The server's side of the agents' connections: slices out, facts in, calls both ways.

An agent sees and writes the rows of its own host only; what it says is checked against that at every report.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from pileus.fleet.vitals import Vitals
from pileus.kernel.background import for_ever
from pileus.kernel.errors import NotFound, Transient
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.store import statements as sql
from pileus.kernel.store.engine import Row
from pileus.kernel.store.store import Store
from pileus.kernel.store.tables import gone, resource
from pileus.kernel.stream import (
    Acknowledge,
    Body,
    Call,
    Chunk,
    Delta,
    End,
    Fact,
    Frame,
    Hello,
    Report,
    Samples,
    Slice,
    Window,
    decode,
    encode,
)
from pileus.kernel.transaction import Transaction
from pileus.server import vitals
from pileus.server.links import Channel
from pileus.server.traffic import find_sampled, note_traffic
from pileus.server.tunnel import Tunnel

log = structlog.get_logger()

PRESENCE_EVERY_S = 1.0
FACTS_MAX = 1024
"""Facts in one report; an agent that sends more is broken."""
CALL_TIMEOUT_S = 30.0
SAMPLE_CHARACTERS_MAX = 16_384
"""Counters of one resource; a VM with many disks and ports has some 2,000."""
UNREAD_MAX = 1024
"""Frames kept for a caller that is slow to read; one more ends the call."""

_c = resource.c
_BODY = sa.select(
    _c.id, _c.kind, _c.name, _c.account_id, _c.account, _c.owner, _c.generation, _c.revision, _c.deleting_at, _c.desired,
    _c.assigned,
).where(_c.host == sa.bindparam("host"), _c.host != sa.literal_column("''"))  # fmt: skip
SLICE = _BODY.order_by(_c.id)
SLICE_CHANGED = _BODY.where(_c.revision > sa.bindparam("after")).order_by(_c.revision)
OBSERVED = sa.select(_c.observed, _c.observed_generation).where(_c.id == sa.bindparam("id"))
LEFT = sa.select(gone.c.id, gone.c.kind).where(
    gone.c.host == sa.bindparam("host"), gone.c.revision > sa.bindparam("after")
)


class Session:
    """One agent's connection."""

    def __init__(self, host_id: str, channel: Channel) -> None:
        self.host_id = host_id
        self.channel = channel
        self.calls: dict[int, asyncio.Queue[Chunk | End]] = {}
        self.tunnels: dict[int, Tunnel] = {}
        self.task: asyncio.Task[None] | None = None
        self.reported = 0
        """The newest report taken: an older one that comes again says nothing."""
        self._numbers = itertools.count(1)
        self.told: dict[str, tuple[int, str | None]] = {}
        """Generation and assignment of each resource as the agent knows it: what it need not be told again."""

    def open_call(self) -> int:
        """Return the number of a new call."""
        number = next(self._numbers)
        self.calls[number] = asyncio.Queue(maxsize=UNREAD_MAX)
        return number

    def open_tunnel(self) -> Tunnel:
        """Return a new call that is a connection."""
        number = next(self._numbers)
        tunnel = self.tunnels[number] = Tunnel(number, self.channel, lambda: self.tunnels.pop(number, None))
        return tunnel

    def answer(self, frame: Chunk | Window | End) -> End | None:
        """Give a frame to whoever called; return the end to send to the agent when that one does not read."""
        tunnel = self.tunnels.get(frame.number)
        if tunnel is not None:
            tunnel.take(frame)
        queue = self.calls.get(frame.number)
        if queue is None or isinstance(frame, Window):
            return None
        try:
            queue.put_nowait(frame)
        except asyncio.QueueFull:
            slow = End(number=frame.number, code="too-slow", error="what the host sent was not read; open it again")
            self._end_call(slow)
            return slow
        return None

    def end(self) -> None:
        """End every call: the connection is gone."""
        for number in list(self.calls):
            self._end_call(End(number=number, code="disconnected", error="the host's agent went away"))
        for tunnel in list(self.tunnels.values()):
            tunnel.ended(Transient("the host's agent went away", code="no-agent"))

    def _end_call(self, end: End) -> None:
        queue = self.calls.pop(end.number)
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(end)


class Agents:
    """All agents connected to this server."""

    def __init__(self, store: Store, hub: Hub) -> None:
        self._store = store
        self._hub = hub
        self._sessions: dict[str, Session] = {}
        self._seen: dict[str, float] = {}
        self._samples: dict[tuple[str, str], str] = {}
        """Newest counters by host and resource."""
        self._flusher: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start writing presence and samples, a second's worth at a time."""
        self._flusher = for_ever(self._flush, "presence")

    async def close(self) -> None:
        """Stop; connections are closed by whoever serves them."""
        if self._flusher is not None:
            self._flusher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flusher

    @property
    def connected(self) -> int:
        """How many agents are connected."""
        return len(self._sessions)

    async def serve(self, host_id: str, channel: Channel) -> None:
        """Speak with the agent of ``host_id`` until its connection closes; an older connection of it is ended."""
        older = self._sessions.get(host_id)
        if older is not None and older.task is not None:
            older.task.cancel()
        session = Session(host_id, channel)
        session.task = asyncio.current_task()
        self._sessions[host_id] = session
        try:
            await self._speak(session)
        except (Transient, msgspec.DecodeError) as error:
            log.info("agent's connection ended", host=host_id, error=str(error))
        finally:
            session.end()
            if self._sessions.get(host_id) is session:
                del self._sessions[host_id]

    async def _speak(self, session: Session) -> None:
        first = await session.channel.receive()
        hello = decode(first) if first is not None else None
        if not isinstance(hello, Hello):
            return
        await self._arrived(session.host_id)
        pusher = asyncio.create_task(self._push(session), name=f"push {session.host_id}")
        try:
            while (frame := await session.channel.receive()) is not None:
                self._seen[session.host_id] = self._store.clock()
                await self._take(session, decode(frame))
                if pusher.done():
                    await pusher
        finally:
            pusher.cancel()
            with contextlib.suppress(asyncio.CancelledError, Transient):
                await pusher

    async def _arrived(self, host_id: str) -> None:
        now = self._store.clock()
        self._seen.pop(host_id, None)
        # It may have told newer ones to another server: counters that go back would count as new.
        self._samples = {key: counters for key, counters in self._samples.items() if key[0] != host_id}

        async def arrive(tx: Transaction) -> None:
            host = await tx.find_id(host_id)
            if host is None:
                return
            if host.ready is not None and host.ready.status == "unknown":
                await tx.distrust(host_id)
            await tx.change(tx.insert.presence, host=host_id, seen_at=now, server=self._store.server)
            await tx.enqueue(host_id)

        await self._store.write(arrive)

    # slices out

    async def _push(self, session: Session) -> None:
        with self._hub.watch(("host", session.host_id)) as changes:
            revision = self._hub.revision
            rows = await self._store.fetch(SLICE, host=session.host_id)
            left = await self._store.fetch(LEFT, host=session.host_id, after=0)
            session.told = {row[0]: (row[6], row[10]) for row in rows}
            whole = Slice(
                revision=revision,
                ids=tuple(session.told),
                bodies=tuple(_body(row) for row in rows),
                gone=tuple({row[0] for row in left if self._leaves(row[1])} - session.told.keys()),
            )
            await session.channel.send(encode(whole))
            while True:
                await changes.wait(60.0)
                newest = self._hub.revision
                delta = await self._delta(session, revision, newest)
                revision = newest
                if delta is not None:
                    await session.channel.send(encode(delta))

    def _leaves(self, kind: str) -> bool:
        """Tell whether an agent that comes must be told what went: there may be something to remove."""
        return kind not in self._store.registry or self._store.registry[kind].leaves

    async def _delta(self, session: Session, after: int, newest: int) -> Delta | None:
        changed = await self._store.fetch(SLICE_CHANGED, host=session.host_id, after=after)
        left = await self._store.fetch(LEFT, host=session.host_id, after=after)
        bodies = []
        for row in changed:
            if session.told.get(row[0]) != (row[6], row[10]):
                session.told[row[0]] = (row[6], row[10])
                bodies.append(_body(row))
        back = {row[0] for row in changed}
        gone_ids = tuple(row[0] for row in left if row[0] not in back)
        for id in gone_ids:
            session.told.pop(id, None)
        return Delta(revision=newest, bodies=tuple(bodies), gone=gone_ids) if bodies or gone_ids else None

    # facts in

    async def _take(self, session: Session, frame: Frame) -> None:
        match frame:
            case Report():
                await self._report(session, frame)
            case Samples():
                for id, counters in frame.counters.items():
                    if id in session.told and _is_sample(counters):
                        self._samples[session.host_id, id] = counters
            case Chunk() | Window() | End():
                too_slow = session.answer(frame)
                if too_slow is not None:
                    await session.channel.send(encode(too_slow))
            case _:
                pass  # a heartbeat: being heard is all

    async def _report(self, session: Session, report: Report) -> None:
        facts = report.facts[:FACTS_MAX] if report.number > session.reported else ()
        session.reported = max(session.reported, report.number)
        news = [fact for fact in facts if not await self._is_known(fact)]

        async def write(tx: Transaction) -> None:
            if not await self._has(tx, session.host_id):
                raise Transient("the agent speaks with another server now")  # this was said before what it says there
            for fact in news:
                await self._write_fact(tx, session.host_id, fact)

        if news:
            await self._store.write(write)
        await session.channel.send(encode(Acknowledge(number=report.number)))

    async def _is_known(self, fact: Fact) -> bool:
        """Tell whether the row says the same already: an agent that comes back tells everything again."""
        rows = await self._store.fetch(OBSERVED, id=fact.id)
        return bool(rows) and rows[0][0] == fact.observed and rows[0][1] >= fact.generation

    async def _has(self, tx: Transaction, host_id: str) -> bool:
        """Tell whether the agent of the host came to this server last."""
        rows = await tx.statement(sql.PRESENCE, host=host_id)
        return bool(rows) and rows[0][1] == self._store.server

    async def _write_fact(self, tx: Transaction, host_id: str, fact: Fact) -> None:
        try:
            current = await tx.get(fact.id)
            observed = self._store.registry.decode(self._store.registry[current.kind].observed, fact.observed)
        except (NotFound, msgspec.DecodeError):
            return  # gone meanwhile, or nonsense: the row stays as it was
        if current.host != host_id or not self._store.registry[current.kind].host_bound:
            return
        generation = min(fact.generation, current.generation)
        if generation < current.observed_generation:
            return  # it was said before what is known already
        if self._is_sound(dataclasses.replace(current, observed=observed)):
            await tx.update(current, observed=observed, observed_generation=generation)

    def _is_sound(self, resource: Resource) -> bool:
        """Tell whether the resource's kind copes with what was observed; one fact must not hold up all others."""
        try:
            kind = self._store.registry[resource.kind]
            kind.ready(resource)
            if kind.meter is not None:
                kind.meter(resource)
        except Exception:  # a defect of one kind must not end the conversation with a host for ever
            log.exception(
                "defect in a kind's condition or meter", kind=resource.kind, id=resource.id, host=resource.host
            )
            return False
        return True

    async def _flush(self) -> None:
        await asyncio.sleep(PRESENCE_EVERY_S)
        await self._write_presence()
        await self._write_samples()  # on its own and last: hosts are heard although their counters cannot be written

    async def _write_presence(self) -> None:
        seen, self._seen = self._seen, {}

        async def write(tx: Transaction) -> None:
            for host, at in seen.items():
                if not await self._has(tx, host):
                    continue  # removed meanwhile, or another server's now: what is heard of it here leaves no trace
                await tx.change(tx.insert.presence, host=host, seen_at=at, server=self._store.server)

        if seen:
            await self._store.write(write)

    async def _write_samples(self) -> None:
        samples, self._samples = self._samples, {}

        async def write(tx: Transaction) -> None:
            heard = {host for host in {host for host, _ in samples} if await self._has(tx, host)}
            for (host, id), counters in samples.items():
                found = await find_sampled(tx, id) if host in heard else None
                if found is not None and found.resource.host == host:
                    await note_traffic(tx, found, counters)
                    await tx.change(tx.insert.sample, id=id, at=tx.now, body=counters)

        if samples:
            await self._store.write(write)

    # calls

    def _session(self, host_id: str) -> Session:
        session = self._sessions.get(host_id)
        if session is None:
            raise Transient(
                "the agent of its host is not connected; try again, or see `pileus get host`", code="no-agent"
            )
        return session

    async def call(self, host_id: str, verb: str, id: str, arguments: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """Ask the agent and yield its answer's parts. Raises: Transient when it is not connected or refuses."""
        session = self._session(host_id)
        number = session.open_call()
        answers = session.calls[number]
        try:
            await session.channel.send(encode(Call(number=number, verb=verb, id=id, arguments=dict(arguments))))
            while True:
                try:
                    async with asyncio.timeout(CALL_TIMEOUT_S):
                        frame = await answers.get()
                except TimeoutError:
                    raise Transient(
                        "the agent of its host did not answer in time; try again", code="no-answer"
                    ) from None
                if isinstance(frame, Chunk):
                    yield frame.part
                    continue
                if frame.code:
                    raise Transient(frame.error, code="host-refused")
                return
        finally:
            session.calls.pop(number, None)

    def holds(self, host_id: str) -> bool:
        """Tell whether the host's agent speaks with this server; with several, each has its own."""
        return host_id in self._sessions

    async def vitals(self, host_id: str, vm_ids: Iterable[str], timeout_s: float = 2.0) -> dict[str, Vitals]:
        """Return what each VM of the host is now: one message there and back, however many are slow or hung.

        VMs that are not this host's are left out. ``timeout_s``: what a VM is given to answer; the whole takes 1 s
        longer at most. Raises: Transient (no-agent: its agent speaks with no server, or with another one; no-answer).
        """
        session = self._session(host_id)
        asked = [id for id in dict.fromkeys(vm_ids) if id in session.told]
        found = await asyncio.gather(
            *(
                vitals.collect(
                    self.call(host_id, "vitals", "", {"vms": batch, "timeout_s": timeout_s}), batch, timeout_s
                )
                for batch in vitals.batches(asked)
            )
        )
        return {id: each for batch in found for id, each in batch.items()}

    async def console(self, host_id: str, vm_id: str) -> CallStream:
        """Open a VM's serial console. Raises: Transient when the agent is not connected."""
        session = self._session(host_id)
        opened = CallStream(session, session.open_call())
        await session.channel.send(encode(Call(number=opened.number, verb="console", id=vm_id)))
        return opened

    async def connect(self, host_id: str, appliance: str, address: str, port: int) -> Tunnel:
        """Connect to an address in the networks of an appliance's VM. Raises: Transient, Conflict, TooMany."""
        tunnel = self._session(host_id).open_tunnel()
        await tunnel.open(appliance, address, port)
        return tunnel

    async def disk(self, host_id: str, volume: str) -> Tunnel:
        """Have a volume sent, packed as VMDK. Raises: Transient, TooMany."""
        tunnel = self._session(host_id).open_tunnel()
        await tunnel.open_disk(volume)
        return tunnel


class CallStream:
    """A call that is a stream of bytes both ways."""

    def __init__(self, session: Session, number: int) -> None:
        self._session = session
        self.number = number
        self._answers = session.calls[number]
        self._ended = False

    async def read(self) -> bytes:
        """Return what arrived; empty at the end. Raises: Transient when the host refused."""
        if self._ended:
            return b""
        frame = await self._answers.get()
        if isinstance(frame, Chunk):
            return frame.part
        self._ended = True
        if frame.code not in ("", "disconnected"):
            raise Transient(frame.error, code="host-refused")
        return b""

    async def write(self, content: bytes) -> None:
        """Send bytes."""
        if not self._ended:
            await self._session.channel.send(encode(Chunk(number=self.number, part=content)))

    async def close(self) -> None:
        """End it; ended already: nothing."""
        if not self._ended:
            self._ended = True
            with contextlib.suppress(Transient):
                await self._session.channel.send(encode(End(number=self.number)))
        self._session.calls.pop(self.number, None)


def _is_sample(text: str) -> bool:
    """Tell whether counters are a JSON object of a sensible size: they are given to readers as they came."""
    try:
        msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return False
    return len(text) <= SAMPLE_CHARACTERS_MAX


def _body(row: Row) -> Body:
    return Body(*row)
