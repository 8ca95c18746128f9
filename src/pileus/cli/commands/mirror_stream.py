"""Follows what the platform keeps of a session: over one connection after another, until it ends or nobody wants more."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from pileus.cli.commands.mirror_session import MIRROR, Watched, is_over
from pileus.cli.failure import NOT_FOUND, UNREACHABLE, Failure
from pileus.cli.progress import Progress
from pileus.cli.session import noun
from pileus.cli.tunnel import Way, join

PATIENCE_S = 300.0
"""How long a way that broke is looked for: another decapsulator is there within seconds, one that is made anew boots first."""
RETRY_S = 0.5
FAREWELL_S = 5.0
"""How long the last packets are waited for when it was stopped; a second ctrl-C waits no longer."""

ENDS = (signal.SIGINT, signal.SIGTERM)

Take = Callable[[bytes], Awaitable[None]]


class Following:
    """Gives what is kept of a session, and with ``follow`` what comes, to ``take``; calls ``begin`` before each connection."""

    def __init__(
        self,
        watched: Watched,
        want: Literal["packets", "flows"],
        begin: Callable[[], None],
        take: Take,
        *,
        follow: bool = True,
    ) -> None:
        self._watched = watched
        self._query = [*watched.query, ("want", want), ("from", "start"), ("follow", "1" if follow else "")]
        self._begin = begin
        self._take = take
        self._taken_bytes = 0
        self._progress = Progress()
        self._stopped, self._left = asyncio.Event(), asyncio.Event()
        self.is_whole = False
        """It was followed to the end of the session."""
        self.breaks = 0
        """Connections that broke."""

    def stop(self) -> None:
        """Want no more than what is on its way. A second time: nothing at all."""
        (self._left if self._stopped.is_set() else self._stopped).set()

    async def run(self) -> None:
        """Follow until the session ends, or ``stop``, which ctrl-C calls too. Raises: Failure; what ``take`` raises."""
        loop = asyncio.get_running_loop()
        for word in ENDS:
            loop.add_signal_handler(word, self.stop)
        reading = asyncio.create_task(self._read())
        signals = [asyncio.create_task(event.wait()) for event in (self._stopped, self._left)]
        try:
            await asyncio.wait({reading, signals[0]}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() and self._watched.is_ours:
                self._watched.end()
                await asyncio.wait({reading, signals[1]}, timeout=FAREWELL_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for word in ENDS:
                loop.remove_signal_handler(word)
            for task in (reading, *signals):
                task.cancel()
            await asyncio.gather(reading, *signals, return_exceptions=True)
        if not reading.cancelled():
            reading.result()

    async def _read(self) -> None:
        since = time.monotonic()
        with self._progress:
            while True:
                taken_bytes = self._taken_bytes
                try:
                    self._begin()
                    await join(self._way(), _Taking(self._took))
                    self.is_whole = True
                    return
                except Failure as failure:
                    if self._taken_bytes > taken_bytes:
                        since, self.breaks = time.monotonic(), self.breaks + 1
                    if self._is_over(failure):
                        return
                    if failure.exit_code != UNREACHABLE or time.monotonic() > since + PATIENCE_S:
                        raise
                    self._progress.say(failure.message)
                await asyncio.sleep(RETRY_S)

    async def _took(self, piece: bytes) -> None:
        self._taken_bytes += len(piece)
        self._progress.erase()
        await self._take(piece)

    def _is_over(self, failure: Failure) -> bool:
        """Tell whether it is no wonder that the way broke: the session has ended, or is gone."""
        if failure.code == "ended" or self._stopped.is_set():
            return True
        try:
            return is_over(self._watched.look())
        except Failure as unknown:
            return unknown.exit_code == NOT_FOUND

    def _way(self) -> Way:
        client = self._watched.session.client
        target = client.target(f"{self._watched.path}/packets", self._query)
        return Way(
            name=noun(MIRROR, self._watched.resource),
            url=f"wss://{client.authority}{target}",
            tls=client.tls,
            authorization=client.authorization,
        )


class _Taking:
    """The end of the connection on this machine: it says nothing, and ends when the other side did."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._over = asyncio.Event()

    async def read(self) -> bytes:
        """Return nothing, at the end."""
        await self._over.wait()
        return b""

    async def write(self, content: bytes) -> None:
        """Take the next piece."""
        await self._take(content)

    async def finish(self) -> None:
        """The other side has ended."""
        self._over.set()
