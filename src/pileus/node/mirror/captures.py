"""Who reads captures: a TCP server in one thread, which also takes the packets that are kept.

Everything that the sessions and their readers are is touched by this thread only; others ``call`` it.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from pileus.node.mirror import CAPTURE_PORT, TOO_MANY, TOO_MANY_OF_SESSION
from pileus.node.mirror.answers import Answer, FlowAnswer, PacketAnswer, line
from pileus.node.mirror.sessions import Counts
from pileus.node.mirror.store import Session
from pileus.node.turns import Mishap

READERS_MAX = 64
SESSION_READERS_MAX = 8
"""So that one tenant cannot take them all."""
ASKED_BYTES_MAX = 4096
PULSE_S = 5.0
"""After it, a reader that follows is told anew how complete its capture is."""

GRACE_S = 30.0
"""A session that is over is read to its end, but not for ever."""

STALL_S = 60.0
"""A reader that takes nothing of what there is for so long is ended; others wait for its place."""

_SEND_BYTES = 128 << 10
_TURN_PIECES = 4
_LOOK_S = 0.5

T = TypeVar("T")


class Kept:
    """A session that is kept, and how the data path counts it."""

    def __init__(self, session: Session, path: Callable[[], Counts]) -> None:
        self.session = session
        self._path = path
        self._last: Counts | None = None

    def counts(self) -> Counts:
        """Return what the data path counted, until the end."""
        return self._last or self._path()

    def end(self) -> None:
        """The session is over: the data path is asked no more."""
        self._last = self._path()
        self.session.is_over = True


class TooMany(Exception):
    """There are as many readers as there can be. ``code``: of a session, or of all; the args say it in words."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(words)
        self.code = code


class Captures:
    """The thread. ``kept``: session id -> what there is to read. ``failure``: what broke last, "" as it should be."""

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}
        self.failure = ""
        self._selector = selectors.DefaultSelector()
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._server: socket.socket | None = None
        self._readers: set[_Reader] = set()
        self._is_ended = False
        self._look_at = 0.0
        self.watch(self._near, self._on_call)
        self._thread = Thread(target=self._run, name="captures", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returned in this thread, or raise what it raised; for every other thread."""
        future: Future[T] = Future()

        def do() -> None:
            with Mishap(Exception) as mishap:
                future.set_result(work())
            if mishap.result is not None:
                future.set_exception(mishap.result)

        self._calls.put(do)
        self._far.send(b"x")
        return future.result()

    def close(self) -> None:
        """End the thread and every connection."""
        self._calls.put(None)
        self._far.send(b"x")
        self._thread.join()
        self._far.close()

    def listen(self, address: str = "127.0.0.1", port: int = CAPTURE_PORT) -> None:
        """Let readers come. Raises: OSError. Called again, it changes nothing."""
        if self._server is None:
            self._server = socket.create_server((address, port), backlog=READERS_MAX)
            self._server.setblocking(False)
            self.watch(self._server, self._on_reader)

    def watch(self, wire: socket.socket, on_event: Callable[[], None], events: int = selectors.EVENT_READ) -> None:
        """Call ``on_event`` when the socket has something; ``events`` 0: never."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(wire)
        if events:
            self._selector.register(wire, events, on_event)

    def forget(self, wire: socket.socket) -> None:
        """Watch the socket no more, and close it."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(wire)
        wire.close()

    def find(self, asked: dict[str, Any]) -> Answer:
        """Return what the reader gets.

        Raises: ValueError for what cannot be asked, KeyError: no such session, TooMany: it has its readers.
        """
        kind = {"packets": PacketAnswer, "flows": FlowAnswer}.get(str(asked.get("want", "packets")))
        start, follow = asked.get("from", "start"), asked.get("follow", False)
        if kind is None or start not in ("start", "now") or not isinstance(follow, bool):
            raise ValueError(
                'the line must say "want": packets or flows, "from": start or now, "follow": true or false'
            )
        kept = self.kept[str(asked.get("session"))]
        if sum(reader.reads(kept.session) for reader in self._readers) >= SESSION_READERS_MAX:
            raise TooMany(TOO_MANY_OF_SESSION, f"{SESSION_READERS_MAX} readers read this session already")
        answer: Answer = kind(kept.session, kept.counts, start == "start", follow)
        return answer

    def _run(self) -> None:
        while not self._is_ended:
            # Whatever breaks here must not end the thread: others wait for it.
            with Mishap(Exception) as mishap:
                self._round()
            if mishap.result is not None:
                self.failure = f"{type(mishap.result).__name__}: {mishap.result}"[:500]
        for reader in list(self._readers):
            reader.end()
        if self._server is not None:
            self._server.close()
        self._selector.close()
        self._near.close()

    def _round(self) -> None:
        is_hungry = any([self._attended(reader, reader.turn) for reader in list(self._readers)])
        for key, _ in self._selector.select(0 if is_hungry else _LOOK_S):
            key.data()
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            for reader in list(self._readers):
                self._attended(reader, lambda reader=reader: reader.look(now))  # type: ignore[misc]

    def _attended(self, reader: _Reader, work: Callable[[], bool | None]) -> bool:
        """Do it; a reader that breaks is ended."""
        is_done = False
        try:
            found = work()
            is_done = True
            return bool(found)
        finally:
            if not is_done:
                reader.end()

    def _on_call(self) -> None:
        self._near.recv(4096)
        with contextlib.suppress(Empty):
            while True:
                work = self._calls.get_nowait()
                if work is None:
                    self._is_ended = True
                else:
                    work()

    def _on_reader(self) -> None:
        assert self._server is not None
        with contextlib.suppress(OSError):
            wire, _ = self._server.accept()
            wire.setblocking(False)
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
            reader = _Reader(self, wire, self._readers.discard)
            if len(self._readers) >= READERS_MAX:
                reader.refuse(f"{READERS_MAX} readers read already", code=TOO_MANY)
            self._readers.add(reader)


class _Reader:
    """One connection: its line is awaited, then it gets its answer, at its own pace."""

    def __init__(self, captures: Captures, wire: socket.socket, on_end: Callable[[_Reader], None]) -> None:
        self._captures, self._wire, self._on_end = captures, wire, on_end
        self._asked = b""
        self._answer: Answer | None = None
        self._unsent = b""
        self._is_refused = self._is_deaf = self._is_blocked = self._is_finished = self._has_taken = False
        self._since = self._pulsed = self._taken = time.monotonic()
        captures.watch(wire, self._on_event)

    def reads(self, session: Session) -> bool:
        """Return whether it gets something of the session."""
        return self._answer is not None and self._answer.session is session

    def refuse(self, words: str, **more: str) -> None:
        """Say why there is no answer, and no more."""
        self._unsent, self._is_refused = line({"error": words, **more}), True

    def turn(self) -> bool:
        """Send what there is, but leave others their turn; return whether there is more."""
        if self._is_blocked:
            return False
        has_more = False
        try:
            for _ in range(_TURN_PIECES):
                if not self._unsent and self._answer is not None and not self._answer.is_whole:
                    self._unsent = self._answer.next()
                if not self._unsent:
                    break
                self._unsent = self._unsent[self._wire.send(self._unsent) :]
                self._has_taken = True
            else:
                has_more = True
        except BlockingIOError:
            self._is_blocked = True
            self._watch()
            return False
        except OSError:
            self.end()
            return False
        if not self._unsent and (self._is_refused or (self._answer is not None and self._answer.is_whole)):
            self._finish()
        return has_more

    def look(self, now: float) -> None:
        """Send what is due by time; end what does not come to its end."""
        is_over = self._is_finished or self._answer is None or self._answer.session.is_over
        if not is_over:
            self._since = now
        if not self._unsent or self._has_taken:
            self._taken, self._has_taken = now, False
        if now > self._since + GRACE_S or now > self._taken + STALL_S:
            self.end()
            return
        if not self._is_finished and self._answer is not None and not self._unsent and now >= self._pulsed + PULSE_S:
            self._pulsed = now
            # Nothing else tells that a reader which has said all it had to say is gone.
            self._unsent = self._answer.pulse(self._is_deaf)

    def _finish(self) -> None:
        """Say no more; what the reader has not read would be lost if the connection were closed before it is."""
        if self._is_deaf:
            self.end()
        elif not self._is_finished:
            self._is_finished = True
            with contextlib.suppress(OSError):
                self._wire.shutdown(socket.SHUT_WR)

    def end(self) -> None:
        """Close the connection."""
        self._captures.forget(self._wire)
        self._on_end(self)

    def _on_event(self) -> None:
        self._is_blocked = False
        if not self._is_deaf:
            try:
                got = self._wire.recv(ASKED_BYTES_MAX)
                self._is_deaf = not got
                if self._is_deaf and self._is_finished:
                    self.end()
                    return
                self._hear(got)
            except BlockingIOError:
                pass
            except OSError:
                self.end()
                return
        self._watch()

    def _hear(self, got: bytes) -> None:
        if self._answer is not None or self._is_refused:
            return
        self._asked += got
        text, newline, _ = self._asked.partition(b"\n")
        if not newline and got and len(text) <= ASKED_BYTES_MAX:
            return
        try:
            asked = json.loads(text)
            if not isinstance(asked, dict):
                raise ValueError("the line is no JSON object")
            self._answer = self._captures.find(asked)
        except (ValueError, RecursionError) as wrong:
            self.refuse(str(wrong)[:500])
        except TooMany as full:
            self.refuse(str(full), code=full.code)
        except KeyError:
            self.refuse("no session with this id is kept here")

    def _watch(self) -> None:
        events = 0 if self._is_deaf else selectors.EVENT_READ
        self._captures.watch(self._wire, self._on_event, events | (selectors.EVENT_WRITE if self._is_blocked else 0))
