"""The edge: every request gets an id, security headers, an answer for whatever is raised, and one log record."""

from __future__ import annotations

import secrets
import time
from typing import Any

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pileus.kernel.access import Principal
from pileus.kernel.errors import Denied
from pileus.server import problems

log = structlog.get_logger()

HEADERS = [
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"strict-transport-security", b"max-age=31536000"),
    (b"x-content-type-options", b"nosniff"),
]
PRINCIPAL = "pileus.principal"
"""The scope's key for who called, once that is known."""
REQUEST_ID = "pileus.request"
PATH_LOGGED_MAX = 200
REFUSED_PER_S = 20
"""Records of callers without identity in one second; the rest are only counted, so that a flood fills no disk."""


class Edge:
    """Wraps the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._window, self._in_window, self._unlogged = 0, 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return
        answer = _Answer(scope, send)
        scope[REQUEST_ID] = answer.request_id
        scope["app"] = self
        started = time.perf_counter()
        error: BaseException | None = None
        try:
            _refuse_other_origin(scope)
            await self._app(scope, receive, answer.send)
        except ClientDisconnect:
            answer.status = answer.status or 499
        except Exception as raised:  # whatever fails, the caller gets an answer and the server goes on
            error = raised
            if problems.of(raised) is None:
                log.exception("defect while answering", request=answer.request_id)
            await answer.problem(raised, receive)
        finally:
            self._record(scope, answer, time.perf_counter() - started, error)

    def _record(self, scope: Scope, answer: _Answer, took_s: float, error: BaseException | None) -> None:
        principal: Principal | None = scope.get(PRINCIPAL)
        if principal is None and answer.status >= 400 and not self._may_log():
            return
        known = problems.of(error) if error is not None else None
        client = scope.get("client")
        log.info(
            "request",
            request=answer.request_id,
            method=scope.get("method", "WEBSOCKET"),
            path=scope.get("raw_path", scope["path"].encode()).decode("latin-1")[:PATH_LOGGED_MAX],
            status=answer.status,
            code=known.code if known else "",
            ms=round(took_s * 1000, 2),
            bytes=answer.bytes,
            user=principal.actor if principal else "",
            account=principal.account if principal else "",
            address=client[0] if client else "",
        )

    def _may_log(self) -> bool:
        second = int(time.monotonic())
        if second != self._window:
            if self._unlogged:
                log.warning("refused requests without identity, not logged one by one", number=self._unlogged)
            self._window, self._in_window, self._unlogged = second, 0, 0
        self._in_window += 1
        if self._in_window <= REFUSED_PER_S:
            return True
        self._unlogged += 1
        return False


class _Answer:
    """The answer as it goes out: adds headers, counts bytes, and can still become a problem before it begins."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.request_id = secrets.token_hex(8)
        self.status = 0
        self.bytes = 0
        self._scope = scope
        self._send = send
        self._ended = False

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            headers = [*message.get("headers", ()), *HEADERS, (b"x-request-id", self.request_id.encode())]
            message = {**message, "headers": headers}
        elif kind == "http.response.body":
            self.bytes += len(message.get("body", b""))
            self._ended = not message.get("more_body", False)
        elif kind == "websocket.accept":
            self.status = 101
        elif kind == "websocket.close":
            self._ended = True
        await self._send(message)

    async def problem(self, raised: BaseException, receive: Receive) -> None:
        """Answer with what was raised, if that is still possible; else cut the answer short."""
        if self._ended:
            return
        error = problems.of(raised)
        if self.status == 0:
            headers: dict[str, str] = dict(getattr(raised, "headers", None) or {})
            response = problems.response(error, self.request_id, headers)
            scope: dict[str, Any] = dict(self._scope)
            await response(scope, receive, self.send)
        elif self._scope["type"] == "websocket":
            reason = (error.message if error else "the server failed")[:100]
            await self.send({"type": "websocket.close", "code": 1011, "reason": reason})
        else:
            raise raised  # uvicorn closes the connection: the caller sees that the answer is not whole


def _refuse_other_origin(scope: Scope) -> None:
    """Raises: Denied for a browser's request from another site's page."""
    origin = host = None
    for name, value in scope["headers"]:
        if name == b"origin":
            origin = value
        elif name == b"host":
            host = value
    if origin is not None and origin != b"https://" + (host or b""):
        raise Denied("requests from pages of other sites are refused", code="other-origin")
