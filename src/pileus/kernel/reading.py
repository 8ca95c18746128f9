"""The generic surface, reading: list, get, watch, events and audit for every kind, within the caller's rights."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import Struct

from pileus.kernel import records
from pileus.kernel.access import Principal, is_stranger, nameable, sees, visible
from pileus.kernel.admission import list_hint, look_up
from pileus.kernel.condition import Condition
from pileus.kernel.errors import Denied, Invalid, NotFound
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Kind, Registry, Resource
from pileus.kernel.reader import Reader
from pileus.kernel.store import statements as sql
from pileus.kernel.store.engine import Row
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store

LIMIT_MAX = 1000
REVISION_MAX = 2**62
CHANGES_PAGE = 500
"""What one watcher takes from the database at once."""
PLACES = {"host": "infra.host", "zone": "infra.zone", "vdc": "tenancy.vdc", "manager": "fleet.manager"}
"""Filters that name an object, and its kind."""


class Call(Struct, frozen=True, kw_only=True):
    """Who calls, on whose behalf, and how."""

    principal: Principal
    request_id: str = ""
    account: str = ""
    all_accounts: bool = False
    dry_run: bool = False
    idempotency_key: str = ""


class Answer(Struct, frozen=True):
    """An HTTP status and a body of JSON."""

    status: int
    body: str


class ListQuery(Struct, frozen=True, kw_only=True):
    """The filters of a list, as the caller wrote them (names or ids)."""

    host: str = ""
    zone: str = ""
    vdc: str = ""
    owner: str = ""
    name: str = ""
    manager: str = ""
    ready: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    ids: tuple[str, ...] = ()
    owned: bool = False
    """Also what another resource made, where lists leave it out."""
    limit: int = 500
    after: str = ""


class Scope(Struct, frozen=True):
    """The account that a call is about; both empty for the cluster."""

    id: str = ""
    name: str = ""


class Reading:
    """Everything that changes nothing, over one store."""

    def __init__(self, store: Store, hub: Hub, registry: Registry) -> None:
        self._store = store
        self._hub = hub
        self._registry = registry

    async def list(self, call: Call, kind: str, query: ListQuery) -> Answer:
        """Return a page of resources, oldest first, as stored."""
        limit = min(max(query.limit, 1), LIMIT_MAX)
        definition = self._registry[kind]
        filter = await self._filter(call, definition, query)
        revision = self._hub.revision
        rows = await self._visible_rows(call.principal, definition, filter, query.after, limit)
        items = ",".join([self._shown(call.principal, row) for row in rows])
        cursor = f'"{rows[-1][0]}"' if len(rows) == limit else "null"
        return Answer(200, f'{{"items":[{items}],"next":{cursor},"revision":{revision}}}')

    async def get(self, call: Call, kind: str, ident: str) -> Answer:
        """Return one resource. Raises: NotFound."""
        found = await self.row(call, kind, ident)
        to_stranger = is_stranger(call.principal, found.account_id)
        return Answer(200, records.public_of(self._registry, self._known(found), to_stranger=to_stranger))

    def _shown(self, principal: Principal, row: Row) -> str:
        """Return a row as the caller is shown it."""
        account_id, _ = records.standing_of(row)
        to_stranger = is_stranger(principal, account_id)
        if row[0] in self._store.unstored:
            known = self._known(records.decode(self._registry, row))
            return records.public_of(self._registry, known, to_stranger=to_stranger)
        return records.public(self._registry, row, to_stranger=to_stranger)

    def _known(self, found: Resource) -> Resource:
        """Return the resource with what this server knows of it and does not store."""
        observed = self._store.unstored.get(found.id)
        if observed is None:
            return found
        known = replace(found, observed=observed)
        return replace(known, conditions=tuple(self._judged(known, each) for each in found.conditions))

    def _judged(self, known: Resource, condition: Condition) -> Condition:
        now = self._registry[known.kind].ready(known) if condition.type == "Ready" else condition
        return msgspec.structs.replace(condition, status=now.status, reason=now.reason, message=now.message)

    async def row(self, call: Call, kind: str, ident: str, verb: str = "get") -> Resource:
        """Return the resource if the caller may ``verb`` it. Raises: NotFound also when it is another account's."""
        definition = self._registry[kind]
        call.principal.require(verb, kind)
        scope = await self.scope(call, self._store)
        found = await look_up(self._store, definition, scope.id, ident, sight(call.principal, definition))
        if found is None:
            raise missing(definition, ident, scope, operator=call.principal.operator)
        return found

    async def watch(
        self, call: Call, kind: str, query: ListQuery, since: int | None
    ) -> AsyncIterator[tuple[str, int, str]]:
        """Yield ("put", revision, resource) and ("gone", revision, {id, kind, name}) for ever.

        Without ``since`` everything there is comes first, then ("synced", revision, "{}"). A ``since`` too old to
        know what is gone, or newer than a restored database, gives ("reset", revision, "{}") and then everything.
        Every 15 s without a change gives ("idle", revision, "{}").
        """
        definition, principal = self._registry[kind], call.principal
        filter = await self._filter(call, definition, query)
        with self._hub.watch(("kind", kind)) as changes:
            if since is None or since < principal.sight or await self._forgotten(since):
                revision = self._hub.revision
                if since is not None:
                    yield "reset", revision, "{}"
                after = ""
                while rows := await self._visible_rows(principal, definition, filter, after, CHANGES_PAGE):
                    for row in rows:
                        yield "put", records.revision_of(row), self._shown(principal, row)
                    after = rows[-1][0]
                since = revision
                yield "synced", revision, "{}"
            while True:
                newest = self._hub.revision
                while since < newest:
                    events, since = await self._changes(principal, filter, since, newest)
                    for event in events:
                        yield event
                if not await changes.wait(15.0):
                    yield "idle", since, "{}"

    async def _forgotten(self, since: int) -> bool:
        """Tell whether what went after ``since`` is not known any more, or the database is older than ``since``."""
        forgotten = int(await self._store.setting(sql.FORGOTTEN) or 0)
        return 0 < since < forgotten or since > (await self._store.fetch(sql.NEWEST))[0][0]

    async def _visible_rows(
        self, principal: Principal, kind: Kind, filter: Filter, after: str, limit: int
    ) -> Sequence[Row]:
        """Return a page of what matches and the caller may see: a full one unless there is no more."""
        rows = await self._store.list_rows(filter, after=after, limit=limit)
        found = [row for row in rows if sees(principal, kind, *records.standing_of(row))]
        size = limit
        while len(rows) == size and len(found) < limit:
            after, size = rows[-1][0], LIMIT_MAX
            rows = await self._store.list_rows(filter, after=after, limit=size)
            found += [row for row in rows if sees(principal, kind, *records.standing_of(row))]
        return found[:limit]

    async def _changes(
        self, principal: Principal, filter: Filter, since: int, newest: int
    ) -> tuple[Sequence[tuple[str, int, str]], int]:
        """Return what changed for a watcher, a page of it, and up to which revision; what no longer matches is gone."""
        kind = self._registry[filter.kind]
        statements = (sql.CHANGED_SEEN, sql.GONE_SEEN)
        page = {"kind": filter.kind, "after": since, "until": newest, "n": CHANGES_PAGE}
        if filter.manager:
            statements = (sql.CHANGED_MANAGED, sql.GONE_MANAGED)
            page["manager"] = filter.manager
        elif filter.account_id is None:
            statements = (sql.CHANGED, sql.GONE_OF)
        else:
            page |= {"account_id": filter.account_id, "common": "" if filter.public else filter.account_id}
        changed, gone = [await self._store.fetch(statement, **page) for statement in statements]
        events = []
        for row in changed:
            revision = records.revision_of(row)
            if not _watched(principal, kind, filter, *records.standing_of(row)):
                continue
            if matches(filter, row):
                events.append(("put", revision, self._shown(principal, row)))
            else:
                events.append(("gone", revision, _gone(filter.kind, row[0], row[2], revision)))
        for revision, id, _, account_id, host, name, _, manager in gone:  # without a name: it only left its host
            on_host = not host or not filter.host or host == filter.host
            if name and on_host and _watched(principal, kind, filter, account_id, manager):
                events.append(("gone", revision, _gone(filter.kind, id, name, revision)))
        ends = [records.revision_of(changed[-1])] if len(changed) == CHANGES_PAGE else []
        ends += [gone[-1][0]] if len(gone) == CHANGES_PAGE else []
        until = min([newest, *ends])
        return sorted((event for event in events if event[1] <= until), key=lambda event: event[1]), until

    async def events(self, call: Call, resource: Resource | None, since: int, limit: int) -> Answer:
        """Return events in their order: the next after ``since``, or the newest when it is 0; of one resource or an account.

        Only of kinds that the caller may get. Raises: Denied when there is none.
        """
        statements = sql.EVENTS_AFTER if since else sql.EVENTS_NEWEST
        page = {"kinds": self._readable(call.principal), "after": since, "n": min(max(limit, 1), LIMIT_MAX)}
        if resource is None and call.principal.manager_id:
            rows = await self._managed_events(call, page)
        elif resource is not None:
            rows = await self._store.fetch(statements["id"], id=resource.id, **page)
        elif call.principal.operator and (call.all_accounts or not call.account):
            rows = await self._store.fetch(statements[""], **page)
        else:
            scope = await self.scope(call, self._store)
            rows = await self._store.fetch(statements["account_id"], account_id=scope.id, **page)
        rows = sorted(rows, key=lambda row: row[0])
        names = ("seq", "at", "account_id", "kind", "id", "name", "type", "reason", "message")
        items = [dict(zip(names, row[: len(names)], strict=True)) for row in rows]
        return Answer(200, msgspec.json.encode({"items": items}).decode())

    async def _managed_events(self, call: Call, page: Mapping[str, Any]) -> Sequence[Row]:
        """Return a page of the events that a manager may see: a full one unless there is no more."""
        scope = await self.scope(call, self._store) if call.account else None
        statement = sql.EVENTS_MANAGED_AFTER if page["after"] else sql.EVENTS_MANAGED_BEFORE
        asked = {**page, "manager": call.principal.manager_id, "before": REVISION_MAX}
        found: list[Row] = []
        while len(found) < page["n"]:
            rows = await self._store.fetch(statement, **asked)
            found += [row for row in rows if call.principal.acts_in(row[2]) and (scope is None or row[2] == scope.id)]
            if len(rows) < page["n"]:
                break
            asked["after" if page["after"] else "before"] = rows[-1][0]
        return found[: page["n"]]

    async def audit(self, call: Call, limit: int) -> Answer:
        """Return the newest audit entries of the account; an operator without account gets everybody's."""
        call.principal.require("update", "tenancy.user")
        limit = min(max(limit, 1), LIMIT_MAX)
        if call.principal.operator and not call.account:
            rows = await self._store.fetch(sql.AUDIT, n=limit)
        else:
            scope = await self.scope(call, self._store)
            rows = await self._store.fetch(sql.AUDIT_ACCOUNT, account_id=scope.id, n=limit)
        names = (
            "server", "seq", "at", "actor", "account_id", "verb", "kind", "id", "name", "outcome", "address", "request",
        )  # fmt: skip
        return Answer(
            200, msgspec.json.encode({"items": [dict(zip(names, row, strict=True)) for row in rows]}).decode()
        )

    # inside

    async def scope(self, call: Call, reader: Reader) -> Scope:
        """Return the account the call is about. Raises: NotFound for an account that the caller may not know."""
        principal = call.principal
        if not call.account or (principal.account_id and call.account in (principal.account, principal.account_id)):
            return Scope(principal.account_id, principal.account)
        account = None
        if principal.operator or principal.manager_id:
            accounts = self._registry["tenancy.account"]
            account = await look_up(
                reader, accounts, "", call.account, functools.partial(nameable, principal, accounts, "")
            )
        if account is None:
            hint = "; `pileus get account` lists them" if principal.operator else ""
            if principal.manager_id:
                hint = " that consents to you; `pileus get consent --all-accounts` shows those that do"
            raise NotFound(f"there is no account {call.account!r}{hint}")
        return Scope(account.id, account.name)

    def _readable(self, principal: Principal) -> str:
        """Return the kinds whose resources the caller may get, each between commas. Raises: Denied for none."""
        names = [kind.name for kind in self._registry if principal.allows("get", kind.name)]
        if not names:
            raise Denied(f"{principal.actor} (role {principal.role}) may not see events; ask for a role that may")
        return f",{','.join(names)},"

    async def _filter(self, call: Call, kind: Kind, query: ListQuery) -> Filter:
        principal = call.principal
        principal.require("get", kind.name)
        if kind.scope == "cluster" and kind.readable_by == "operator" and not principal.operator:
            raise Denied(f"only the cloud's operator may see {kind.plural}")
        scope = await self.scope(call, self._store)
        account_id: str | None = scope.id
        if (principal.operator and call.all_accounts) or (principal.manager_id and not call.account):
            account_id = None
        elif kind.scope == "cluster":
            account_id = ""
        elif kind.scope == "account" and not scope.id:
            raise Invalid(f"{kind.plural} belong to accounts; say which with --account, or -A for all", field="account")
        places = {}
        for word, target in PLACES.items():
            value = getattr(query, word)
            places[word] = await self._place(principal, target, scope, value) if value else ""
        places["manager"] = principal.manager_id or places["manager"]
        return Filter(
            kind=kind.name,
            account_id=account_id,
            public=kind.scope == "either" and kind.readable_by == "everyone",
            owner=query.owner,
            name=query.name,
            ready=query.ready,
            labels=query.labels,
            ids=query.ids,
            own=kind.lists == "own" and not (query.owned or query.owner or query.name or query.ids or query.host),
            **places,
        )

    async def _place(self, principal: Principal, kind_name: str, scope: Scope, word: str) -> str:
        kind = self._registry[kind_name]
        found = await look_up(self._store, kind, scope.id, word, sight(principal, kind))
        if found is None:
            raise missing(kind, word, scope, operator=principal.operator)
        return found.id


def sight(principal: Principal, kind: Kind) -> Callable[[Resource], bool]:
    """Return what tells of an object of this kind whether the caller may know of it."""
    return functools.partial(visible, principal, kind)


def missing(kind: Kind, ident: str, scope: Scope, *, operator: bool = True) -> NotFound:
    """Return the refusal; only an operator may change what only operators may list, so a change need not say who asks."""
    where = f" in account {scope.name}" if scope.name else ""
    return NotFound(f"there is no {kind.short} {ident!r}{where}{list_hint(kind, operator=operator)}")


def matches(filter: Filter, row: Row) -> bool:
    """Tell whether a row matches the filter, its account aside."""
    places = ((filter.name, row[2]), (filter.owner, row[5]), (filter.zone, row[6]), (filter.vdc, row[7]),
              (filter.host, row[8]), (filter.ready, row[9]))  # fmt: skip
    if any(wanted and wanted != found for wanted, found in places) or (filter.ids and row[0] not in filter.ids):
        return False
    if filter.own and row[5] != row[3]:
        return False
    return not filter.labels or all(pair in records.labels_of(row).items() for pair in filter.labels)


def _watched(principal: Principal, kind: Kind, filter: Filter, account_id: str, manager: str) -> bool:
    """Tell whether a watcher hears of an object: one that it may see, of the account that it watches."""
    in_scope = filter.account_id in (None, account_id) or (filter.public and account_id == "")
    return in_scope and sees(principal, kind, account_id, manager)


def _gone(kind: str, id: str, name: str, revision: int) -> str:
    return msgspec.json.encode({"id": id, "kind": kind, "name": name, "revision": revision}).decode()
