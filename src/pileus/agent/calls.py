"""What a server may ask of a host at once: a closed list of verbs, none of which changes what the host is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from pileus.agent.channel import Channel
from pileus.agent.vitals import VitalSigns
from pileus.drivers.host.disk.base import DiskPool
from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import Console, Guest
from pileus.drivers.host.qemu.base import HUNG_S
from pileus.fleet.vitals import VMS_MAX
from pileus.kernel.errors import Transient
from pileus.kernel.flow import Flow, carry
from pileus.kernel.stream import Call, Chunk, End, Window, encode

LOG_BYTES_MAX = 4 * 2**20
CHUNK_BYTES = 64 * 1024
TYPED_MAX = 256
"""Frames kept of what is typed to a guest that reads nothing; one more ends its console."""
CALLS_MAX = 64
"""Logs and consoles at once; more are refused."""
STREAMS_MAX = 512
"""Connections into networks at once: with their windows full they keep 128 MiB here."""
MACHINE_STREAMS_MAX = 64
"""Of these through one appliance, so that one account's do not take the place of all others'."""
LOOKS_MAX = 32
"""Looks at vitals at once; they are short, and neither wait for consoles nor keep them out."""
LOOK_S_MAX = 10.0
LOOK_VMS = 32
"""Vitals in one frame: the status of each may have 64 KiB."""
STREAMED = ("connect", "disk")
"""Calls whose bytes flow as fast as the other side reads them."""
DRAIN_S = 30.0
"""How long what was sent may take to reach the VM when its sender has gone."""

Work = Callable[[Call, Channel], Awaitable[None]]


class _Look(Struct, frozen=True):
    """What is asked of the call ``vitals``."""

    vms: Annotated[tuple[Annotated[str, Meta(max_length=128)], ...], Meta(max_length=VMS_MAX)]
    timeout_s: Annotated[float, Meta(gt=0, le=LOOK_S_MAX)] = HUNG_S


class Calls:
    """The calls of one connection."""

    def __init__(self, guest: Guest, disks: DiskPool, signs: VitalSigns) -> None:
        self._guest = guest
        self._disks = disks
        self._signs = signs
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._typed: dict[int, asyncio.Queue[bytes]] = {}
        self._flows: dict[int, Flow] = {}
        self._looks: dict[int, None] = {}
        self._machines: dict[int, str] = {}
        """Through which appliance each stream goes."""
        self._words: set[asyncio.Task[None]] = set()

    def start(self, call: Call, channel: Channel) -> None:
        """Begin a call; it answers by itself."""
        refusal = self._refusal(call)
        if refusal is not None:
            self._say(refusal, channel)
            return
        if call.verb in STREAMED:
            self._flows[call.number] = _flow(call.number, channel)
            self._machines[call.number] = call.id
        elif call.verb == "vitals":
            self._looks[call.number] = None
        else:
            self._typed[call.number] = asyncio.Queue(maxsize=TYPED_MAX)
        work = {
            "log": self._log, "console": self._console, "connect": self._connect, "disk": self._disk,
            "vitals": self._vitals,
        }[call.verb]  # fmt: skip
        task = self._tasks[call.number] = asyncio.create_task(self._answer(work, call, channel))
        task.add_done_callback(lambda _: self._forget(call.number))

    def _refusal(self, call: Call) -> End | None:
        if call.verb not in ("log", "console", "vitals", *STREAMED):
            return End(number=call.number, code="unknown-call", error=f"no call {call.verb}")
        if call.verb not in STREAMED:
            is_look = call.verb == "vitals"
            full = len(self._looks) >= LOOKS_MAX if is_look else len(self._typed) >= CALLS_MAX
            return End(number=call.number, code="busy", error="the host answers too many calls now") if full else None
        through = list(self._machines.values())
        if through.count(call.id) >= MACHINE_STREAMS_MAX:
            error = f"{MACHINE_STREAMS_MAX} connections into the account's networks are open; close some first"
            return End(number=call.number, code="busy", error=error)
        if len(through) >= STREAMS_MAX:
            return End(number=call.number, code="busy", error="the host carries too many connections now; try again")
        return None

    def _forget(self, number: int) -> None:
        del self._tasks[number]
        for known in (self._typed, self._flows, self._looks, self._machines):
            known.pop(number, None)

    async def _answer(self, work: Work, call: Call, channel: Channel) -> None:
        end = End(number=call.number)
        try:
            await work(call, channel)
        except DriverError as error:
            end = End(number=call.number, code=error.reason, error=error.message)
        except Transient as error:
            end = End(number=call.number, code=error.code, error=error.message)
        with contextlib.suppress(Transient):
            await channel.send(encode(end))

    def _say(self, end: End, channel: Channel) -> None:
        """Send an end when there is room: whoever receives must not wait for the other side to receive."""

        async def send() -> None:
            with contextlib.suppress(Transient):
                await channel.send(encode(end))

        task = asyncio.create_task(send())
        self._words.add(task)
        task.add_done_callback(self._words.discard)

    def take(self, frame: Chunk | Window | End, channel: Channel) -> None:
        """Give bytes, or the end, to a call that is open; it waits for nobody."""
        task = self._tasks.get(frame.number)
        if task is None:
            return
        if frame.number in self._flows:
            try:
                _give(frame, self._flows[frame.number], task)
            except Transient as error:
                task.cancel()
                self._say(End(number=frame.number, code=error.code, error=error.message), channel)
            return
        if frame.number in self._looks:
            task.cancel()
            return
        typed = self._typed[frame.number]
        if not isinstance(frame, Chunk):
            task.cancel()
        elif typed.full():
            task.cancel()
            why = "the guest does not read what is typed; open the console again"
            self._say(End(number=frame.number, code="busy", error=why), channel)
        else:
            typed.put_nowait(frame.part)

    async def close(self) -> None:
        """End all calls: the connection is gone."""
        tasks = [*self._tasks.values(), *self._words]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _log(self, call: Call, channel: Channel) -> None:
        asked = call.arguments.get("tail_bytes", LOG_BYTES_MAX)
        tail = min(int(asked), LOG_BYTES_MAX) if isinstance(asked, int) else LOG_BYTES_MAX
        printed = await self._guest.log(call.id, tail)
        for start in range(0, len(printed), CHUNK_BYTES):
            await channel.send(encode(Chunk(number=call.number, part=printed[start : start + CHUNK_BYTES])))

    async def _console(self, call: Call, channel: Channel) -> None:
        console = await self._guest.console(call.id)
        typing = asyncio.create_task(_type(console, self._typed[call.number]))
        try:
            while part := await console.read():
                await channel.send(encode(Chunk(number=call.number, part=part)))
        finally:
            typing.cancel()
            await asyncio.gather(typing, return_exceptions=True)
            await console.close()

    async def _vitals(self, call: Call, channel: Channel) -> None:
        try:
            asked = msgspec.convert(call.arguments, _Look)
        except msgspec.ValidationError as error:
            raise DriverError("BadCall", f"a look at vitals: {error}") from error
        vitals = await self._signs.look(asked.vms, asked.timeout_s)
        for start in range(0, len(vitals), LOOK_VMS):
            part = msgspec.json.encode(vitals[start : start + LOOK_VMS])
            await channel.send(encode(Chunk(number=call.number, part=part)))

    async def _connect(self, call: Call, channel: Channel) -> None:
        address, port = call.arguments.get("address"), call.arguments.get("port")
        if not isinstance(address, str) or not isinstance(port, int):
            raise DriverError("BadCall", "a connection needs an address and a port")
        stream = await self._guest.connect(call.id, address, port)
        try:
            await self._flows[call.number].start()
            await carry(self._flows[call.number], stream)
        finally:
            await stream.close()

    async def _disk(self, call: Call, channel: Channel) -> None:
        flow = self._flows[call.number]
        await flow.start()
        async with contextlib.aclosing(self._disks.packed(call.id)) as parts:
            async for part in parts:
                await flow.write(part)
        await flow.finish()


def _flow(number: int, channel: Channel) -> Flow:
    async def send(part: bytes) -> None:
        await channel.send(encode(Chunk(number=number, part=part)))

    async def grant(more_bytes: int) -> None:
        await channel.send(encode(Window(number=number, more_bytes=more_bytes)))

    return Flow(send, grant)


def _give(frame: Chunk | Window | End, flow: Flow, task: asyncio.Task[None]) -> None:
    """Give a frame to a stream. An end lets what came before it reach the VM; one with a code does not.

    Raises: Transient when more came than was granted.
    """
    match frame:
        case Chunk():
            flow.arrived(frame.part)
        case Window():
            flow.granted(frame.more_bytes)
        case End(code=""):
            flow.ended()
            asyncio.get_running_loop().call_later(DRAIN_S, task.cancel)
        case End():
            task.cancel()


async def _type(console: Console, typed: asyncio.Queue[bytes]) -> None:
    """Write what is typed as fast as the guest reads it; when the console is gone, so does who reads from it."""
    with contextlib.suppress(DriverError):
        while True:
            await console.write(await typed.get())
