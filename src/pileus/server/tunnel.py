"""A connection to a VM's port: the call of a host's agent that carries it, and the WebSocket of who asked for it.

On the WebSocket, a binary message is bytes, an empty one the end of that direction; a text message is a number: so many
bytes more may be sent the other way. Neither side sends before it was allowed to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from starlette.websockets import WebSocket, WebSocketDisconnect

from pileus.kernel.errors import Conflict, PileusError, Transient
from pileus.kernel.flow import Duplex, Flow, carry
from pileus.kernel.stream import Call, Chunk, End, Window, encode
from pileus.server.links import Channel
from pileus.server.problems import TooMany
from pileus.server.streams import first_of

CONNECT_S = 15.0
"""The appliance itself gives up after 10 s."""
GRANT_DIGITS_MAX = 10


class Tunnel(Flow):
    """A call ``connect`` or ``disk`` of an agent."""

    def __init__(self, number: int, channel: Channel, forget: Callable[[], object]) -> None:
        super().__init__(self._send_part, self._send_grant)
        self._number = number
        self._channel = channel
        self._forget = forget

    async def _send_part(self, part: bytes) -> None:
        await self._channel.send(encode(Chunk(number=self._number, part=part)))

    async def _send_grant(self, more_bytes: int) -> None:
        await self._channel.send(encode(Window(number=self._number, more_bytes=more_bytes)))

    def take(self, frame: Chunk | Window | End) -> None:
        """Take what the agent sent; it waits for nobody."""
        match frame:
            case Chunk():
                with contextlib.suppress(Transient):  # whoever reads is told
                    self.arrived(frame.part)
            case Window():
                self.granted(frame.more_bytes)
            case End():
                self.ended(_refusal(frame))

    async def open(self, appliance: str, address: str, port: int) -> None:
        """Let the agent connect. Raises: Transient, Conflict (connect-refused), TooMany."""
        await self._begin(
            Call(number=self._number, verb="connect", id=appliance, arguments={"address": address, "port": port}),
            "the host of the router",
        )

    async def open_disk(self, volume: str) -> None:
        """Let the agent send a volume. Raises: Transient, TooMany."""
        await self._begin(Call(number=self._number, verb="disk", id=volume), "the volume's host")

    async def _begin(self, call: Call, host: str) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._channel.send(encode(call))
                await self.start()
                await self.opened()
        except TimeoutError:
            await self.close()
            raise Transient(f"{host} did not answer in time; try again", code="no-answer") from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End it; ended already: nothing. What is on its way reaches the VM if both directions had ended."""
        self._forget()
        if not self._over:
            end = End(number=self._number, code="" if self.done else "closed")
            self.ended()
            with contextlib.suppress(Transient):
                await self._channel.send(encode(end))


async def serve(websocket: WebSocket, tunnel: Duplex) -> None:
    """Carry bytes between an accepted WebSocket and a VM until both directions ended or the caller went.

    Raises: Transient when the way to the VM broke.
    """

    async def grant(more_bytes: int) -> None:
        await websocket.send_text(str(more_bytes))

    flow = Flow(websocket.send_bytes, grant)
    with contextlib.suppress(WebSocketDisconnect):
        await flow.start()
        await first_of(_receive(websocket, flow), carry(flow, tunnel))


async def _receive(websocket: WebSocket, flow: Flow) -> None:
    """Take messages until the caller goes, however slowly the VM reads: so its pings are answered. Raises: Transient."""
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        content, text = message.get("bytes"), message.get("text") or ""
        if content is not None:
            flow.arrived(content)
        elif text.isascii() and text.isdigit() and len(text) <= GRANT_DIGITS_MAX:
            flow.granted(int(text))
        else:
            raise Transient("a text message must be a number of bytes", code="overrun")


def _refusal(end: End) -> PileusError | None:
    """Return what the agent's end of a call means; None when it ended well."""
    match end.code:
        case "":
            return None
        case "ConnectRefused":
            return Conflict(end.error, code="connect-refused")
        case "NodeSilent":
            return Transient(end.error, code="node-silent")
        case "busy":
            return TooMany(end.error)
        case _:
            return Transient(end.error, code="host-refused")
