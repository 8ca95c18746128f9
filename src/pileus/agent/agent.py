"""The agent: speaks with a server when there is one, and makes the host follow its slice always."""

from __future__ import annotations

import asyncio
import contextlib
import random

import msgspec
import structlog

from pileus import __version__
from pileus.agent.calls import Calls
from pileus.agent.channel import Channel, Connect
from pileus.agent.converge import Converger
from pileus.agent.slice import Saved, SliceFile
from pileus.kernel.errors import PileusError, Rejected, Transient
from pileus.kernel.stream import (
    HEARTBEAT_S,
    PROTOCOL,
    Acknowledge,
    Body,
    Call,
    Chunk,
    Delta,
    End,
    Fact,
    Frame,
    Heartbeat,
    Hello,
    Report,
    Samples,
    Slice,
    Window,
    decode,
    encode,
)

log = structlog.get_logger()

RECONNECT_FIRST_S, RECONNECT_MAX_S = 0.2, 15.0
SAMPLE_EVERY_S = 10.0
SWEEP_EVERY_S = 15.0
FACTS_PER_REPORT = 256
REPORT_BYTES = 1 << 20
"""Of facts in one report, unless one alone has more: servers take frames of 16 MiB."""


class Agent:
    """One host's agent. ``connect`` opens a connection to any server."""

    def __init__(self, converger: Converger, slice_file: SliceFile, connect: Connect, calls: Calls) -> None:
        self._converger = converger
        self._slice_file = slice_file
        self._connect = connect
        self._calls = calls
        self._bodies: dict[str, Body] = {}
        self._revision = 0
        self._untold: dict[str, Fact] = {}
        self._sent: dict[int, tuple[Fact, ...]] = {}
        self._number = 0
        self._news = asyncio.Event()
        self._random = random.Random()
        self._synced = False
        self.connected = asyncio.Event()
        """Set while a server is connected and has told the slice."""

    async def run(self) -> None:
        """Work until cancelled: first from the saved slice, then with whatever server answers."""
        saved = self._slice_file.load()
        self._revision, self._bodies = saved.revision, dict(saved.bodies)
        self._converger.on_fact = self._tell
        for body in self._bodies.values():
            self._converger.put(body)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._stay_connected())
                tasks.create_task(self._sweep())
        finally:
            await self._converger.close()

    def _tell(self, fact: Fact) -> None:
        self._untold[fact.id] = fact
        self._news.set()

    async def _stay_connected(self) -> None:
        failures = 0
        while True:
            try:
                channel = await self._connect()
            except (Transient, Rejected) as error:
                failures += 1
                if failures in (1, 3) or failures % 20 == 0:
                    log.warning("no server", error=error.message, tries=failures)
                ceiling = min(RECONNECT_FIRST_S * 2.0 ** min(failures, 16), RECONNECT_MAX_S)
                await asyncio.sleep(ceiling * self._random.uniform(0.5, 1.0))
                continue
            failures = 0
            try:
                await self._speak(channel)
            except (Transient, msgspec.DecodeError) as error:
                log.info("connection ended", error=str(error))
            finally:
                self.connected.clear()
                await self._calls.close()
                await channel.close()
            await asyncio.sleep(RECONNECT_FIRST_S * self._random.uniform(0.5, 1.5))

    async def _speak(self, channel: Channel) -> None:
        """Serve one connection until it ends. Everything known is told again: the server ignores what it has."""
        await channel.send(encode(Hello(version=__version__, protocol=PROTOCOL, revision=self._revision)))
        self._sent.clear()
        self._untold = {fact.id: fact for fact in self._converger.facts()}
        self._news.set()
        tasks = [
            asyncio.create_task(work, name=name)
            for work, name in (
                (self._send_reports(channel), "reports"),
                (self._beat(channel), "heartbeat"),
                (self._send_samples(channel), "samples"),
            )
        ]
        try:
            while (frame := await channel.receive()) is not None:
                await self._take(decode(frame), channel)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, frame: Frame, channel: Channel) -> None:
        match frame:
            case Slice():
                self._take_slice(frame)
                self.connected.set()
            case Delta():
                self._change(frame.revision, frame.bodies, set(frame.gone))
                self._converger.allow_removal(frame.gone)
            case Acknowledge():
                self._acknowledged(frame.number)
            case Call():
                self._calls.start(frame, channel)
            case Chunk() | Window() | End():
                self._calls.take(frame, channel)
            case _:
                log.warning("a frame that an agent does not take", frame=type(frame).__name__)

    def _take_slice(self, frame: Slice) -> None:
        left = set(self._bodies) - set(frame.ids)
        forgotten = sorted(left.difference(frame.gone))
        if forgotten:
            log.warning("the server does not know of these any more; they stay on the host", ids=forgotten[:10])
        self._change(frame.revision, tuple(body for body in frame.bodies if self._bodies.get(body.id) != body), left)
        self._converger.allow_removal(frame.gone)
        self._synced = True

    def _change(self, revision: int, bodies: tuple[Body, ...], gone: set[str]) -> None:
        for id in gone:
            self._bodies.pop(id, None)
        for body in bodies:
            self._bodies[body.id] = body
        self._revision = revision  # it may be lower than before: the database was restored from a copy
        if gone or bodies:
            self._save()
        for id in gone:
            self._untold.pop(id, None)
            self._converger.drop(id)
        for body in bodies:
            self._converger.put(body)

    def _save(self) -> None:
        try:
            self._slice_file.save(Saved(self._revision, self._bodies))
        except OSError as error:
            # The host goes on from memory; an agent that starts from the older file is told the rest by the server.
            log.warning("the slice cannot be saved", error=error.strerror)

    async def _send_reports(self, channel: Channel) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._untold:
                facts = tuple(self._untold.pop(id) for id in self._next_told())
                self._number += 1
                self._sent[self._number] = facts
                await channel.send(encode(Report(number=self._number, facts=facts)))

    def _next_told(self) -> list[str]:
        """Return the ids of the facts for one report."""
        ids: list[str] = []
        size = 0
        for id, fact in self._untold.items():
            size += len(fact.observed)
            if ids and (size > REPORT_BYTES or len(ids) == FACTS_PER_REPORT):
                break
            ids.append(id)
        return ids

    def _acknowledged(self, number: int) -> None:
        for sent in [sent for sent in self._sent if sent <= number]:
            del self._sent[sent]

    async def _beat(self, channel: Channel) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S * self._random.uniform(0.9, 1.0))
            await channel.send(encode(Heartbeat()))

    async def _send_samples(self, channel: Channel) -> None:
        while True:
            await asyncio.sleep(SAMPLE_EVERY_S * self._random.uniform(0.8, 1.2))
            counters = await self._converger.counters()
            if counters:
                await channel.send(encode(Samples(counters=counters)))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY_S * self._random.uniform(0.8, 1.2))
            if self._synced:
                with contextlib.suppress(PileusError):
                    await self._converger.sweep()
