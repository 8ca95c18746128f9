"""The generic routes: any kind, over the kernel's surface."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pileus.infra.host import types as host_types
from pileus.kernel.clock import iso
from pileus.kernel.errors import NotFound
from pileus.kernel.quota import space
from pileus.kernel.reading import Answer, Call
from pileus.kernel.store import statements as sql
from pileus.server import bodies
from pileus.server.parts import Parts
from pileus.server.query import COMMON, LIST, Query, answer_json, call, ident, kind
from pileus.server.streams import WatchEvent, first_of, send_events, until_gone
from pileus.tenancy.vdc.types import Quota

REVISION_MAX = 2**62
EVENTS_PAGE = 1000
IDLE_S = 15.0
LIMITS: dict[str, tuple[str, ...]] = {
    "tenancy.vdc": Quota.__struct_fields__,
    host_types.KIND.name: ("vcpus", "memory_mib"),
    "storage.pool": ("disk_gib",),
}
"""Kinds with limits, and the words of their budgets."""


class Resources:
    """Routes of ``/v1/{kind}`` and below."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def list(self, request: Request) -> Response:
        """``GET /v1/{kind}``: a page, or with ``watch=1`` a stream."""
        principal = await self._parts.principal(request)
        query = Query(request, LIST)
        asked, filters = call(request, query), query.list_query()
        if not query.flag("watch"):
            return _json(await self._parts.surface.list(asked, kind(request), filters))
        since = query.number("since", 0, REVISION_MAX) if query.text("since") else None
        # Asked once as a list, so that what is wrong with it is an answer and not the end of a stream.
        await self._parts.surface.list(asked, kind(request), msgspec.structs.replace(filters, limit=1))
        events = self._parts.surface.watch(asked, kind(request), filters, since)
        return _Watch(self._parts, asked, request.headers["authorization"], events, principal.user_id)

    async def create(self, request: Request) -> Response:
        """``POST /v1/{kind}``."""
        await self._parts.principal(request)
        query = Query(request, (*COMMON, "dry_run"))
        asked = call(request, query, dry_run=query.flag("dry_run"))
        return _json(await self._parts.surface.create(asked, kind(request), await bodies.read(request)))

    async def get(self, request: Request) -> Response:
        """``GET /v1/{kind}/{ident}``."""
        asked = await self._asked(request)
        return _json(await self._parts.surface.get(asked, kind(request), ident(request)))

    async def replace(self, request: Request) -> Response:
        """``PUT /v1/{kind}/{ident}``."""
        asked = await self._asked(request)
        return _json(
            await self._parts.surface.replace(asked, kind(request), ident(request), await bodies.read(request))
        )

    async def patch(self, request: Request) -> Response:
        """``PATCH /v1/{kind}/{ident}``."""
        asked = await self._asked(request)
        return _json(await self._parts.surface.patch(asked, kind(request), ident(request), await bodies.read(request)))

    async def delete(self, request: Request) -> Response:
        """``DELETE /v1/{kind}/{ident}``."""
        asked = await self._asked(request)
        return _json(await self._parts.surface.delete(asked, kind(request), ident(request)))

    async def events_of(self, request: Request) -> Response:
        """``GET /v1/{kind}/{ident}/events``."""
        await self._parts.principal(request)
        query = Query(request, (*COMMON, "since", "limit"))
        asked = call(request, query)
        resource = await self._parts.surface.row(asked, kind(request), ident(request))
        since, limit = query.number("since", 0, REVISION_MAX), query.number("limit", 100, EVENTS_PAGE)
        return _json(await self._parts.surface.events(asked, resource, since, limit))

    async def events(self, request: Request) -> Response:
        """``GET /v1/event``: a page of the newest, or with ``watch=1`` a stream."""
        principal = await self._parts.principal(request)
        query = Query(request, (*COMMON, "since", "limit", "watch"))
        asked = call(request, query)
        since, limit = query.number("since", 0, REVISION_MAX), query.number("limit", 100, EVENTS_PAGE)
        answer = await self._parts.surface.events(asked, None, since, limit)
        if not query.flag("watch"):
            return _json(answer)
        events = self._follow_events(asked, since)
        return _Watch(self._parts, asked, request.headers["authorization"], events, principal.user_id)

    async def audit(self, request: Request) -> Response:
        """``GET /v1/audit``."""
        await self._parts.principal(request)
        query = Query(request, (*COMMON, "limit"))
        return _json(await self._parts.surface.audit(call(request, query), query.number("limit", 100, EVENTS_PAGE)))

    async def counters(self, request: Request) -> Response:
        """``GET /v1/{kind}/{ident}/counters``: the latest that the host reported."""
        resource = await self._parts.surface.row(await self._asked(request), kind(request), ident(request))
        sample = await self._parts.store.sample(resource.id)
        at, counters = (iso(sample[0]), msgspec.Raw(sample[1].encode())) if sample else (None, msgspec.Raw(b"{}"))
        return _own({"at": at, "counters": counters})

    async def usage(self, request: Request) -> Response:
        """``GET /v1/{kind}/{ident}/usage``: each limit, what is used of it and how much there is."""
        resource = await self._parts.surface.row(await self._asked(request), kind(request), ident(request))
        if resource.kind not in LIMITS:
            raise NotFound(f"a {resource.kind} has no limits; {', '.join(LIMITS)} have", code="no-limits")
        limits = []
        for word in LIMITS[resource.kind]:
            rows = await self._parts.store.fetch(sql.BUDGET, space=space(resource.id, word))
            capacity, used = (rows[0][0], rows[0][1]) if rows else (0, 0)
            limits.append({"name": word, "used": used, "capacity": capacity})
        return _own({"limits": limits})

    async def _asked(self, request: Request) -> Call:
        await self._parts.principal(request)
        return call(request, Query(request, COMMON))

    async def _follow_events(self, asked: Call, since: int) -> AsyncIterator[WatchEvent]:
        with self._parts.hub.watch(("all", "")) as changes:
            while True:
                answer = await self._parts.surface.events(asked, None, since, EVENTS_PAGE)
                for item in msgspec.json.decode(answer.body)["items"]:
                    since = max(since, item["seq"])
                    yield "put", item["seq"], msgspec.json.encode(item).decode()
                if not await changes.wait(IDLE_S):
                    yield "idle", since, "{}"


class _Watch(Response):
    """A stream of server-sent events that ends with the caller, the caller's rights, or the server."""

    def __init__(
        self, parts: Parts, asked: Call, authorization: str, events: AsyncIterator[WatchEvent], user_id: str
    ) -> None:
        super().__init__()
        self._parts, self._asked, self._authorization = parts, asked, authorization
        self._events, self._user_id = events, user_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._parts.streams.one_of(self._user_id):
            await first_of(
                send_events(self._events, send),
                until_gone(receive),
                self._parts.auth.until_changed(self._authorization, self._asked.principal),
                self._parts.streams.closed(),
            )
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _json(answer: Answer) -> Response:
    return Response(answer.body.encode(), answer.status, media_type="application/json")


def _own(value: Any) -> Response:
    return Response(answer_json(value), media_type="application/json")
