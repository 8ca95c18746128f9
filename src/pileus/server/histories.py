"""Routes of histories that are pulled: what waits is read by whoever may, and forgotten when somebody keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pileus.kernel.clock import iso
from pileus.kernel.errors import Conflict, Invalid, Transient
from pileus.kernel.kind import Resource
from pileus.kernel.reading import Call
from pileus.kernel.store import statements as sql
from pileus.kernel.transaction import Transaction
from pileus.monitor.history.controller import fitting, taken
from pileus.monitor.history.types import HistoryAssigned
from pileus.server.content import note
from pileus.server.parts import Parts
from pileus.server.query import COMMON, Query, answer_json, call, ident
from pileus.server.resources import REVISION_MAX

HISTORY = "monitor.history"
SHOWN = ("monitor.state", "monitor.action")
"""What entries tell of: whoever reads them must be allowed to read these."""
ENTRIES_MAX = 500
TRIES = 10
"""When somebody else's entries are taken between two looks."""


class Histories:
    """Routes below ``/v1/monitor.history/{ident}``."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def entries(self, request: Request) -> Response:
        """``GET /v1/monitor.history/{ident}/entries``: the oldest after ``after``, and what is not there any more."""
        principal = await self._parts.principal(request)
        query = Query(request, (*COMMON, "after", "limit"))
        asked = call(request, query)
        for kind in SHOWN:
            principal.require("get", kind)
        after, limit = query.number("after", 0, REVISION_MAX), query.number("limit", ENTRIES_MAX, ENTRIES_MAX)
        history = await self._pulled(asked, request, "get")
        found, rows, at = await self._read(history, after, max(limit, 1))
        assigned: HistoryAssigned = found.assigned
        items = [
            {"seq": seq, "at": noted_at, "kind": kind, "body": _raw(body)}
            for seq, noted_at, kind, body in fitting(rows)
        ]
        about = {"stream": found.id, "at": at, "taken": assigned.taken, "dropped": assigned.dropped}
        return Response(answer_json({**about, "items": items}), media_type="application/json")

    async def _read(self, history: Resource, after: int, limit: int) -> tuple[Resource, Sequence[Any], str]:
        """Return the history as it was for these entries, the entries, and when. Outside a transaction: they may be long."""
        store = self._parts.store
        for _ in range(TRIES):
            before: HistoryAssigned = (await store.get(history.id)).assigned
            at = iso(store.clock())
            rows = await store.fetch(sql.JOURNAL_AFTER, stream=history.id, after=after, n=limit)
            found = await store.get(history.id)
            if (before.taken, before.dropped) == (found.assigned.taken, found.assigned.dropped):
                return found, rows, at
        raise Transient(f"others pull {history} all the time; try again")

    async def taken(self, request: Request) -> Response:
        """``DELETE /v1/monitor.history/{ident}/entries``: they are kept elsewhere up to ``until``; twice is no mistake.

        Takes the right to change the history: what is forgotten here nobody can pull any more.
        """
        await self._parts.principal(request)
        query = Query(request, (*COMMON, "until"))
        asked = call(request, query)
        until = query.number("until", 0, REVISION_MAX)
        if not until:
            raise Invalid("until must say the last entry that is kept", field="until")
        history = await self._pulled(asked, request, "update")

        async def write(tx: Transaction) -> None:
            await taken(tx, history, until)
            await note(tx, asked, "take", history)

        await self._parts.store.write(write)
        answer = await self._parts.surface.get(asked, HISTORY, history.id)
        return Response(answer.body.encode(), media_type="application/json")

    async def _pulled(self, asked: Call, request: Request, verb: str) -> Resource:
        history = await self._parts.surface.row(asked, HISTORY, ident(request), verb)
        if history.desired.form != "sqlite":
            raise Conflict(
                f"{history} is delivered to its PostgreSQL by the cloud; only one of form=sqlite is pulled",
                code="not-pulled",
            )
        return history


def _raw(body: str) -> msgspec.Raw:
    return msgspec.Raw(body.encode())
