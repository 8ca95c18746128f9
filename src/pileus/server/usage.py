"""Route of metered use: what an account used of what, when, and how much."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pileus.kernel.access import Principal
from pileus.kernel.clock import iso
from pileus.kernel.errors import Denied, Invalid
from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import PAGE
from pileus.kernel.times import parse_time
from pileus.metering.plan import HOUR_S, Period, Sheet, Whose, month_start
from pileus.server.parts import Parts
from pileus.server.query import COMMON, Query, answer_json, call

By = Literal["object", "account"]
PERIODS_MAX = 800
"""A month by hours, with some more."""
LINES_MAX = 20_000
PERIODS_AT_ONCE = 5_000
"""Sums before others have their turn: some ten milliseconds."""
RUNS_AT_ONCE = 10_000
"""Which one statement reads at most, whether they are of the time that is asked for or of years before."""
ID_END = "z"
"""After all ids, which are UUIDs."""
METERED = ("compute.vm", "storage.volume", "storage.snapshot", "storage.image", "gateway.address")


class UsageRoutes:
    """The route ``/v1/usage``."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def usage(self, request: Request) -> Response:
        """``GET /v1/usage``: use between ``since`` and ``until``, a line for each period and object or account.

        Left out, that is from the beginning of the month until now, in one. Only of kinds that the caller may get.
        Raises: Denied when there is none; Invalid.
        """
        principal = await self._parts.principal(request)
        query = Query(request, (*COMMON, "since", "until", "per", "by", "id"))
        asked = call(request, query)
        if principal.manager_id:
            raise Denied(f"{principal.actor} has no use of its own; the account's users see what its VMs use")
        if not any(principal.allows("get", kind) for kind in METERED):
            raise Denied(f"{principal.actor} (role {principal.role}) may not see use; ask for a role that may")
        is_all = principal.operator and (asked.all_accounts or not asked.account)
        account_id = None if is_all else (await self._parts.surface.scope(asked, self._parts.store)).id
        sheet = self._sheet(query)
        by: By = _choice(query, "by", By, "account" if is_all else "object")
        await self._add_all(sheet, account_id, principal, by, query.text("id"))
        return Response(answer_json(_answer(sheet)), media_type="application/json")

    async def _add_all(self, sheet: Sheet, account_id: str | None, principal: Principal, by: By, only: str) -> None:
        """Add what the caller may see of an account or of all; ``only``: of this object. Raises: Invalid."""
        met = 0
        async for whose, run in self._runs(account_id, sheet, principal):
            if only in ("", whose.id):
                met += sheet.add_run(_named(whose, by), *run)
                _bound(sheet)
            if met > PERIODS_AT_ONCE:
                met = 0
                await asyncio.sleep(0)
        async for whose, passed in self._traffic(account_id, sheet, principal):
            if only in ("", whose.id):
                sheet.add_traffic(_named(whose, by), *passed)
                _bound(sheet)

    def _sheet(self, query: Query) -> Sheet:
        now = self._parts.store.clock()
        until = min(_time(query, "until", now), now)
        since = _time(query, "since", month_start(until))
        if since >= until:
            raise Invalid(f"since ({iso(since)}) must be before until ({iso(until)}) and before now", field="since")
        per: Period = _choice(query, "per", Period, "all")
        shortest_s = {"hour": HOUR_S, "day": 24 * HOUR_S, "month": 28 * 24 * HOUR_S, "all": until - since}[per]
        if (until - since) / shortest_s > PERIODS_MAX:
            raise Invalid(f"that is more than {PERIODS_MAX} periods; ask for less time or longer ones", field="per")
        return Sheet(since, until, per)

    async def _runs(
        self, account_id: str | None, sheet: Sheet, principal: Principal
    ) -> AsyncIterator[tuple[Whose, tuple[float, float, dict[str, int]]]]:
        now = self._parts.store.clock()
        statement = sql.USAGE if account_id is None else sql.USAGE_ACCOUNT
        async for first, last in self._stretches(account_id):
            # No run of the sheet begins at its end: the object ``first`` is done.
            after: dict[str, Any] = {"since": sheet.starts[0], "after": first, "after_at": sheet.until, "last": last}
            async for page in self._pages(statement, account_id, sheet, after):
                for id, since, until, kind, name, owner, account, host, amounts, seen_at in page:
                    after["after"], after["after_at"] = id, since
                    if not principal.allows("get", kind):
                        continue
                    # One goes on until now; what only its host can know, until that was heard last.
                    known_until = min(now, seen_at) if host and seen_at is not None else now
                    used = (since, until or known_until, msgspec.json.decode(amounts))
                    yield Whose(owner, account, kind, name, id), used

    async def _stretches(self, account_id: str | None) -> AsyncIterator[tuple[str, str]]:
        """Yield the ids between which some ten thousand runs are: after the first until the second."""
        statement = sql.USAGE_FAR if account_id is None else sql.USAGE_FAR_ACCOUNT
        whose = {} if account_id is None else {"account_id": account_id}
        last = ""
        while last != ID_END:
            rows = await self._parts.store.fetch(statement, after=last, n=RUNS_AT_ONCE, **whose)
            first, last = last, rows[0][0] if rows else ID_END
            yield first, last
            await asyncio.sleep(0)

    async def _traffic(
        self, account_id: str | None, sheet: Sheet, principal: Principal
    ) -> AsyncIterator[tuple[Whose, tuple[float, int, int]]]:
        statement = sql.TRAFFIC if account_id is None else sql.TRAFFIC_ACCOUNT
        after: dict[str, Any] = {"after": "", "after_at": sheet.starts[0]}
        async for page in self._pages(statement, account_id, sheet, after):
            for hour, id, kind, name, owner, account, received, sent in page:
                after["after"], after["after_at"] = id, hour
                if principal.allows("get", kind):
                    yield Whose(owner, account, kind, name, id), (hour, received, sent)

    async def _pages(
        self, statement: Any, account_id: str | None, sheet: Sheet, after: Mapping[str, Any]
    ) -> AsyncIterator[Sequence[Any]]:
        """Yield pages of rows; whoever reads one says in ``after`` where it ended. Others have their turn between."""
        span: dict[str, Any] = {"until": sheet.until, "n": PAGE}
        if account_id is not None:
            span["account_id"] = account_id
        while page := await self._parts.store.fetch(statement, **after, **span):
            yield page
            if len(page) < PAGE:
                return
            await asyncio.sleep(0)


def _named(whose: Whose, by: By) -> Whose:
    return whose if by == "object" else Whose(whose.account_id, whose.account)


def _bound(sheet: Sheet) -> None:
    if len(sheet.lines) > LINES_MAX:
        raise Invalid(
            f"that is more than {LINES_MAX} lines; ask for less time, longer periods, or by=account", field="per"
        )


def _answer(sheet: Sheet) -> dict[str, Any]:
    items = []
    for (whose, position), amounts in sorted(sheet.lines.items()):
        begin, end = sheet.bounds(position)
        about = {word: value for word, value in whose._asdict().items() if value}
        items.append({**about, "since": iso(begin), "until": iso(end), **amounts.shown()})
    span = {"since": iso(sheet.starts[0]), "until": iso(sheet.until)}
    return {**span, "items": items, "total": sheet.total.shown()}


def _time(query: Query, name: str, default: float) -> float:
    text = query.text(name)
    return parse_time(text, name) if text else default


def _choice(query: Query, name: str, choices: Any, default: str) -> Any:
    word = query.text(name) or default
    if word not in get_args(choices):
        raise Invalid(f"{name} must be {', '.join(get_args(choices))}, not {word!r}", field=name)
    return word
