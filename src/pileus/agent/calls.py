"""What a server may ask of a host at once: a closed list of verbs, none of which changes what the host is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from pileus.agent.channel import Channel
from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import Console, Guest
from pileus.kernel.errors import Transient
from pileus.kernel.stream import Call, Chunk, End, encode

LOG_BYTES_MAX = 4 * 2**20
CHUNK_BYTES = 64 * 1024
TYPED_MAX = 256
"""Frames kept of what is typed to a guest that reads nothing; one more ends its console."""
CALLS_MAX = 64
"""Calls at once; more are refused."""

Work = Callable[[Call, Channel], Awaitable[None]]


class Calls:
    """The calls of one connection."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._typed: dict[int, asyncio.Queue[bytes]] = {}

    async def start(self, call: Call, channel: Channel) -> None:
        """Begin a call; it answers by itself."""
        if len(self._tasks) >= CALLS_MAX:
            await channel.send(
                encode(End(number=call.number, code="busy", error="the host answers too many calls now"))
            )
            return
        work = {"log": self._log, "console": self._console}.get(call.verb)
        if work is None:
            await channel.send(encode(End(number=call.number, code="unknown-call", error=f"no call {call.verb}")))
            return
        self._typed[call.number] = asyncio.Queue(maxsize=TYPED_MAX)
        task = self._tasks[call.number] = asyncio.create_task(self._answer(work, call, channel))
        task.add_done_callback(lambda _: self._forget(call.number))

    def _forget(self, number: int) -> None:
        del self._tasks[number]
        del self._typed[number]

    async def _answer(self, work: Work, call: Call, channel: Channel) -> None:
        end = End(number=call.number)
        try:
            await work(call, channel)
        except DriverError as error:
            end = End(number=call.number, code=error.reason, error=error.message)
        with contextlib.suppress(Transient):
            await channel.send(encode(end))

    async def take(self, frame: Chunk | End, channel: Channel) -> None:
        """Give bytes, or the end, to a call that is open; it waits for no guest."""
        if frame.number not in self._tasks:
            return
        task, typed = self._tasks[frame.number], self._typed[frame.number]
        if isinstance(frame, End):
            task.cancel()
        elif typed.full():
            task.cancel()
            error = "the guest does not read what is typed; open the console again"
            await channel.send(encode(End(number=frame.number, code="busy", error=error)))
        else:
            typed.put_nowait(frame.part)

    async def close(self) -> None:
        """End all calls: the connection is gone."""
        tasks = list(self._tasks.values())
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


async def _type(console: Console, typed: asyncio.Queue[bytes]) -> None:
    """Write what is typed as fast as the guest reads it; when the console is gone, so does who reads from it."""
    with contextlib.suppress(DriverError):
        while True:
            await console.write(await typed.get())
