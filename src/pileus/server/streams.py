"""Answers that stay open: server-sent watches, and the WebSockets of agents and consoles.

Each ends when the caller goes, when the caller's rights change, or when the server stops, whichever comes first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

from starlette.types import Receive, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from pileus.kernel.errors import Transient
from pileus.server.links import Duplex
from pileus.server.problems import TooMany

OPEN_MAX = 100
"""Streams that one user may hold open at once."""
SEND_S = 60.0
"""A reader that takes nothing for this long is given up."""
CLOSE_S = 5.0
"""A caller that takes nothing is left without a goodbye after this long."""
NORMAL, GOING_AWAY, POLICY = 1000, 1001, 1008

WatchEvent = tuple[str, int, str]


class Streams:
    """What is open, so that it can be bounded and ended."""

    def __init__(self) -> None:
        self._closing = asyncio.Event()
        self._open: Counter[str] = Counter()

    def close(self) -> None:
        """End every stream: the server stops."""
        self._closing.set()

    async def closed(self) -> None:
        """Return when the server stops."""
        await self._closing.wait()

    @contextlib.contextmanager
    def one_of(self, user_id: str) -> Iterator[None]:
        """Count a stream of this user for the block. Raises: TooMany."""
        if self._open[user_id] >= OPEN_MAX:
            raise TooMany(f"this user has {OPEN_MAX} watches, consoles and connections open already; close some first")
        self._open[user_id] += 1
        try:
            yield
        finally:
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id]


async def first_of(*works: Coroutine[Any, Any, None]) -> None:
    """Return when the first of ``works`` ends or is cancelled, having ended the others. Raises: what it raises."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        if not task.cancelled():
            task.result()


async def send_events(events: AsyncIterator[WatchEvent], send: Send) -> None:
    """Send a text/event-stream of ``events``; ``idle`` becomes a comment that shows the stream lives."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")],
        }
    )
    async for event, revision, text in events:
        record = ": idle\n\n" if event == "idle" else f"event: {event}\nid: {revision}\ndata: {text}\n\n"
        async with asyncio.timeout(SEND_S):
            await send({"type": "http.response.body", "body": record.encode(), "more_body": True})


async def until_gone(receive: Receive) -> None:
    """Return when the caller of an open HTTP answer has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


class AgentChannel:
    """An agent's WebSocket as a ``links.Channel``."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def receive(self) -> bytes | None:
        """Return the next message; None once closed, also for text, which no agent sends."""
        try:
            message = await self._websocket.receive()
        except (WebSocketDisconnect, RuntimeError):  # RuntimeError: asked again after the end
            return None
        content = message.get("bytes")
        return content if message["type"] == "websocket.receive" and isinstance(content, bytes) else None

    async def send(self, message: bytes) -> None:
        """Send a message. Raises: Transient."""
        try:
            await self._websocket.send_bytes(message)
        except (WebSocketDisconnect, RuntimeError, OSError) as error:
            raise Transient("the agent's connection is closed") from error


async def pump_console(websocket: WebSocket, console: Duplex) -> None:
    """Carry bytes between a caller's WebSocket and a console until either ends."""

    async def typed() -> None:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            content = message.get("bytes")
            await console.write(content if content is not None else message["text"].encode())

    async def shown() -> None:
        while content := await console.read():
            async with asyncio.timeout(SEND_S):
                await websocket.send_bytes(content)

    with contextlib.suppress(WebSocketDisconnect, TimeoutError):
        await first_of(typed(), shown())


async def close(websocket: WebSocket, code: int, reason: str) -> None:
    """Close a WebSocket that may be closed already."""
    if WebSocketState.DISCONNECTED in (websocket.client_state, websocket.application_state):
        return
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await websocket.close(code, reason[:100])
