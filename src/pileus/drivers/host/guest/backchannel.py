"""The host's end of one machine's backchannel: held over every restart, its node's facts, documents and streams."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import PAYLOAD_BYTES_MAX, Document, GuestAnswer, GuestRequest, NodeFact
from pileus.drivers.host.guest.carriers import Carrier, Dial
from pileus.drivers.host.guest.flood import HOSTILE_NOISE_BYTES, MESSAGE_NOISE_BYTES, Flood, Limits, Offences
from pileus.drivers.host.guest.untrusted import MESSAGE_BYTES_MAX, Hostile, Message, Report, read_message, readable
from pileus.node.conversation import ChannelStream, Conversation, Nowhere
from pileus.node.document import difference, document_hash
from pileus.node.session import Session
from pileus.node.wire import Signal

log = logging.getLogger(__name__)

CONNECT_PAUSE_S = 1.0
"""Between tries to reach a machine that does not run; a hint of the hypervisor shortens it."""

PING_EVERY_S = 10.0
SILENT_S = 30.0
"""A node answers each ping, so two answers are missing."""

HINT_TIMEOUT_S = 3.0
CALL_PAUSE_S = 0.5
CONFIGURE_TIMEOUT_S = 120.0
"""A node under emulation takes seconds for a large document; one that takes longer is stuck."""

REQUEST_TIMEOUT_S = 330.0
"""A role may take minutes for a request; what has no answer by then is asked again, and is not done twice."""

FOREIGN_KEY = "the node could not prove that it is this machine's"


class Backchannel:
    """``run`` it; ``fact`` is what is known, ``heard_at`` since when. ``changed`` is called whenever it changed."""

    def __init__(self, machine: str, key: bytes, dial: Dial, changed: Callable[[], None], limits: Limits) -> None:
        self.fact = NodeFact(machine=machine, state="silent")
        self.heard_at = 0.0
        self._machine = machine
        self._dial = dial
        self._changed = changed
        self._conversation = Conversation(Session("host", key, MESSAGE_BYTES_MAX), self)
        self._flood = Flood(limits)
        self._offences = Offences(limits)
        self._loop = asyncio.get_running_loop()
        self._carrier: Carrier | None = None
        self._gone = asyncio.Event()
        self._hinted = asyncio.Event()
        self._turn = asyncio.Lock()
        self._requests = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[tuple[Message, bytes]]] = {}
        self._late: set[int] = set()
        """What was asked in this session and not awaited to its end."""
        self._poll: asyncio.Future[tuple[Message, bytes]] | None = None
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._document: Document | None = None
        """What the node acknowledged last."""
        self._called_at = 0.0
        self._proved = 0
        self._noise = 0
        self._flooded = False

    async def run(self) -> None:
        """Hold the channel until cancelled, or until its node is quarantined."""
        try:
            while not self._is_quarantined():
                self._gone.clear()
                self._hinted.clear()
                with suppress(DriverError):
                    self._carrier = self._conversation.transport = await self._dial(self)
                    await self._watch()
                self._let_go()
                if self._flooded:
                    self._flooded = False
                    log.warning("machine %s sends too much; its backchannel rests", self._machine)
                    await asyncio.sleep(self._flood.hang_up_s())
                elif not self._is_quarantined():
                    await _wait(self._hinted, CONNECT_PAUSE_S)
        finally:
            self._let_go()

    def hint(self) -> None:
        """The machine may have started, ended or booted: look now."""
        self._hinted.set()

    async def configure(self, document: Document) -> None:
        """Let the node run ``document``. Raises: DriverError (NodeSilent, NodeRefused)."""
        async with self._turn:
            wanted = document_hash(document)
            if self.fact.state == "ready" and self.fact.hash == wanted and not self.fact.refused:
                self._acknowledge(document)
                return
            answer = await self._send_document(document, wanted)
            report = answer.report
            if report is None or report.hash != wanted or report.refused:
                words = readable(report.refused) if report is not None and report.refused else "no reason given"
                raise DriverError("NodeRefused", words)
            self._acknowledge(document)

    async def request(self, request: GuestRequest) -> GuestAnswer:
        """Let the node do ``request`` once. Raises: DriverError (NodeSilent, BadRequest)."""
        if len(request.payload) > PAYLOAD_BYTES_MAX:
            raise DriverError("BadRequest", f"a request has at most {PAYLOAD_BYTES_MAX} bytes")
        async with self._requests:
            asked = {
                "id": request.id, "sequence": request.sequence, "deadline": request.deadline,
                "now": time.time(), "withdrawn": request.withdrawn,
            }  # fmt: skip
            payload = b"" if request.withdrawn else request.payload
            message, answer = await self._ask({"verb": "request", "request": asked}, REQUEST_TIMEOUT_S, payload)
            if message.failed:
                raise DriverError("NodeSilent", f"the node of machine {self._machine}: {readable(message.failed)}")
            if message.answer is None:
                self._on_hostile("it answered a request with something else")
                raise self._silent()
            return GuestAnswer(state=message.answer.state, answer=answer)

    async def poll(self, timeout_s: float) -> NodeFact:
        """Let the node look at its role now, and return what it says. Raises: DriverError (NodeSilent).

        A poll that had no answer in time is waited for again, and none sent beside it: a node that answers none, or
        late, gets one in a session.
        """
        if self._poll is None or self._poll.done():
            self._poll = self._send_poll()
        await asyncio.wait([self._poll], timeout=timeout_s)
        if not self._poll.done():
            raise self._silent()
        if self._poll.result()[0].report is None:
            if self._conversation.session.open:
                self._on_hostile("it answered a poll with something else")
            raise self._silent()
        return self.fact

    async def connect(self, address: str, port: int, timeout_s: float) -> ChannelStream:
        """Let the node open a TCP connection. Raises: DriverError (NodeSilent, ConnectRefused)."""
        target = {"address": address, "port": port, "timeout_s": timeout_s}
        try:
            stream = self._conversation.ask(json.dumps(target).encode())
        except ConnectionError as exc:
            raise self._silent() from exc
        except ValueError as exc:
            raise DriverError(
                "ConnectRefused", f"the node of machine {self._machine} has too many connections"
            ) from exc
        if not await _wait(stream.made, timeout_s + HINT_TIMEOUT_S):
            stream.refuse("no answer in time")
            raise DriverError("ConnectRefused", f"{address}:{port}: the node did not answer in time")
        if stream.ended.is_set():
            if not self._conversation.session.open:
                raise self._silent()
            raise DriverError("ConnectRefused", f"{address}:{port}: {readable(stream.reason)}")
        return stream

    async def ping(self, timeout_s: float) -> None:
        """Return when the node answered. Raises: DriverError (NodeSilent)."""
        number = next(self._numbers)
        try:
            self._conversation.ping(number)
            answer = self._pings[number] = self._loop.create_future()
            async with asyncio.timeout(timeout_s):
                await answer
        except (ConnectionError, TimeoutError) as exc:
            raise self._silent() from exc
        finally:
            self._pings.pop(number, None)

    def begin(self) -> None:
        """The machine's end is there, or there anew: ask for a session."""
        self._conversation.drop("the channel begins anew")
        self._call_soon()

    def end(self) -> None:
        """The carrier is gone."""
        self._gone.set()
        self._conversation.drop("the channel is closed")

    def received(self, data: bytes) -> None:
        """Bytes arrived."""
        if self._gone.is_set():
            return
        self._conversation.received(data)
        session = self._conversation.session
        frames, self._proved = session.wire.proved - self._proved, session.wire.proved
        noise, self._noise = session.take_noise() + self._noise, 0
        traffic = len(data) + frames * self._flood.limits.frame_cost_bytes
        pause_s = self._flood.take(traffic, noise, self._loop.time())
        if self._carrier is None:
            return
        if pause_s is None:
            self._flooded = True
            self._hang_up()
            self._offend("it sends more than it may")
        elif pause_s > 0:
            self._carrier.pause(pause_s)

    def flush(self) -> None:
        """There is room."""
        self._conversation.flush()

    def on_signal(self, signal: Signal) -> None:
        """The session opened, was lost, or could be opened."""
        if signal is Signal.OPENED:
            self.heard_at = self._loop.time()
        elif signal is Signal.GREETED:
            self._call_soon()
        elif signal is Signal.REFUSED:
            self._note(NodeFact(machine=self._machine, state="silent", refused=FOREIGN_KEY))
        else:
            self._on_lost()

    def on_message(self, body: bytes) -> None:
        """The node says something."""
        try:
            message, rest = read_message(body)
        except Hostile as hostile:
            self._on_hostile(f"it sent {hostile}")
            return
        self.heard_at = self._loop.time()
        asked = self._answers.pop(message.id, None) if message.id is not None else None
        if asked is None:
            self._noise += MESSAGE_NOISE_BYTES + len(body)
            if message.id is not None and message.id not in self._late:
                self._on_hostile("it answered what it was not asked")
                return
            self._late.discard(message.id or 0)
        if message.report is not None:
            self._note_report(message.report)
        if asked is not None and not asked.done():
            asked.set_result((message, rest))

    def on_pong(self, number: int) -> None:
        """The node answers a ping."""
        self.heard_at = self._loop.time()
        answer = self._pings.pop(number, None)
        if not number:
            self._on_hostile("it answered a ping that it did not get")
        elif answer is None:
            self._noise += MESSAGE_NOISE_BYTES
        elif not answer.done():
            answer.set_result(None)

    def on_asked(self, stream: ChannelStream, body: bytes) -> None:
        """Never called: a session of the host's side takes this for an offence."""

    async def _watch(self) -> None:
        """Ping from time to time to see whether the node is still there; return when the carrier is gone or we hung up."""
        while not self._gone.is_set() and self._carrier is not None:
            self._hinted.clear()
            hinted = await _first(self._gone, self._hinted, PING_EVERY_S)
            now = self._loop.time()
            if not self._conversation.session.open:
                if now > self._called_at + SILENT_S:
                    self._call()
            else:
                answers = await self._answers_within(HINT_TIMEOUT_S)
                if not answers and (hinted or now > self.heard_at + SILENT_S):
                    self._call()

    async def _answers_within(self, timeout_s: float) -> bool:
        try:
            await self.ping(timeout_s)
        except DriverError:
            return False
        return True

    def _on_hostile(self, words: str) -> None:
        self._noise += HOSTILE_NOISE_BYTES
        self._conversation.drop(words)
        self._offend(words)

    def _offend(self, words: str) -> None:
        """Mind what the node did; too often, and it is heard no more."""
        log.info("machine %s: %s", self._machine, words)
        if self._offences.note(self._loop.time()) and not self._is_quarantined():
            log.warning("the node of machine %s is quarantined: %s", self._machine, words)
            self._note(NodeFact(machine=self._machine, state="quarantined", refused=f"again and again: {words}"))
            self._hang_up()

    def _is_quarantined(self) -> bool:
        return self.fact.state == "quarantined"

    def _hang_up(self) -> None:
        self._let_go()
        self._gone.set()

    def _call_soon(self) -> None:
        """Call, but not more often than every ``CALL_PAUSE_S``; a node greets until it is called."""
        if self._loop.time() >= self._called_at + CALL_PAUSE_S:
            self._call()
        elif self._called_at <= self._loop.time():
            self._called_at += CALL_PAUSE_S
            self._loop.call_at(self._called_at, self._call_unless_open)

    def _call_unless_open(self) -> None:
        if not self._conversation.session.open:
            self._call()

    def _call(self) -> None:
        self._called_at = self._loop.time()
        if self._carrier is not None:
            self._conversation.start()

    def _let_go(self) -> None:
        carrier, self._carrier = self._carrier, None
        self._conversation.transport = Nowhere()
        self._conversation.drop("the channel is closed")
        if carrier is not None:
            carrier.close()

    def _on_lost(self) -> None:
        session = self._conversation.session
        waiting: list[asyncio.Future[Any]] = [*self._answers.values(), *self._pings.values()]
        self._answers, self._pings, self._late = {}, {}, set()
        for answer in waiting:
            if not answer.done():
                answer.set_exception(self._silent())
        self._document = None
        self._note(NodeFact(machine=self._machine, state="silent"))
        offence, session.offence = session.offence, ""
        if offence:
            self._offend(f"it sent {offence}")

    async def _send_document(self, document: Document, wanted: str) -> Message:
        request: dict[str, Any] = {"verb": "configure", "hash": wanted}
        if self._document is not None and self.fact.hash == document_hash(self._document):
            change = {"base": self.fact.hash, "sections": difference(self._document, document)}
            answer, _ = await self._ask(request | change, CONFIGURE_TIMEOUT_S)
            if not answer.stale:
                return answer
        return (await self._ask(request | {"base": "", "sections": document}, CONFIGURE_TIMEOUT_S))[0]

    async def _ask(self, asked: dict[str, Any], timeout_s: float, payload: bytes = b"") -> tuple[Message, bytes]:
        """Return the node's answer. Raises: DriverError (NodeSilent; NodeRefused when it is too long to be asked)."""
        number = next(self._numbers)
        answer: asyncio.Future[tuple[Message, bytes]] = self._loop.create_future()
        self._answers[number] = answer
        try:
            head = msgspec.json.encode(asked | {"id": number})
            self._conversation.send(head + b"\n" if payload else head, payload)
            async with asyncio.timeout(timeout_s):
                return await answer
        except (ConnectionError, TimeoutError) as exc:
            raise self._silent() from exc
        except ValueError as exc:
            raise DriverError("NodeRefused", "the document is too long for a node") from exc
        finally:
            if self._answers.pop(number, None) is not None:
                self._late.add(number)

    def _send_poll(self) -> asyncio.Future[tuple[Message, bytes]]:
        number = next(self._numbers)
        try:
            self._conversation.send(msgspec.json.encode({"verb": "poll", "id": number}))
        except (ConnectionError, ValueError) as exc:
            raise self._silent() from exc
        answer = self._answers[number] = self._loop.create_future()
        # The session may end when nobody waits any more.
        answer.add_done_callback(lambda ended: ended.exception())
        return answer

    def _acknowledge(self, document: Document) -> None:
        # A copy, because the caller may go on changing its own.
        self._document = msgspec.json.decode(msgspec.json.encode(document))

    def _silent(self) -> DriverError:
        if self._is_quarantined():
            return DriverError("NodeSilent", f"the node of machine {self._machine} is quarantined: {self.fact.refused}")
        return DriverError("NodeSilent", f"the node of machine {self._machine} does not answer; does the machine run?")

    def _note_report(self, report: Report) -> None:
        self._note(
            NodeFact(
                machine=self._machine, state="ready", hash=report.hash, version=report.version,
                boot_id=report.boot_id, refused=readable(report.refused), status=report.status,
            )
        )  # fmt: skip

    def _note(self, fact: NodeFact) -> None:
        if fact != self.fact and not self._is_quarantined():
            self.fact = fact
            self._changed()


async def _wait(event: asyncio.Event, timeout_s: float) -> bool:
    """Return whether ``event`` was set in time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()


async def _first(gone: asyncio.Event, hinted: asyncio.Event, timeout_s: float) -> bool:
    """Wait until either is set, or for ``timeout_s``; return whether ``hinted`` is."""
    waits = [asyncio.ensure_future(gone.wait()), asyncio.ensure_future(hinted.wait())]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waits:
            one.cancel()
    return hinted.is_set()
