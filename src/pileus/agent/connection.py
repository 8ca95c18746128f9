"""The agent's connection to a server: a WebSocket over mutual TLS, and images over HTTPS with the same certificate."""

from __future__ import annotations

import asyncio
import http.client
import ssl
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from pileus.kernel.errors import Rejected, Transient

OPEN_TIMEOUT_S = 15.0
FRAME_BYTES_MAX = 64 * 2**20
PIECE_BYTES = 2**20


class WebSocketChannel:
    """One open connection."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def receive(self) -> bytes | None:
        """Return the next frame; None once the connection is closed."""
        try:
            frame = await self._connection.recv(decode=False)
        except ConnectionClosed:
            return None
        return bytes(frame)

    async def send(self, message: bytes) -> None:
        """Send a frame. Raises: Transient when the connection is closed."""
        try:
            await self._connection.send(message)
        except ConnectionClosed as error:
            raise Transient("the connection to the server is closed") from error

    async def close(self) -> None:
        """Close it."""
        await self._connection.close()


class Connector:
    """Opens connections to one server address (a load balancer may stand behind it)."""

    def __init__(self, server: str, context: ssl.SSLContext) -> None:
        self._server = server
        self._context = context

    async def open(self) -> WebSocketChannel:
        """Return a connection. Raises: Transient, Rejected when the certificate is refused."""
        url = self._server.replace("https://", "wss://") + "/agent/v1/stream"
        try:
            connection = await connect(
                url,
                ssl=self._context,
                compression=None,
                max_size=FRAME_BYTES_MAX,
                open_timeout=OPEN_TIMEOUT_S,
                ping_interval=10,
                ping_timeout=15,
                proxy=None,
            )
        except InvalidStatus as error:
            if 400 <= error.response.status_code < 500:
                raise Rejected("the server refuses this agent; join again with `pileus join-token HOST`") from error
            raise Transient(f"the server at {self._server} answers {error.response.status_code}") from error
        except (OSError, InvalidHandshake, TimeoutError) as error:
            raise Transient(f"no server answers at {self._server}: {error}") from error
        return WebSocketChannel(connection)

    async def image(self, id: str, part: str) -> AsyncIterator[bytes]:
        """Yield a part of an image. Raises: Transient."""
        async for piece in self._get(f"/agent/v1/image/{id}/{part}"):
            yield piece

    async def content(self, id: str, part: str) -> AsyncIterator[bytes]:
        """Yield bytes that the server keeps of a resource. Raises: Transient."""
        async for piece in self._get(f"/agent/v1/content/{id}/{part}"):
            yield piece

    async def _get(self, path: str) -> AsyncIterator[bytes]:
        address = urlsplit(self._server)
        connection = http.client.HTTPSConnection(
            address.hostname or "", address.port or 443, context=self._context, timeout=OPEN_TIMEOUT_S
        )
        try:
            answer = await asyncio.to_thread(_get, connection, path)
            while piece := await asyncio.to_thread(answer.read, PIECE_BYTES):
                yield piece
        except (OSError, http.client.HTTPException) as error:
            raise Transient(f"{path} could not be fetched from {self._server}: {error}") from error
        finally:
            connection.close()


def _get(connection: http.client.HTTPSConnection, path: str) -> http.client.HTTPResponse:
    connection.request("GET", path)
    answer = connection.getresponse()
    if answer.status != 200:
        raise Transient(f"the server does not give {path}: it answers {answer.status}")
    return answer
