"""Where a watcher's engine runs: in this process, or in an appliance, which is asked over its host's backchannel."""

from __future__ import annotations

import asyncio
import math
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from pileus.kernel.errors import Conflict, Transient
from pileus.node.monitor.engine import Engine, Work
from pileus.node.monitor.role import PORT
from pileus.server.links import Connection

ADDRESS = "127.0.0.1"
"""Of the appliance itself."""
ANSWER_S = 5.0
"""An appliance that takes longer for one step is lost."""
LINE_BYTES_MAX = 32 << 20
ITEMS_MAX = 20_000


class Links(Protocol):
    """The way to ports of appliances."""

    async def connect(self, host_id: str, appliance: str, address: str, port: int) -> Connection:
        """Connect to the appliance's VM on the host. Raises: Transient, Conflict, TooMany."""


class Mind(Protocol):
    """An engine, wherever it is."""

    async def configure(self, document: dict[str, Any]) -> None:
        """Say what is watched, and by which policies. Raises: Transient."""

    async def amend(self, part: dict[str, Any]) -> bool:
        """Say which appliances came, are others or went; False when it takes whole documents only. Raises: Transient."""

    async def step(self, heard: list[dict[str, Any]], missed: list[str], now: float) -> Work:
        """Tell what was heard and what was not, and return what is to be done. Raises: Transient."""

    async def inventory(self) -> bytes:
        """Return what its disk kept of what it watched before, as JSON. Raises: Transient."""

    async def close(self) -> None:
        """Let it go."""


class Here:
    """An engine in this process."""

    def __init__(self) -> None:
        self._engine = Engine()

    async def configure(self, document: dict[str, Any]) -> None:
        """Say what is watched."""
        self._engine.configure(document)

    async def amend(self, part: dict[str, Any]) -> bool:
        """Say what of the appliances is other."""
        self._engine.amend(part)
        return True

    async def step(self, heard: list[dict[str, Any]], missed: list[str], now: float) -> Work:
        """Return what is to be done."""
        for report in heard:
            self._engine.hear(report, now)
        for vm in missed:
            self._engine.miss(vm, now)
        return self._engine.work(now)

    async def inventory(self) -> bytes:
        """Return nothing: it has no disk."""
        return b"null"

    async def close(self) -> None:
        """Nothing is to be let go."""


class _Said(Struct, frozen=True):
    """What an appliance answers; each row and action in it is checked where it is written."""

    error: str = ""
    polls: list[str] = []
    states: list[dict[str, Any]] = []
    actions: list[dict[str, Any]] = []
    next_at: float | None = None
    inventory: msgspec.Raw = msgspec.Raw(b"null")


class Away:
    """An engine in an appliance: the account's own VM, so nothing that it says is believed unchecked."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._unread = b""

    @classmethod
    async def open(cls, links: Links, host: str, appliance: str) -> Away:
        """Return the engine of an appliance's VM. Raises: Transient when it does not answer."""
        try:
            async with asyncio.timeout(ANSWER_S):
                return cls(await links.connect(host, appliance, ADDRESS, PORT))
        except (TimeoutError, Conflict) as failed:
            raise Transient("its appliance does not answer yet", code="no-answer") from failed

    async def configure(self, document: dict[str, Any]) -> None:
        """Say what is watched. Raises: Transient."""
        await self._ask({"configure": document})

    async def amend(self, part: dict[str, Any]) -> bool:
        """Say what of the appliances is other; False for an engine that does not understand it. Raises: Transient."""
        return await self._ask_newer({"amend": part}) is not None

    async def step(self, heard: list[dict[str, Any]], missed: list[str], now: float) -> Work:
        """Return what is to be done. Raises: Transient."""
        said = await self._ask({"heard": heard, "missed": missed, "now": now})
        next_at = said.next_at if said.next_at is not None and math.isfinite(said.next_at) else math.inf
        return Work(said.polls[:ITEMS_MAX], said.states[:ITEMS_MAX], said.actions[:ITEMS_MAX], next_at)

    async def inventory(self) -> bytes:
        """Return what its disk kept. Raises: Transient."""
        said = await self._ask_newer({"inventory": True})
        return bytes(said.inventory) if said is not None else b"null"

    async def close(self) -> None:
        """End the connection."""
        await self._connection.close()

    async def _ask_newer(self, question: dict[str, Any]) -> _Said | None:
        """Return the answer; None: it refuses, as an image does that is older than the question. Raises: Transient."""
        try:
            return await self._ask(question)
        except Transient as failed:
            if failed.code != "refused":
                raise
            return None

    async def _ask(self, question: dict[str, Any]) -> _Said:
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._connection.write(msgspec.json.encode(question) + b"\n")
                said = msgspec.json.decode(await self._line(), type=_Said)
        except TimeoutError:
            raise Transient(f"its appliance did not answer within {ANSWER_S:.0f} s", code="no-answer") from None
        except (msgspec.DecodeError, RecursionError) as wrong:
            raise Transient(f"its appliance talks nonsense: {str(wrong)[:200]}", code="nonsense") from None
        if said.error:
            raise Transient(f"its appliance refuses: {said.error[:200]}", code="refused")
        return said

    async def _line(self) -> bytes:
        """Return the next line. Raises: Transient when it ends before, or is too long."""
        parts, length = [self._unread], len(self._unread)
        while b"\n" not in parts[-1]:
            more = await self._connection.read()
            length += len(more)
            if not more or length > LINE_BYTES_MAX:
                words = "says too much at once" if more else "ended the connection"
                raise Transient(f"its appliance {words}", code="no-answer")
            parts.append(more)
        line, _, self._unread = b"".join(parts).partition(b"\n")
        return line
