"""The HTTP application: which path leads where. Everything else about a request is decided by what it leads to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router, WebSocketRoute
from starlette.types import Receive, Scope, Send

import pileus
from pileus.kernel.errors import NotFound, Transient
from pileus.kernel.kind import Kind
from pileus.kernel.store import statements as sql
from pileus.server.content import Content
from pileus.server.disks import Disks
from pileus.server.edge import Edge
from pileus.server.entrance import Entrance
from pileus.server.histories import Histories
from pileus.server.mirrors import Mirrors
from pileus.server.openapi import openapi
from pileus.server.parts import Parts
from pileus.server.payloads import Payloads
from pileus.server.query import answer_json
from pileus.server.resources import Resources
from pileus.server.usage import UsageRoutes

FEATURES = (
    "audit",
    "connect",
    "console",
    "download",
    "dry-run",
    "history-entries",
    "idempotency-key",
    "join-token",
    "merge-patch",
    "metering",
    "request-payload",
    "resumable-upload",
    "upload",
    "usage",
    "watch",
)
"""What this server can do; a word never changes its meaning."""
HEALTH_S = 2.0


def build(parts: Parts) -> Edge:
    """Return the application over ``parts``."""
    return Edge(Router(_routes(parts), redirect_slashes=False, default=_nothing))


def _routes(parts: Parts) -> list[BaseRoute]:
    meta, resources, content, entrance = Meta(parts), Resources(parts), Content(parts), Entrance(parts)
    payloads, disks, histories = Payloads(parts), Disks(parts), Histories(parts)
    return [
        # First what is asked most: routes are tried in this order.
        _route(
            "/v1/{kind}/{ident}",
            GET=resources.get,
            PUT=resources.replace,
            PATCH=resources.patch,
            DELETE=resources.delete,
        ),
        Route("/healthz", meta.health),
        Route("/schema", meta.schema),
        Route("/v1", meta.version),
        Route("/v1/whoami", meta.whoami),
        Route("/v1/event", resources.events),
        Route("/v1/audit", resources.audit),
        Route("/v1/usage", UsageRoutes(parts).usage),
        WebSocketRoute("/agent/v1/stream", entrance.stream),
        Route("/agent/v1/ca", entrance.authority),
        Route("/agent/v1/join", entrance.join, methods=["POST"]),
        Route("/agent/v1/renew", entrance.renew, methods=["POST"]),
        Route("/agent/v1/image/{image}/{part}", entrance.image),
        Route("/agent/v1/content/{ident}/{part}", entrance.content),
        WebSocketRoute("/v1/compute.vm/{ident}/console", content.console),
        WebSocketRoute("/v1/compute.vm/{ident}/connect", content.connect),
        WebSocketRoute("/v1/mirror.session/{ident}/packets", Mirrors(parts).packets),
        Route("/v1/compute.vm/{ident}/log", content.log),
        Route("/v1/infra.host/{ident}/join-token", entrance.join_token, methods=["POST"]),
        _route("/v1/{kind}", GET=resources.list, POST=resources.create),
        Route("/v1/{kind}/{ident}/events", resources.events_of),
        Route("/v1/{kind}/{ident}/counters", resources.counters),
        Route("/v1/{kind}/{ident}/usage", resources.usage),
        _route(
            "/v1/storage.image/{ident}/{part}",
            PUT=content.upload,
            PATCH=content.append,
            HEAD=content.offset,
        ),
        Route("/v1/storage.volume/{ident}/content", disks.content),
        Route("/v1/fleet.node/{ident}/document", content.document),
        _route("/v1/fleet.request/{ident}/payload", GET=payloads.payload, PUT=payloads.upload),
        Route("/v1/fleet.request/{ident}/answer", payloads.answer),
        _route("/v1/monitor.history/{ident}/entries", GET=histories.entries, DELETE=histories.taken),
    ]


def _route(path: str, **by_method: Callable[[Request], Awaitable[Response]]) -> Route:
    """Return one route for several methods, so that a refusal can name all of them."""

    async def endpoint(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" and "GET" in by_method else request.method
        return await by_method[method](request)

    return Route(path, endpoint, methods=list(by_method))


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotFound("there is nothing at this path; GET /v1 lists the kinds and /schema the paths")


class Meta:
    """What the server says about itself."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._version = answer_json(
            {
                "version": pileus.__version__,
                "features": FEATURES,
                "kinds": [
                    {"name": kind.name, "summary": kind.summary, "scope": kind.scope, "verbs": _verbs(kind)}
                    for kind in parts.registry
                ],
            }
        )
        self._schema = answer_json(openapi(parts.registry))

    async def health(self, request: Request) -> Response:
        """``GET /healthz``: 200 while the database answers."""
        try:
            async with asyncio.timeout(HEALTH_S):
                await self._parts.store.fetch(sql.NEWEST)
        except TimeoutError:
            raise Transient("the database does not answer", code="database-unavailable") from None
        return _json(b'{"status":"ok"}')

    async def version(self, request: Request) -> Response:
        """``GET /v1``."""
        return _json(self._version)

    async def schema(self, request: Request) -> Response:
        """``GET /schema``."""
        return _json(self._schema)

    async def whoami(self, request: Request) -> Response:
        """``GET /v1/whoami``."""
        principal = await self._parts.principal(request)
        return _json(
            answer_json(
                {
                    "user": "" if principal.manager_id else principal.user,
                    "manager": principal.user if principal.manager_id else "",
                    "consents": sorted(principal.consents),
                    "account": principal.account,
                    "account_id": principal.account_id,
                    "role": principal.role,
                    "rules": principal.rules,
                }
            )
        )


def _verbs(kind: Kind) -> list[str]:
    return ["get"] if kind.created_by == "kernel" else ["get", "create", "update", "delete"]


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")
