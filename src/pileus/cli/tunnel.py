"""A connection to a port of a VM: a WebSocket to the server, and what is carried over it on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from dataclasses import dataclass
from ssl import SSLContext
from typing import TYPE_CHECKING

from pileus.cli.client import Json, refusal, segment
from pileus.cli.failure import UNREACHABLE, Failure
from pileus.cli.progress import slow
from pileus.cli.session import Session, root
from pileus.cli.target import VM
from pileus.kernel.errors import Transient
from pileus.kernel.flow import PART_BYTES, Duplex, Flow, carry

if TYPE_CHECKING:
    from websockets import ConnectionClosed
    from websockets.asyncio.client import ClientConnection

OPEN_TIMEOUT_S = 30.0
"""The server gives up after 15 s and says why."""
PING_EVERY_S = 20.0
"""Keeps what lies between from forgetting an idle connection, and shows within 40 s that the server is gone."""
FAREWELL_S = 40.0
"""How long the end of what was sent may take to reach the VM."""
RETRY_S = 1.0
"""Until a VM that may still boot is asked again."""
MESSAGE_BYTES_MAX = 2**20
PIPE_BYTES = 4096
"""POSIX: a pipe that can be written to takes so many at once. Source: pipe(7), PIPE_BUF."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a port of a VM is reached."""

    name: str
    """What people call it, such as ``port 22 of vm web``."""
    url: str
    tls: SSLContext
    authorization: str


def way(session: Session, vm: Json, port: int, network: str) -> Way:
    """Return the way to a port of the VM in a network; "": the first that has a router."""
    query = [("account", vm["account"]), ("port", str(port)), ("network", network)]
    target = session.client.target(f"{root(VM)}/{segment(vm['id'])}/connect", query)
    return Way(
        name=f"port {port} of vm {vm['name']}",
        url=f"wss://{session.client.authority}{target}",
        tls=session.client.tls,
        authorization=session.client.authorization,
    )


async def join(way: Way, local: Duplex, patience_s: float = 0.0) -> None:
    """Connect, and carry bytes between ``local`` and the VM until both directions ended.

    A VM that does not answer is asked again for ``patience_s``. Raises: Failure when there is no way or it broke; what
    ``local`` raises.
    """
    import websockets

    async with await _reach(way, patience_s) as socket:
        try:
            await _carry(socket, local)
        except (websockets.ConnectionClosed, Transient) as error:
            reason = error.message if isinstance(error, Transient) else _reason(error)
            raise Failure(f"the connection to {way.name} ended: {reason}", exit_code=UNREACHABLE) from None


async def _reach(way: Way, patience_s: float) -> ClientConnection:
    began = time.monotonic()
    with slow(f"waits for {way.name}: the VM may still boot") if patience_s else contextlib.nullcontext():
        while True:
            try:
                return await _open(way)
            except Failure as failure:
                waited_s = time.monotonic() - began
                if failure.code != "connect-refused" or not patience_s:
                    raise
                if waited_s >= patience_s:
                    hint = f"it was asked for {waited_s:.0f} s, as it may still boot; `pileus logs` shows how far it is"
                    raise Failure(failure.message, exit_code=failure.exit_code, code=failure.code, hint=hint) from None
            await asyncio.sleep(RETRY_S)


async def _open(way: Way) -> ClientConnection:
    import websockets
    from websockets.asyncio.client import connect

    try:
        return await connect(
            way.url,
            ssl=way.tls,
            additional_headers={"Authorization": way.authorization},
            max_size=MESSAGE_BYTES_MAX,
            open_timeout=OPEN_TIMEOUT_S,
            ping_interval=PING_EVERY_S,
            ping_timeout=PING_EVERY_S,
            compression=None,
            proxy=None,
        )
    except websockets.InvalidStatus as error:
        raise refusal(error.response.status_code, bytes(error.response.body or b"")) from None
    except (OSError, websockets.WebSocketException) as error:
        raise Failure(f"{way.name} cannot be reached: {error or 'no answer'}", exit_code=UNREACHABLE) from None


async def _carry(socket: ClientConnection, local: Duplex) -> None:
    import websockets

    async def grant(more_bytes: int) -> None:
        with contextlib.suppress(websockets.ConnectionClosedOK):  # all is here already; it only has to be read
            await socket.send(str(more_bytes))

    flow = Flow(socket.send, grant)
    receiving = asyncio.create_task(_receive(socket, flow))
    try:
        await flow.start()
        await carry(flow, local)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await receiving  # the server closes when it has passed on everything
    finally:
        receiving.cancel()


async def _receive(socket: ClientConnection, flow: Flow) -> None:
    """Take what comes, however slowly it is read here: so pings are answered."""
    import websockets

    try:
        while True:
            message = await socket.recv()
            if isinstance(message, str):
                flow.granted(int(message) if message.isdigit() else 0)
            else:
                flow.arrived(message)
    except websockets.ConnectionClosed as closed:  # the socket itself may not know yet how it was closed
        ended_well = closed.rcvd is not None and closed.rcvd.code == 1000
        flow.ended(None if ended_well else Transient(_reason(closed)))


def _reason(closed: ConnectionClosed) -> str:
    """Return why the server closed. Source: RFC 6455 7.4, and the registry that it begins."""
    if closed.rcvd is None:
        return "the server is gone"
    return closed.rcvd.reason or ("the server stops" if closed.rcvd.code in (1001, 1012) else "the server is gone")


class LocalSocket:
    """A connection that a program on this machine made."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        """Return the next bytes; empty at the end."""
        return await self._reader.read(PART_BYTES)

    async def write(self, content: bytes) -> None:
        """Send bytes; waits while the program reads nothing."""
        self._writer.write(content)
        await self._writer.drain()

    async def finish(self) -> None:
        """End our direction."""
        if self._writer.can_write_eof():
            self._writer.write_eof()


class StandardStreams:
    """Standard input and output. They end when the VM ends its direction, as nobody can say more to it."""

    def __init__(self) -> None:
        self._input, self._output = sys.stdin.fileno(), sys.stdout.fileno()
        self._readable, self._writable = asyncio.Event(), asyncio.Event()
        self._over = False

    async def read(self) -> bytes:
        """Return the next bytes; empty at the end."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(PermissionError):  # a file is always readable, and epoll takes none
            loop.add_reader(self._input, self._readable.set)
            try:
                await self._readable.wait()
            finally:
                loop.remove_reader(self._input)
        self._readable.clear()
        return b"" if self._over else os.read(self._input, PART_BYTES)

    async def write(self, content: bytes) -> None:
        """Write bytes; waits while nobody reads them, without keeping others waiting."""
        loop = asyncio.get_running_loop()
        rest = content
        while rest:
            with contextlib.suppress(PermissionError):
                loop.add_writer(self._output, self._writable.set)
                try:
                    await self._writable.wait()
                finally:
                    loop.remove_writer(self._output)
                self._writable.clear()
            rest = rest[os.write(self._output, rest[:PIPE_BYTES]) :]

    async def finish(self) -> None:
        """The VM ended its direction."""
        self._over = True
        self._readable.set()
