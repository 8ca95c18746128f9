"""What carries a conversation: a connected socket, a port's device, or frames that may be lost."""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import time
from collections.abc import Callable

from pileus.node.conversation import UNDER_WAY_BYTES, Receiver
from pileus.node.datagrams import Datagrams

READ_BYTES = 4 << 10
"""A port gives no more at once."""

PORT_POLL_S = 0.1
"""A port whose other end is closed is always "readable", so it is looked at from time to time instead."""


class SocketTransport(asyncio.Protocol):
    """A transport over a connected socket. ``on_end`` is called once when it is gone."""

    def __init__(self, receiver: Receiver, on_end: Callable[[], None]) -> None:
        self._receiver = receiver
        self._on_end = on_end
        self._under: asyncio.Transport | None = None

    def room(self) -> int:
        """Return how many bytes may be written now."""
        if self._under is None or self._under.is_closing():
            return 0
        return UNDER_WAY_BYTES - self._under.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Send ``data``."""
        if self._under is not None:
            self._under.write(data)

    def pause(self, seconds: float) -> None:
        """Take nothing from the other end for a while."""
        if self._under is not None and self._under.is_reading():
            self._under.pause_reading()
            asyncio.get_running_loop().call_later(seconds, self._resume)

    def close(self) -> None:
        """Let go at once."""
        if self._under is not None:
            self._under.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=UNDER_WAY_BYTES // 2, low=UNDER_WAY_BYTES // 4)
        self._under = transport

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes arrived."""
        self._receiver.received(data)

    def resume_writing(self) -> None:
        """asyncio: there is room."""
        self._receiver.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: gone."""
        self._on_end()

    def _resume(self) -> None:
        if self._under is not None and not self._under.is_closing():
            self._under.resume_reading()


class PromptSelector(selectors.EpollSelector):
    """Calls the reader of one descriptor itself, and again, for as long as that leaves the event loop nothing to do.

    What the reader raises ends the loop.
    """

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll.fromfd(os.dup(self.fileno()))
        """The same as the selector's own, without its bookkeeping."""
        self._alone: list[tuple[int, int]] = []
        self._reader: Callable[[], bool] = bool

    def prefer(self, fd: int, reader: Callable[[], bool]) -> None:
        """Call ``reader``, which the loop has for ``fd``, before the loop does; it returns whether that was all."""
        self._alone, self._reader = [(fd, select.EPOLLIN)], reader

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what the event loop has to call."""
        until = None if timeout is None else time.monotonic() + timeout
        while (ready := self._epoll.poll(timeout, 2)) == self._alone and ready:
            if not self._reader():
                return []
            if until is not None and (timeout := until - time.monotonic()) <= 0:
                return []
        return super().select(0) if ready else []

    def close(self) -> None:
        """Let go of everything."""
        self._epoll.close()
        super().close()


class PortTransport:
    """A transport over a port's device, open without blocking; it outlives whoever is at its other end."""

    def __init__(self, fd: int, receiver: Receiver, on_connected: Callable[[], None]) -> None:
        self._fd = fd
        self._receiver = receiver
        self._on_connected = on_connected
        self._unsent = bytearray()
        self._connected = False
        self._writing = False
        self._ended = False
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Begin to look for the other end."""
        if self._ended:
            return
        if self._is_held():
            self._connected = True
            self._loop.add_reader(self._fd, self.on_readable)
            self._on_connected()
        else:
            self._loop.call_later(PORT_POLL_S, self.start)

    def room(self) -> int:
        """Return how many bytes may be written now."""
        return max(0, UNDER_WAY_BYTES - len(self._unsent)) if self._connected else 0

    def write(self, data: bytes) -> None:
        """Send ``data``."""
        if not self._writing:
            data = data[self._put(data) :]
        if data:
            self._unsent += data
            self._watch()

    def close(self) -> None:
        """Let go of the port."""
        self._on_gone()
        self._ended = True
        os.close(self._fd)

    def _is_held(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not any(events & select.POLLHUP for _, events in poll.poll(0))

    def on_readable(self) -> bool:
        """Take what is there; return whether the event loop has nothing to do for it."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if data:
            return bool(self._receiver.received(data))
        self._on_gone()
        return False

    def _put(self, data: bytes | bytearray) -> int:
        """Return how much the port took; all when nobody is there for it."""
        try:
            return os.write(self._fd, data) if self._connected else len(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._on_gone()
            return len(data)

    def _watch(self) -> None:
        if bool(self._unsent) != self._writing:
            self._writing = bool(self._unsent)
            if self._writing:
                self._loop.add_writer(self._fd, self._on_writable)
            else:
                self._loop.remove_writer(self._fd)

    def _on_writable(self) -> None:
        del self._unsent[: self._put(self._unsent)]
        self._watch()
        self._receiver.flush()

    def _on_gone(self) -> None:
        if not self._connected:
            return
        self._connected = self._writing = False
        self._unsent.clear()
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._loop.call_later(PORT_POLL_S, self.start)


class FrameTransport:
    """A transport over frames; ``send`` puts one on its way. ``on_paired``: the other end is there, or there anew."""

    def __init__(self, send: Callable[[bytes], None], receiver: Receiver, on_paired: Callable[[], None]) -> None:
        self._send = send
        self._receiver = receiver
        self._on_paired = on_paired
        self._datagrams = Datagrams()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look for the other end."""
        self._pump()

    def room(self) -> int:
        """Return how many bytes may be written now."""
        return self._datagrams.room()

    def write(self, data: bytes) -> None:
        """Send ``data``."""
        self._datagrams.write(data)
        self._pump()

    def arrived(self, frame: bytes) -> None:
        """A frame came in."""
        pairings = self._datagrams.pairings
        data = self._datagrams.receive(frame, self._loop.time())
        if self._datagrams.pairings != pairings:
            self._on_paired()
        if data:
            self._receiver.received(data)
        self._receiver.flush()
        self._pump()

    def stop(self) -> None:
        """Send nothing more of itself."""
        if self._timer is not None:
            self._timer.cancel()

    def _pump(self) -> None:
        for frame in self._datagrams.outgoing(self._loop.time()):
            self._send(frame)
        self.stop()
        at = self._datagrams.next_at()
        self._timer = None if at is None else self._loop.call_at(max(at, self._loop.time() + 0.001), self._pump)
