"""What a server may ask of a host at once: a closed list of verbs, none of which changes what the host is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from pileus.agent.channel import Channel
from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import Console, Guest
from pileus.kernel.errors import Transient
from pileus.kernel.stream import Call, Chunk, End, encode

LOG_BYTES_MAX = 4 * 2**20
CHUNK_BYTES = 64 * 1024
CALLS_MAX = 64
"""Calls at once; more are refused."""


class Calls:
    """The calls of one connection."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._consoles: dict[int, Console] = {}

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
        task = asyncio.create_task(self._answer(work(call, channel), call.number, channel))
        self._tasks[call.number] = task
        task.add_done_callback(lambda _: self._tasks.pop(call.number, None))

    async def _answer(self, work: Coroutine[Any, Any, None], number: int, channel: Channel) -> None:
        end = End(number=number)
        try:
            await work
        except DriverError as error:
            end = End(number=number, code=error.reason, error=error.message)
        with contextlib.suppress(Transient):
            await channel.send(encode(end))

    async def take(self, frame: Chunk | End) -> None:
        """Give bytes, or the end, to a call that is open."""
        console = self._consoles.get(frame.number)
        if isinstance(frame, Chunk):
            if console is not None:
                with contextlib.suppress(DriverError):
                    await console.write(frame.part)
        elif console is not None:
            await console.close()

    async def close(self) -> None:
        """End all calls: the connection is gone."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for console in list(self._consoles.values()):
            await console.close()
        self._consoles.clear()

    async def _log(self, call: Call, channel: Channel) -> None:
        asked = call.arguments.get("tail_bytes", LOG_BYTES_MAX)
        tail = min(int(asked), LOG_BYTES_MAX) if isinstance(asked, int) else LOG_BYTES_MAX
        printed = await self._guest.log(call.id, tail)
        for start in range(0, len(printed), CHUNK_BYTES):
            await channel.send(encode(Chunk(number=call.number, part=printed[start : start + CHUNK_BYTES])))

    async def _console(self, call: Call, channel: Channel) -> None:
        console = await self._guest.console(call.id)
        self._consoles[call.number] = console
        try:
            while part := await console.read():
                await channel.send(encode(Chunk(number=call.number, part=part)))
        finally:
            self._consoles.pop(call.number, None)
            await console.close()
