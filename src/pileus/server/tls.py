"""TLS on the one port: people by server certificate alone, agents also by a client certificate of the cluster.

Uvicorn does not hand the client's certificate to the application; two small protocol classes do. The HTTP one also
bounds what a peer that has not shown who it is can hold: the size of a head, and the time for one.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

from msgspec import Struct
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

HEAD_BYTES_MAX = 32_768
"""Request line and headers together."""
HEAD_S = 10.0
"""From the first byte of a request (or the connection's start) to the end of its head."""
LINGER_S = 5.0
"""How long the rest of a body is read and thrown away after an early answer, so that the peer can read that answer."""

CERTIFICATE = "pileus.certificate"
"""The key in the ASGI scope under which a ``PeerCertificate`` lies."""


class PeerCertificate(Struct, frozen=True):
    """A client certificate that the TLS layer has verified against the cluster's authority."""

    der: bytes
    uris: tuple[str, ...]


def server_context(folder: Path) -> ssl.SSLContext:
    """Return the context of the files in ``folder``: TLS 1.2 or newer, client certificates optional."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cafile=folder / "ca.crt")
    context.set_alpn_protocols(["http/1.1"])
    load_certificate(context, folder)
    return context


def load_certificate(context: ssl.SSLContext, folder: Path) -> None:
    """Use the server certificate in ``folder`` for new connections."""
    context.load_cert_chain(folder / "server.pem")


def _peer(transport: asyncio.BaseTransport) -> PeerCertificate | None:
    connection: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    if connection is None:
        return None
    der = connection.getpeercert(True)
    known: dict[str, Any] = connection.getpeercert() or {}
    if not der:
        return None
    return PeerCertificate(der, tuple(value for type_, value in known.get("subjectAltName", ()) if type_ == "URI"))


def _with_peer(app: Any, transport: asyncio.BaseTransport) -> Any:
    """Return ``app`` as called with the connection's certificate in its scope; ``app`` itself without one."""
    peer = _peer(transport)
    if peer is None:
        return app

    async def call(scope: dict[str, Any], receive: Any, send: Any) -> None:
        scope[CERTIFICATE] = peer
        await app(scope, receive, send)

    return call


class Http(HttpToolsProtocol):
    """HTTP/1.1 with the client certificate in the scope and bounded heads."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_bytes = 0
        self._in_head = True
        self._in_body = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app = _with_peer(self.app, transport)
        self._arm(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_BYTES_MAX:
            self._refuse_head()
        if self._deadline is None and self._idle:
            self._arm(HEAD_S)  # bytes that begin no request must not keep the connection

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._in_body = True, True
        self._arm(HEAD_S)

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > HEAD_BYTES_MAX:
            raise ValueError("head too large")  # becomes a 400 and the end of the connection
        self._in_head, self._head_bytes = False, 0
        self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_body = False
        self._disarm()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body:
            self._arm(LINGER_S)

    @property
    def _idle(self) -> bool:
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self._in_body and self in self.connections and self.timeout_keep_alive_task is None

    def _refuse_head(self) -> None:
        self._in_head = False
        if not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def _arm(self, after_s: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(after_s, self.timeout_keep_alive_handler)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class WebSocket(WebSocketsSansIOProtocol):
    """A WebSocket with the client certificate in the scope."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.app = _with_peer(self.app, transport)
