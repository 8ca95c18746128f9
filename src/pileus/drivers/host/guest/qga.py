"""The host's end of QEMU's guest agent: one call at a time, what comes back bounded and read with suspicion.

Source: QEMU, docs/interop/qemu-ga-ref. What may be called at all says ``qga_work``; nothing else leads here.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.untrusted import readable

CHUNK_BYTES = 48 << 10
"""Of a file in one call: 64 KiB in base64, and still a fast answer under emulation (17 ms, measured)."""

ANSWER_BYTES_MAX = 256 << 10
"""The longest answer to what we call is a chunk of a file."""

NOISE_BYTES_MAX = 1 << 20
"""What an agent may say before it answers the first call: answers that nobody fetched any more."""

CONNECT_TIMEOUT_S = 5.0
CALL_TIMEOUT_S = 20.0

NEEDED = frozenset(
    {"guest-file-open", "guest-file-read", "guest-file-write", "guest-file-close", "guest-exec", "guest-exec-status"}
)
"""Calls without which an agent is of no use to us; some distributions forbid them at first."""

_POLL_S, _POLL_S_MAX = 0.01, 0.5

T = TypeVar("T")


class AgentRefused(DriverError):
    """The agent answered with an error; ``agent_class`` is its class, such as ``CommandNotFound``."""

    def __init__(self, agent_class: str, message: str) -> None:
        super().__init__("AgentRefused", message)
        self.agent_class = agent_class


class _Error(Struct):
    cls: str = msgspec.field(name="class", default="")
    desc: str = ""


class _Answer(Struct):
    result: msgspec.Raw = msgspec.field(name="return", default=msgspec.Raw())
    error: _Error | None = None
    id: str | None = None


class _Support(Struct):
    name: str
    enabled: bool


class _Facts(Struct):
    version: str
    supported_commands: list[_Support]


class _Count(Struct):
    count: int


class _Part(Struct):
    count: int
    buf: str = msgspec.field(name="buf-b64")
    eof: bool


class _Pid(Struct):
    pid: int


class ExecStatus(Struct, frozen=True):
    """How a program in the guest is. ``signal``: that ended it."""

    exited: bool
    exitcode: int | None = None
    signal: int | None = None
    out: str = msgspec.field(name="out-data", default="")


class GuestAgent:
    """A connection that is in step with the agent. After any error but AgentRefused it is closed, and of no use."""

    def __init__(self, machine: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.closed = asyncio.Event()
        self.fault: DriverError | None = None
        """What it did that no agent does; it is hung up on then."""
        self._machine = machine
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()
        self._numbers = itertools.count(1)

    async def sync(self, timeout_s: float) -> None:
        """Get in step: what the agent says before it answers this is of an earlier time. Waits for an agent to start.

        Nothing is said twice: QEMU hands over what it got when the guest opens its port. Raises: DriverError
        (NodeSilent, NodeHostile).
        """
        number = secrets.randbits(62)
        self._send("guest-sync-delimited", {"id": number}, "sync", before=b"\xff")
        left = NOISE_BYTES_MAX
        async with self._limit(timeout_s):
            while True:
                line = await self._line()
                left -= len(line)
                if left < 0:
                    raise self._hostile("it says too much before it answers")
                if _echoes(line, number):
                    return

    async def ping(self, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Return when the agent answered."""
        await self._call("guest-ping", {}, dict[str, Any], timeout_s)

    async def facts(self) -> tuple[str, frozenset[str]]:
        """Return the agent's version, and which of the calls that we need it does not take."""
        said = await self._call("guest-info", {}, _Facts)
        taken = {one.name for one in said.supported_commands if one.enabled}
        return readable(said.version)[:64], NEEDED - taken

    async def write(self, path: str, content: bytes) -> None:
        """Put ``content`` into the file. It may be cut short by anything that ends the guest or us."""
        handle = await self._call("guest-file-open", {"path": path, "mode": "wb"}, int)
        for start in range(0, len(content), CHUNK_BYTES):
            chunk = content[start : start + CHUNK_BYTES]
            text = base64.b64encode(chunk).decode()
            said = await self._on_file("guest-file-write", handle, {"buf-b64": text}, _Count)
            if said.count != len(chunk):
                await self._on_file("guest-file-close", handle, {}, dict[str, Any])
                raise AgentRefused("GenericError", f"machine {self._machine}: the guest took only a part of {path}")
        await self._on_file("guest-file-close", handle, {}, dict[str, Any])

    async def read(self, path: str, limit: int) -> tuple[bytes, bool]:
        """Return the first ``limit`` bytes of the file, and whether that is all."""
        handle = await self._call("guest-file-open", {"path": path, "mode": "rb"}, int)
        content = bytearray()
        whole = False
        while not whole and len(content) <= limit:
            said = await self._on_file("guest-file-read", handle, {"count": CHUNK_BYTES}, _Part)
            part = self._decoded(said.buf)
            content += part
            whole = said.eof or not part
        await self._on_file("guest-file-close", handle, {}, dict[str, Any])
        return bytes(content[:limit]), len(content) <= limit

    async def run(self, argv: tuple[str, ...], timeout_s: float) -> ExecStatus:
        """Run a program and return how it ended. Raises: DriverError (NodeSilent: it did not end in time)."""
        order = {"path": argv[0], "arg": argv[1:], "capture-output": True}
        pid = (await self._call("guest-exec", order, _Pid)).pid
        pause_s = _POLL_S
        async with self._limit(timeout_s):
            while True:
                try:
                    status = await self._call("guest-exec-status", {"pid": pid}, ExecStatus)
                except AgentRefused as refused:
                    # An agent that started since, on the same port, knows nothing of it.
                    raise self.silent() from refused
                if status.exited:
                    return status
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _POLL_S_MAX)

    def text(self, status: ExecStatus) -> str:
        """Return what a program printed, as one line."""
        return readable(self._decoded(status.out).decode(errors="replace"))

    def blame(self, error: DriverError) -> None:
        """Hang up if the error is the guest's doing."""
        if error.reason == "NodeHostile":
            self.fault = error
            self.close()

    def silent(self) -> DriverError:
        """Return the error that the agent does not answer; the connection is of no use any more."""
        self.close()
        return self.fault or DriverError(
            "NodeSilent", f"the guest agent of machine {self._machine} does not answer; does it run?"
        )

    def close(self) -> None:
        """Let go of the agent."""
        self.closed.set()
        self._writer.close()

    async def _on_file(self, name: str, handle: int, arguments: dict[str, Any], kind: type[T]) -> T:
        """As ``_call``, on an open file. An agent that started since does not know it, and counts as silent."""
        try:
            return await self._call(name, {"handle": handle} | arguments, kind)
        except AgentRefused as refused:
            try:
                await self._call("guest-file-seek", {"handle": handle, "offset": 0, "whence": "cur"}, dict[str, Any])
            except AgentRefused as unknown:
                if unknown.agent_class != "CommandNotFound":
                    raise self.silent() from refused
            raise

    async def _call(self, name: str, arguments: dict[str, Any], kind: type[T], timeout_s: float = CALL_TIMEOUT_S) -> T:
        """Return the answer. Raises: AgentRefused, DriverError (NodeSilent, NodeHostile)."""
        async with self._turn, self._limit(timeout_s):
            number = str(next(self._numbers))
            self._send(name, arguments, number)
            await self._writer.drain()
            return self._read(await self._line(), kind, number)

    def _send(self, name: str, arguments: dict[str, Any], number: str, before: bytes = b"") -> None:
        if self.closed.is_set():
            raise self.silent()
        order = {"execute": name, "arguments": arguments, "id": number}
        self._writer.write(before + msgspec.json.encode(order) + b"\n")

    async def _line(self) -> bytes:
        try:
            return await self._reader.readuntil(b"\n")
        except asyncio.LimitOverrunError as wrong:
            raise self._hostile("its answer is too long") from wrong
        except asyncio.IncompleteReadError as wrong:
            raise self.silent() from wrong

    def _read(self, line: bytes, kind: type[T], number: str) -> T:
        try:
            answer = msgspec.json.decode(line, type=_Answer)
            if answer.error is None and bytes(answer.result) and answer.id in (None, number):
                return msgspec.json.decode(answer.result, type=kind)
        except (ValueError, RecursionError) as wrong:
            raise self._hostile("its answer makes no sense") from wrong
        if answer.error is None:
            raise self._hostile("it answers something that was not asked")
        words = readable(answer.error.desc) or "it says no more"
        raise AgentRefused(readable(answer.error.cls)[:64], f"the agent of machine {self._machine} refused: {words}")

    def _decoded(self, text: str) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except ValueError as wrong:
            raise self._hostile("its answer is no base64") from wrong

    @asynccontextmanager
    async def _limit(self, timeout_s: float) -> AsyncIterator[None]:
        """Within it, whatever leaves a call without its answer closes the connection."""
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except (OSError, RuntimeError) as wrong:
            # Time is up, or the connection is gone: RuntimeError is uvloop's word for that.
            raise self.silent() from wrong
        except asyncio.CancelledError:
            self.close()
            raise

    def _hostile(self, words: str) -> DriverError:
        error = DriverError("NodeHostile", f"the guest agent of machine {self._machine} was hung up on: {words}")
        self.blame(error)
        return error


async def connect(socket: Path, machine: str) -> GuestAgent:
    """Return a connection that is not in step yet. Raises: DriverError (NodeSilent)."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(socket, limit=ANSWER_BYTES_MAX)
    except (OSError, TimeoutError) as wrong:
        raise DriverError("NodeSilent", f"machine {machine} has no guest agent's port now; does it run?") from wrong
    return GuestAgent(machine, reader, writer)


def _echoes(line: bytes, number: int) -> bool:
    _, mark, said = line.rpartition(b"\xff")
    try:
        answer = msgspec.json.decode(said, type=_Answer)
    except (ValueError, RecursionError):
        return False
    return mark != b"" and bytes(answer.result) == str(number).encode()
