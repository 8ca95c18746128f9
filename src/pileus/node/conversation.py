"""A session at work on an event loop, the same at both ends: bytes from a transport, messages and streams for others.

It knows neither what a message says nor which transport carries it.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from pileus.node.session import (
    Accepted,
    Arrived,
    Asked,
    Closed,
    Drained,
    Event,
    Finished,
    Message,
    Ponged,
    Session,
)
from pileus.node.wire import Signal

UNDER_WAY_BYTES = 32 << 10
"""What is handed to a transport ahead of the line: what comes after it waits that long, about 10 ms."""

UNSENT_BYTES = 64 << 10
"""A stream's writer waits while more than this is unsent."""

CLOSE_TIMEOUT_S = 10.0
"""How long a closed stream may take to send the rest."""


class Transport(Protocol):
    """Carries bytes both ways, and tells a ``Receiver``."""

    def room(self) -> int:
        """Return how many bytes may be written now."""

    def write(self, data: bytes) -> None:
        """Send ``data``."""


class Nowhere:
    """The transport while there is none."""

    def room(self) -> int:
        """Return 0."""
        return 0

    def write(self, data: bytes) -> None:
        """Never called: there is no room."""


class Receiver(Protocol):
    """Whom a transport tells; a conversation, or something in front of it."""

    def received(self, data: bytes) -> bool | None:
        """Bytes arrived; True: they are dealt with, and the event loop has nothing to do for them."""

    def flush(self) -> None:
        """There is room."""


class Listener(Protocol):
    """Whom a conversation tells."""

    def on_signal(self, signal: Signal) -> None:
        """The session opened, was lost, or could be opened."""

    def on_message(self, body: bytes) -> None:
        """A message arrived."""

    def on_pong(self, number: int) -> None:
        """A ping was answered."""

    def on_asked(self, stream: ChannelStream, body: bytes) -> None:
        """The other end asks for a stream; ``accept`` or ``refuse`` it."""


class ChannelStream:
    """One stream. ``made``: accepted, or ``ended``. ``reason``: why it was refused or broke, empty after a proper end."""

    def __init__(self, conversation: Conversation, number: int) -> None:
        self.number = number
        self.made = asyncio.Event()
        self.ended = asyncio.Event()
        self.reason = ""
        self._conversation = conversation
        self._unread = bytearray()
        self._finished = False
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()

    async def read(self) -> bytes:
        """Return the next bytes; empty at the end. Raises: ConnectionResetError when it broke."""
        while not self._unread and not self._finished:
            self._readable.clear()
            await self._readable.wait()
        if not self._unread and self.reason:
            raise ConnectionResetError(self.reason)
        data, self._unread = bytes(self._unread), bytearray()
        self._conversation.session.grant(self.number, len(data))
        self._conversation.flush()
        return data

    async def write(self, data: bytes) -> None:
        """Send ``data``; waits while much is unsent. Raises: ConnectionResetError when the stream is over."""
        session = self._conversation.session
        for start in range(0, len(data), UNSENT_BYTES):
            while session.unsent(self.number) > UNSENT_BYTES and not self.ended.is_set():
                self._writable.clear()
                await self._writable.wait()
            if self.ended.is_set():
                raise ConnectionResetError(self.reason or "the stream is closed")
            session.write(self.number, data[start : start + UNSENT_BYTES])
            self._conversation.flush()

    def accept(self) -> None:
        """Say that the stream's connection is made."""
        self._conversation.session.accept(self.number)
        self._conversation.flush()

    def refuse(self, reason: str) -> None:
        """End the stream at once, and tell the other end why."""
        if not self.ended.is_set():
            self._conversation.refuse_stream(self, reason)

    def finish(self) -> None:
        """Say that no more bytes come from here."""
        self._conversation.session.finish(self.number)
        self._conversation.flush()

    def close(self) -> None:
        """End both directions, after what is unsent."""
        if not self.ended.is_set():
            self._conversation.close_stream(self)

    def on_event(self, event: Accepted | Arrived | Drained | Finished | Closed) -> None:
        """The conversation tells what happened."""
        if isinstance(event, Arrived):
            self._unread += event.body
        elif isinstance(event, Accepted):
            self.made.set()
        elif isinstance(event, Finished):
            self._finished = True
        elif isinstance(event, Closed):
            self.end(event.reason)
        self._readable.set()

    def on_room(self, unsent: int) -> None:
        """The conversation sent something."""
        if unsent <= UNSENT_BYTES:
            self._writable.set()

    def end(self, reason: str) -> None:
        """Nothing more will happen to this stream."""
        self._finished = True
        self.reason = self.reason or reason
        for event in (self.made, self.ended, self._readable, self._writable):
            event.set()


class Conversation:
    """One end; ``transport`` is set by whoever has one. A new transport needs a new session: ``start``."""

    def __init__(self, session: Session, listener: Listener) -> None:
        self.session = session
        self.transport: Transport = Nowhere()
        self._listener = listener
        self._streams: dict[int, ChannelStream] = {}
        self._receiving = False
        """What is to be sent is sent once, when all that was received has been heard."""

    def start(self) -> None:
        """Give up the session and ask for a new one."""
        was_open = self.session.open
        self.session.start()
        if was_open:
            self._on_signal(Signal.LOST)
        self.flush()

    def drop(self, reason: str) -> None:
        """Give up the session and all that was under way."""
        was_open = self.session.open
        self.session.drop(reason)
        if was_open:
            self._on_signal(Signal.LOST)

    def send(self, message: bytes, payload: bytes = b"") -> None:
        """Send a message, ``payload`` at its end. Raises: ConnectionResetError (no session), ValueError (too much)."""
        if not self.session.open:
            raise ConnectionResetError("there is no session")
        self.session.send(message, payload)
        self.flush()

    def ping(self, number: int) -> None:
        """Ask whether the other end is there. Raises: ConnectionResetError without a session."""
        if not self.session.open:
            raise ConnectionResetError("there is no session")
        self.session.ping(number)
        self.flush()

    def ask(self, body: bytes) -> ChannelStream:
        """Ask the other end for a stream; wait for ``made``. Raises as ``send``."""
        if not self.session.open:
            raise ConnectionResetError("there is no session")
        stream = ChannelStream(self, self.session.ask(body))
        self._streams[stream.number] = stream
        self.flush()
        return stream

    def received(self, data: bytes) -> bool:
        """The transport has bytes; return whether a ping was all."""
        answer = self.session.wire.take_foreseen(data)
        if answer:
            self.transport.write(answer)
            self.session.foresee()
            return True
        if answer is not None:
            self._listener.on_pong(self.session.ponged())
            return False
        self._receiving = True
        try:
            for event in self.session.receive(data):
                self._on_event(event)
        finally:
            self._receiving = False
        self.flush()
        return False

    def flush(self) -> None:
        """Send what there is, as far as the transport has room."""
        if self._receiving:
            return
        while (room := self.transport.room()) > 0:
            data = self.session.outgoing(room)
            if data:
                self.transport.write(data)
            if len(data) < room:
                break
        for stream in self._streams.values():
            stream.on_room(self.session.unsent(stream.number))
        self.session.foresee()

    def close_stream(self, stream: ChannelStream) -> None:
        """End a stream after what is unsent, or after a while."""
        stream.end("")
        self._streams.pop(stream.number, None)
        self.session.close(stream.number)
        asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._refuse_quietly, stream.number, self.session.opens)
        self.flush()

    def refuse_stream(self, stream: ChannelStream, reason: str) -> None:
        """End a stream at once."""
        self.session.refuse(stream.number, reason)
        self._streams.pop(stream.number, None)
        stream.end("")
        self.flush()

    def _refuse_quietly(self, number: int, opens: int) -> None:
        if opens == self.session.opens:
            self.session.refuse(number, "")
            self.flush()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Signal):
            self._on_signal(event)
        elif not self.session.open:
            # Arrived together with what ended the session.
            return
        elif isinstance(event, Message):
            self._listener.on_message(event.body)
        elif isinstance(event, Ponged):
            self._listener.on_pong(event.number)
        elif isinstance(event, Asked):
            stream = self._streams[event.stream] = ChannelStream(self, event.stream)
            self._listener.on_asked(stream, event.body)
        else:
            found = self._streams.get(event.stream)
            if isinstance(event, Closed):
                self._streams.pop(event.stream, None)
            if found is not None:
                found.on_event(event)

    def _on_signal(self, signal: Signal) -> None:
        if signal is Signal.LOST:
            streams, self._streams = self._streams, {}
            for stream in streams.values():
                stream.end("the node is silent")
        self._listener.on_signal(signal)
