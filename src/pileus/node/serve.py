"""The appliance's end of the backchannel: proves itself, takes documents, says how it is, makes connections.

It does nothing else, whoever asks. Messages are JSON objects; bytes that belong to one follow it after a newline::

    host   {"id", "verb": "configure", "base": hash or "", "sections": {...}, "hash"}
           {"id", "verb": "request", "request": {"id", "sequence", "deadline", "now", "withdrawn"}} newline payload
           {"id", "verb": "poll"}: look at the role now, and report
    node   {"id", "stale": true}  {"id", "report": {...}}                                {"report": {...}} unasked
           {"id", "answer": {"state"}} newline answer    {"id", "failed": why it could not be noted}
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from pileus import __version__
from pileus.node.conversation import CLOSE_TIMEOUT_S, ChannelStream, Conversation, Nowhere
from pileus.node.duty import Duty, Stale
from pileus.node.ledger import End, Request
from pileus.node.session import Session
from pileus.node.wire import Signal

REPORT_EVERY_S = 10.0
TICK_S = 1.0
RESUME_TIMEOUT_S = 10.0
"""The channel waits so long for what was kept to be in force, so that nothing is sent that is there already."""

SILENT_S = 45.0
"""The host pings every 10 s; when it does not, it has forgotten this session."""

PUSH_BYTES = 4 << 10
PUSH_BYTES_PER_S = 32 << 10
"""What is pushed unasked counts as noise at the host, by its bytes and for each so many more; this is half of what it bears."""

PUSH_AHEAD_S = 2.0
"""So much of it may come at once, after a while without: some things that happen together are told together."""

GREET_S_MIN, GREET_S_MAX = 1.0, 5.0
STATUS_BYTES_MAX = 60 << 10
READ_BYTES = 32 << 10


class Server:
    """Serves one host, over the transport that its ``conversation`` is given."""

    def __init__(self, key: bytes, duty: Duty) -> None:
        self.conversation = Conversation(Session("node", key), self)
        self._duty = duty
        duty.on_news = self._tell
        self._boot = _boot_id()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard = 0
        self._heard_at = 0.0
        self._greet_at = 0.0
        self._greet_every_s = GREET_S_MIN
        self._state: tuple[str, str, dict[str, Any]] | None = None
        self._text = self._reported = b""
        self._report_at = self._push_at = 0.0
        self._later: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Look after the role and the session until the end."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_after_role())
            tasks.create_task(self._look_after_session())

    async def stop(self) -> None:
        """End the session and every connection."""
        self.conversation.transport = Nowhere()
        self.conversation.drop("this end stops")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._duty.close()

    async def _look_after_role(self) -> None:
        while True:
            await self._duty.look()
            self._tell()
            await self._duty.rest(TICK_S)

    async def _look_after_session(self) -> None:
        while True:
            now = self._loop.time()
            if self._heard != self.conversation.session.wire.proved:
                self._heard, self._heard_at = self.conversation.session.wire.proved, now
            if not self.conversation.session.open:
                if now >= self._greet_at:
                    self.greet()
            elif now > self._heard_at + SILENT_S:
                self.greet()
            elif now >= self._report_at:
                self._push()
            else:
                self._tell()
            await asyncio.sleep(TICK_S)

    def _tell(self) -> None:
        """Push what changed: at once, or as soon as the host bears it."""
        if not self.conversation.session.open or self._report() == self._reported:
            return
        may_at = self._push_at - PUSH_AHEAD_S
        if self._loop.time() >= may_at:
            self._push()
        elif self._later is None:
            self._later = self._loop.call_at(may_at, self._tell_later)

    def _tell_later(self) -> None:
        self._later = None
        self._tell()

    def greet(self) -> None:
        """Give up the session and ask the host for a new one."""
        if self.conversation.transport.room() > 0:
            self._greet_every_s = min(GREET_S_MAX, self._greet_every_s * 2)
            self._greet_at = self._loop.time() + self._greet_every_s
            self.conversation.start()

    def on_signal(self, signal: Signal) -> None:
        """A session began or ended."""
        if signal is Signal.OPENED:
            self._greet_every_s = GREET_S_MIN
            self._heard_at = self._loop.time()
            self._push()
        else:
            self._greet_at = self._loop.time() + GREET_S_MIN
            self._duty.forget()

    def on_message(self, body: bytes) -> None:
        """The host asks for something."""
        head, _, payload = body.partition(b"\n")
        asked = json.loads(head)
        opens = self.conversation.session.opens
        if asked["verb"] == "configure":
            self._spawn(self._configure(asked, opens))
        elif asked["verb"] == "request":
            self._on_request(asked["id"], asked["request"], payload)
        elif asked["verb"] == "poll":
            self._spawn(self._poll(asked["id"], opens))

    def on_pong(self, number: int) -> None:
        """Never called: the host is not pinged."""

    def on_asked(self, stream: ChannelStream, body: bytes) -> None:
        """The host asks for a connection."""
        self._spawn(connect(stream, json.loads(body)))

    async def _configure(self, request: dict[str, Any], opens: int) -> None:
        stale = False
        try:
            await self._duty.configure(request["base"], request["sections"], request["hash"])
        except Stale:
            stale = True
        if self.conversation.session.opens != opens:
            return
        if stale:
            self._send(b'{"id":%d,"stale":true}' % request["id"])
        else:
            self._send(b'{"id":%d,"report":%b}' % (request["id"], self._report()))

    async def _poll(self, id: int, opens: int) -> None:
        await self._duty.look()
        if self.conversation.session.opens == opens:
            self._reported = self._report()
            self._send(b'{"id":%d,"report":%b}' % (id, self._reported))

    def _on_request(self, id: int, asked: dict[str, Any], payload: bytes) -> None:
        opens = self.conversation.session.opens

        def answer(end: End | BaseException | None) -> None:
            if self.conversation.session.opens != opens:
                return
            if isinstance(end, End):
                self._send(b'{"id":%d,"answer":{"state":"%b"}}\n' % (id, end.state.encode()) + end.answer)
            else:
                words = f"the request cannot be noted: {end}"
                self._send(json.dumps({"id": id, "failed": words}).encode())

        request = Request(asked["id"], asked["sequence"], asked["deadline"], asked["withdrawn"], payload)
        self._duty.request(request, self._duty.moment(asked["now"]), answer)

    def _report(self) -> bytes:
        """Return the report as JSON; it is written anew only when something in it changed."""
        state = (self._duty.hash, self._duty.refused, self._duty.status)
        if state != self._state:
            self._state = state
            self._text = self._write_report(*state)
        return self._text

    def _write_report(self, hash: str, refused: str, status: dict[str, Any]) -> bytes:
        if len(json.dumps(status)) > STATUS_BYTES_MAX:
            status = {"failed": "the status is too long"}
        fields = {
            "hash": hash, "refused": refused, "version": __version__, "boot_id": self._boot, "status": status,
        }  # fmt: skip
        return json.dumps(fields, separators=(",", ":")).encode()

    def _push(self) -> None:
        self._report_at = self._loop.time() + REPORT_EVERY_S
        self._reported = self._report()
        cost_s = (PUSH_BYTES + len(self._reported)) / PUSH_BYTES_PER_S
        self._push_at = max(self._push_at, self._loop.time()) + cost_s
        self._send(b'{"report":%b}' % self._reported)

    def _send(self, message: bytes) -> None:
        if self.conversation.session.open:
            self.conversation.send(message)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def connect(stream: ChannelStream, target: dict[str, Any]) -> None:
    """Make the TCP connection that the host asked for and carry its bytes until both ends are done."""
    try:
        address = str(ipaddress.ip_address(target["address"]))
        async with asyncio.timeout(float(target["timeout_s"])):
            reader, writer = await asyncio.open_connection(address, int(target["port"]), limit=READ_BYTES)
    except TimeoutError:
        stream.refuse("no answer in time")
        return
    except OSError as failed:
        stream.refuse(os.strerror(failed.errno).lower() if failed.errno else str(failed))
        return
    except ValueError:
        stream.refuse("that is no address")
        return
    stream.accept()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_end_with(stream, writer))
            tasks.create_task(_carry(stream, reader, writer))
    except* OSError:
        stream.refuse("the other end broke it off")
        writer.transport.abort()


async def _carry(stream: ChannelStream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_inward(stream, writer))
        tasks.create_task(_outward(stream, reader))
    stream.close()


async def _end_with(stream: ChannelStream, writer: asyncio.StreamWriter) -> None:
    """When the stream is over, end the connection: after what it has to send still, but not for ever."""
    await stream.ended.wait()
    writer.close()
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await writer.wait_closed()
    except TimeoutError:
        writer.transport.abort()


async def _inward(stream: ChannelStream, writer: asyncio.StreamWriter) -> None:
    while data := await stream.read():
        writer.write(data)
        await writer.drain()
    if not stream.ended.is_set():
        writer.write_eof()


async def _outward(stream: ChannelStream, reader: asyncio.StreamReader) -> None:
    while data := await reader.read(READ_BYTES):
        await stream.write(data)
    stream.finish()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
