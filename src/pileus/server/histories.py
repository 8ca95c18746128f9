"""Routes of histories that are pulled: what waits is read by whoever may, and forgotten when somebody keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pileus.kernel.clock import iso
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.reading import Call
from pileus.kernel.store import statements as sql
from pileus.kernel.transaction import Transaction
from pileus.monitor.history.controller import taken
from pileus.monitor.history.types import HistoryAssigned
from pileus.server.content import note
from pileus.server.parts import Parts
from pileus.server.query import COMMON, Query, answer_json, call, ident
from pileus.server.resources import REVISION_MAX

HISTORY = "monitor.history"
SHOWN = ("monitor.state", "monitor.action")
"""What entries tell of: whoever reads them must be allowed to read these."""
ENTRIES_MAX = 500
BODIES_CHARS = 1_000_000
"""Of one answer, as soon as it has an entry."""


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

        async def read(tx: Transaction) -> tuple[Resource, Sequence[Any], str]:
            rows = await tx.statement(sql.JOURNAL_AFTER, stream=history.id, after=after, n=max(limit, 1))
            return await tx.get(history.id), rows, iso(tx.now)

        # In one transaction: what was taken or dropped is said as it was for these entries.
        found, rows, at = await self._parts.store.write(read)
        assigned: HistoryAssigned = found.assigned
        items = [{"seq": seq, "at": at, "kind": kind, "body": _raw(body)} for seq, at, kind, body in _fitting(rows)]
        about = {"stream": found.id, "at": at, "taken": assigned.taken, "dropped": assigned.dropped}
        return Response(answer_json({**about, "items": items}), media_type="application/json")

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


def _fitting(rows: Sequence[Any]) -> Sequence[Any]:
    left = BODIES_CHARS
    for index, row in enumerate(rows):
        left -= len(row[3])
        if left < 0 and index:
            return rows[:index]
    return rows


def _raw(body: str) -> msgspec.Raw:
    return msgspec.Raw(body.encode())
