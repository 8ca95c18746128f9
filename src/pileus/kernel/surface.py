"""The generic surface: create, replace, patch, delete, get, list, watch for every kind, with rights and audit.

The HTTP server turns requests into calls of this and answers into responses; it adds no rule of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import Struct

from pileus.kernel import records
from pileus.kernel.access import Principal
from pileus.kernel.admission import Admission, Change, look_up, make, resolve
from pileus.kernel.errors import Conflict, Denied, Invalid, NotFound, Rejected
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Kind, Registry, Resource, is_name
from pileus.kernel.merge import merge_patch
from pileus.kernel.shape import decode, invalid
from pileus.kernel.store import statements as sql
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

LIMIT_MAX = 1000
LABELS_MAX = 32


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
    ready: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    ids: tuple[str, ...] = ()
    limit: int = 500
    after: str = ""


class Body(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a create or replace."""

    desired: msgspec.Raw = msgspec.Raw(b"{}")
    name: str = ""
    kind: str = ""
    account: str = ""
    labels: dict[str, str] | None = None
    revision: int | None = None


class Scope(Struct, frozen=True):
    """The account that a call is about; both empty for the cluster."""

    id: str = ""
    name: str = ""


class Surface:
    """All kinds, over one store."""

    def __init__(self, store: Store, hub: Hub, registry: Registry, admissions: Mapping[str, Admission]) -> None:
        self._store = store
        self._hub = hub
        self._registry = registry
        self._admissions = admissions
        self._default = Admission()

    # reading

    async def list(self, call: Call, kind: str, query: ListQuery) -> Answer:
        """Return a page of resources, oldest first, as stored."""
        limit = min(max(query.limit, 1), LIMIT_MAX)
        filter = await self._filter(call, self._registry[kind], query)
        revision = self._hub.revision
        rows = await self._store.list_rows(filter, after=query.after, limit=limit)
        items = ",".join([records.public(row) for row in rows])
        cursor = f'"{rows[-1][0]}"' if len(rows) == limit else "null"
        return Answer(200, f'{{"items":[{items}],"next":{cursor},"revision":{revision}}}')

    async def get(self, call: Call, kind: str, ident: str) -> Answer:
        """Return one resource. Raises: NotFound."""
        return Answer(200, records.public_of(await self.row(call, kind, ident)))

    async def row(self, call: Call, kind: str, ident: str, verb: str = "get") -> Resource:
        """Return the resource if the caller may ``verb`` it. Raises: NotFound also when it is another account's."""
        definition = self._registry[kind]
        call.principal.require(verb, kind)
        scope = await self._scope(call, self._store)
        found = await look_up(self._store, definition, scope.id, ident)
        if found is None or not _visible(call.principal, definition, found):
            raise _missing(definition, ident, scope)
        return found

    async def watch(
        self, call: Call, kind: str, query: ListQuery, since: int | None
    ) -> AsyncIterator[tuple[str, int, str]]:
        """Yield ("put", revision, resource) and ("gone", revision, {id, kind, name}) for ever.

        Without ``since`` everything there is comes first, then ("synced", revision, "{}"). A ``since`` too old to
        know what is gone gives ("reset", revision, "{}") and then everything. Every 15 s without a change gives
        ("idle", revision, "{}").
        """
        filter = await self._filter(call, self._registry[kind], query)
        with self._hub.watch(("kind", kind)) as changes:
            if since is None or await self._forgotten(since):
                revision = self._hub.revision
                if since is not None:
                    yield "reset", revision, "{}"
                after = ""
                while rows := await self._store.list_rows(filter, after=after):
                    for row in rows:
                        yield "put", records.revision_of(row), records.public(row)
                    after = rows[-1][0]
                since = revision
                yield "synced", revision, "{}"
            while True:
                newest = self._hub.revision
                for event in await self._changes(filter, since, newest):
                    yield event
                since = newest
                if not await changes.wait(15.0):
                    yield "idle", since, "{}"

    async def _forgotten(self, since: int) -> bool:
        oldest = (await self._store.fetch(sql.OLDEST_GONE))[0][0]
        return since < (oldest or 0) - 1 and since > 0

    async def _changes(self, filter: Filter, since: int, newest: int) -> Sequence[tuple[str, int, str]]:
        events = []
        accounts = (filter.account_id, "") if filter.public else (filter.account_id,)
        for row in await self._store.fetch(sql.CHANGED, kind=filter.kind, after=since, until=newest):
            if filter.account_id is not None and row[3] not in accounts:
                continue
            events.append(("put", records.revision_of(row), records.public(row), row[0], row[2], row[8]))
        for revision, id, _, account_id, _, name, _ in await self._store.fetch(
            sql.GONE_OF, kind=filter.kind, after=since, until=newest
        ):
            if filter.account_id is None or account_id == filter.account_id:
                text = msgspec.json.encode({"id": id, "kind": filter.kind, "name": name, "revision": revision}).decode()
                events.append(("gone", revision, text, id, name, ""))
        kept = [
            event
            for event in events
            if (not filter.name or event[4] == filter.name)
            and (not filter.ids or event[3] in filter.ids)
            and (not filter.host or event[5] == filter.host or event[0] == "gone")
        ]
        return [event[:3] for event in sorted(kept, key=lambda event: event[1])]

    async def events(self, call: Call, resource: Resource | None, since: int, limit: int) -> Answer:
        """Return events after ``since``: of one resource, or of the account (the newest ``limit`` when since is 0)."""
        limit = min(max(limit, 1), LIMIT_MAX)
        if resource is not None:
            rows = await self._store.fetch(sql.EVENTS_OF, id=resource.id, after=since, n=limit)
        elif call.principal.operator and (call.all_accounts or not call.account):
            rows = await self._store.fetch(sql.EVENTS, after=since, n=limit)
        else:
            scope = await self._scope(call, self._store)
            rows = await self._store.fetch(sql.EVENTS_ACCOUNT, account_id=scope.id, after=since, n=limit)
        names = ("seq", "at", "account_id", "kind", "id", "name", "type", "reason", "message")
        items = [dict(zip(names, row, strict=True)) for row in reversed(rows)]
        return Answer(200, msgspec.json.encode({"items": items}).decode())

    async def audit(self, call: Call, limit: int) -> Answer:
        """Return the newest audit entries of the account; an operator without account gets everybody's."""
        call.principal.require("update", "tenancy.user")
        limit = min(max(limit, 1), LIMIT_MAX)
        if call.principal.operator and not call.account:
            rows = await self._store.fetch(sql.AUDIT, n=limit)
        else:
            scope = await self._scope(call, self._store)
            rows = await self._store.fetch(sql.AUDIT_ACCOUNT, account_id=scope.id, n=limit)
        names = (
            "server", "seq", "at", "actor", "account_id", "verb", "kind", "id", "name", "outcome", "address", "request",
        )  # fmt: skip
        return Answer(
            200, msgspec.json.encode({"items": [dict(zip(names, row, strict=True)) for row in rows]}).decode()
        )

    # writing

    async def create(self, call: Call, kind: str, body: bytes) -> Answer:
        """Take a new wish. Raises: Rejected."""
        definition = self._registry[kind]

        async def work(tx: Transaction) -> Answer:
            wish = _body(body)
            scope = await self._account_of(tx, call, definition, wish.account)
            new = await self._new(tx, definition, scope, wish)
            made = await make(tx, self._admissions, call.principal, new)
            if call.dry_run:
                decisions = await self._admissions.get(kind, self._default).preview(tx, made.resource)
                return Answer(200, _dry(made.resource, decisions))
            return Answer(201, _with(records.public_of(made.resource), made.extra))

        return await self._write(call, "create", definition, body, work)

    async def replace(self, call: Call, kind: str, ident: str, body: bytes) -> Answer:
        """Replace the wish and the labels. Raises: Rejected."""

        def given(old: Resource) -> Body:
            return _body(body)

        return await self._change(call, "update", self._registry[kind], ident, body, given)

    async def patch(self, call: Call, kind: str, ident: str, body: bytes) -> Answer:
        """Change part of the wish by a merge patch (RFC 7396) over ``labels`` and ``desired``. Raises: Rejected."""

        def given(old: Resource) -> Body:
            try:
                change = msgspec.json.decode(body, type=dict[str, Any])
            except msgspec.ValidationError as error:
                raise invalid(error, "patch") from None
            except msgspec.DecodeError as error:
                raise Invalid(f"the request is not JSON: {error}", code="not-json") from None
            current = {"labels": dict(old.labels), "desired": msgspec.to_builtins(old.desired)}
            return _body(msgspec.json.encode(merge_patch(current, change)))

        return await self._change(call, "update", self._registry[kind], ident, body, given)

    async def delete(self, call: Call, kind: str, ident: str) -> Answer:
        """Ask for the deletion. Raises: NotFound, Conflict (in-use)."""
        definition = self._registry[kind]

        async def work(tx: Transaction) -> Answer:
            found = await self._own(tx, call, definition, ident)
            if not found.deleting:
                await self._check_unused(tx, found)
                await self._admissions.get(kind, self._default).may_delete(tx, found)
            marked = await tx.mark_deleting(found)
            return Answer(202, records.public_of(marked))

        return await self._write(call, "delete", definition, b"", work, ident)

    # inside

    async def _change(
        self, call: Call, verb: str, kind: Kind, ident: str, body: bytes, given: Callable[[Resource], Body]
    ) -> Answer:
        async def work(tx: Transaction) -> Answer:
            old = await self._own(tx, call, kind, ident)
            if old.deleting:
                raise Conflict(f"{old} is being deleted and cannot be changed", code="deleting")
            wish = given(old)
            if wish.revision is not None and wish.revision != old.revision:
                raise Conflict(
                    f"{old} is at revision {old.revision}, not {wish.revision}; read it again", code="stale-revision"
                )
            desired = decode(kind.desired, wish.desired, "desired")
            _refuse_immutable(kind, old, desired)
            labels = old.labels if wish.labels is None else _labels(wish.labels)
            links = await resolve(tx, desired, old.account_id, old.account)
            new = replace(old, desired=desired, labels=labels)
            new = await self._admissions.get(kind.name, self._default).admit(
                tx, Change(call.principal, old, new, links)
            )
            if desired != old.desired:
                await tx.link(old.id, links)
            written = await tx.update(old, desired=new.desired, labels=new.labels, assigned=new.assigned)
            return Answer(200, records.public_of(written))

        return await self._write(call, verb, kind, body, work, ident)

    async def _write(
        self,
        call: Call,
        verb: str,
        kind: Kind,
        body: bytes,
        work: Callable[[Transaction], Awaitable[Answer]],
        ident: str = "",
    ) -> Answer:
        """Run ``work`` with rights, idempotency and audit around it."""
        principal = call.principal
        digest = hashlib.sha256(b"\0".join((verb.encode(), kind.name.encode(), ident.encode(), body))).hexdigest()

        async def inside(tx: Transaction) -> Answer:
            self._require_write(principal, verb, kind)
            if call.idempotency_key:
                known = await self._answered(tx, call, digest)
                if known is not None:
                    return known
            answer = await work(tx)
            if call.dry_run:
                return answer
            await tx.audit(_entry(call, verb, kind, ident, "ok", answer.body))
            if call.idempotency_key:
                await tx.change(
                    tx.insert.idempotency,
                    principal=principal.user_id,
                    key=call.idempotency_key,
                    digest=digest,
                    status=answer.status,
                    body=answer.body,
                    at=tx.now,
                )
            return answer

        if call.dry_run:
            return await self._store.dry_run(inside)
        try:
            return await self._store.write(inside)
        except Rejected as error:
            entry = _entry(call, verb, kind, ident, error.code, body[:2000].decode(errors="replace"))
            await self._store.write(lambda tx: tx.audit(entry))
            raise

    def _require_write(self, principal: Principal, verb: str, kind: Kind) -> None:
        principal.require(verb, kind.name)
        if kind.created_by == "kernel":
            raise Denied(f"a {kind.short} is made and removed with what it belongs to, not by hand", code="not-by-hand")
        if kind.writable_by == "operator" and not principal.operator:
            raise Denied(f"only the cloud's operator may {verb} a {kind.short}")

    async def _answered(self, tx: Transaction, call: Call, digest: str) -> Answer | None:
        rows = await tx.statement(sql.IDEMPOTENCY, principal=call.principal.user_id, key=call.idempotency_key)
        if not rows:
            return None
        if rows[0][0] != digest:
            raise Conflict(
                "this Idempotency-Key was used for another request; use a fresh one", code="idempotency-key-used"
            )
        return Answer(rows[0][1], rows[0][2])

    async def _scope(self, call: Call, reader: Store | Transaction) -> Scope:
        """Return the account the call is about. Raises: NotFound for an account that the caller may not know."""
        principal = call.principal
        if not principal.operator:
            if call.account and call.account not in (principal.account, principal.account_id):
                raise NotFound(f"there is no account {call.account!r}")
            return Scope(principal.account_id, principal.account)
        if not call.account:
            return Scope()
        account = await look_up(reader, self._registry["tenancy.account"], "", call.account)
        if account is None:
            raise NotFound(f"there is no account {call.account!r}; `pileus get account` lists them")
        return Scope(account.id, account.name)

    async def _account_of(self, tx: Transaction, call: Call, kind: Kind, wished: str) -> Scope:
        """Return the account a new resource goes to."""
        if wished and call.account and wished != call.account:
            raise Invalid(f"the request names two accounts, {wished!r} and {call.account!r}", field="account")
        scope = await self._scope(msgspec.structs.replace(call, account=wished or call.account), tx)
        if kind.scope == "cluster":
            if scope.id:
                raise Invalid(f"a {kind.short} belongs to the cluster, not to an account; leave the account out")
            return scope
        if kind.scope == "account" and not scope.id:
            raise Invalid(f"a {kind.short} belongs to an account; say which with --account", field="account")
        if scope.id and (await tx.get(scope.id)).deleting:
            raise Conflict(f"account {scope.name} is being deleted", code="deleting")
        return scope

    async def _new(self, tx: Transaction, kind: Kind, scope: Scope, wish: Body) -> Resource:
        if not is_name(wish.name):
            raise Invalid(
                f"{wish.name!r} cannot name a {kind.short}: 1 to 63 of a-z, 0-9 and -, starting with a letter",
                field="name",
            )
        if wish.kind and wish.kind != kind.name:
            raise Invalid(f"the body says kind {wish.kind!r}, the path {kind.name!r}", field="kind")
        return Resource(
            id=tx.new_id(),
            kind=kind.name,
            name=wish.name,
            account_id=scope.id,
            account=scope.name,
            owner=scope.id,
            labels=_labels(wish.labels or {}),
            desired=decode(kind.desired, wish.desired, "desired"),
        )

    async def _own(self, tx: Transaction, call: Call, kind: Kind, ident: str) -> Resource:
        """Return the resource that the caller means and may write. Raises: NotFound, Denied."""
        scope = await self._scope(call, tx)
        found = await look_up(tx, kind, scope.id, ident)
        if found is None or not _visible(call.principal, kind, found):
            raise _missing(kind, ident, scope)
        if found.account_id != scope.id and not call.principal.operator:
            raise Denied(f"{found} is the cloud's own; only its operator may change it")
        return found

    async def _check_unused(self, tx: Transaction, resource: Resource) -> None:
        if resource.owner and resource.owner != resource.account_id:
            owner = await tx.get(resource.owner)
            raise Conflict(f"{resource} belongs to {owner}; delete that instead", code="in-use")
        referrer = None if resource.kind == "tenancy.account" else await tx.referrer(resource.id)
        if referrer is not None:
            raise Conflict(
                f"{resource} is used by {referrer[1].partition('.')[2]} {referrer[2]}; delete or change that first",
                code="in-use",
            )

    async def _filter(self, call: Call, kind: Kind, query: ListQuery) -> Filter:
        principal = call.principal
        principal.require("get", kind.name)
        if kind.scope == "cluster" and kind.readable_by == "operator" and not principal.operator:
            raise Denied(f"only the cloud's operator may see {kind.short}s")
        scope = await self._scope(call, self._store)
        account_id: str | None = scope.id
        if principal.operator and call.all_accounts:
            account_id = None
        elif kind.scope == "cluster":
            account_id = ""
        elif kind.scope == "account" and not scope.id:
            raise Invalid(f"{kind.short}s belong to accounts; say which with --account, or -A for all", field="account")
        places = {}
        for word, target in (("host", "infra.host"), ("zone", "infra.zone"), ("vdc", "tenancy.vdc")):
            value = getattr(query, word)
            places[word] = await self._place(principal, target, scope, value) if value else ""
        return Filter(
            kind=kind.name,
            account_id=account_id,
            public=kind.scope == "either" and kind.readable_by == "everyone",
            owner=query.owner,
            name=query.name,
            ready=query.ready,
            labels=query.labels,
            ids=query.ids,
            **places,
        )

    async def _place(self, principal: Principal, kind_name: str, scope: Scope, word: str) -> str:
        kind = self._registry[kind_name]
        found = await look_up(self._store, kind, scope.id, word)
        if found is None or not _visible(principal, kind, found):
            raise _missing(kind, word, scope)
        return found.id


def _visible(principal: Principal, kind: Kind, resource: Resource) -> bool:
    if principal.operator or resource.account_id == principal.account_id:
        return True
    return resource.account_id == "" and kind.readable_by == "everyone"


def _missing(kind: Kind, ident: str, scope: Scope) -> NotFound:
    where = f" in account {scope.name}" if scope.name else ""
    return NotFound(f"there is no {kind.short} {ident!r}{where}; `pileus get {kind.short}` lists what there is")


def _body(text: bytes) -> Body:
    try:
        return msgspec.json.decode(text, type=Body)
    except msgspec.ValidationError as error:
        raise invalid(error, "request") from None
    except msgspec.DecodeError as error:
        raise Invalid(f"the request is not JSON: {error}", code="not-json") from None


def _labels(labels: Mapping[str, str]) -> dict[str, str]:
    if len(labels) > LABELS_MAX:
        raise Invalid(f"at most {LABELS_MAX} labels, got {len(labels)}", field="labels")
    for key, value in labels.items():
        if not 0 < len(key) <= 63 or len(value) > 255 or "=" in key or not (key + value).isprintable():
            raise Invalid(f"label {key!r}: 1 to 63 printable characters without =, value up to 255", field="labels")
    return dict(labels)


def _refuse_immutable(kind: Kind, old: Resource, desired: Any) -> None:
    for name in sorted(kind.immutable):
        if getattr(desired, name) != getattr(old.desired, name):
            raise Invalid(
                f"desired.{name} of a {kind.short} cannot be changed; make another {kind.short} with the new value",
                code="immutable",
                field=f"desired.{name}",
            )


def _entry(call: Call, verb: str, kind: Kind, ident: str, outcome: str, body: str) -> dict[str, Any]:
    """Return an audit entry; names come from the answer, or from the request when it was refused."""
    try:
        said = msgspec.json.decode(body.encode(), type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError):
        said = {}
    principal = call.principal
    id, name = str(said.get("id") or ""), str(said.get("name") or ident)
    return {
        "actor": principal.user,
        "account_id": str(said.get("account_id") or principal.account_id),
        "verb": verb,
        "kind": kind.name,
        "id": id,
        "name": name[:200],
        "outcome": outcome,
        "address": principal.address,
        "request": call.request_id,
    }


def _with(body: str, extra: Mapping[str, Any]) -> str:
    if not extra:
        return body
    return f"{body[:-1]},{msgspec.json.encode(extra).decode()[1:]}"


def _dry(resource: Resource, decisions: Sequence[Struct]) -> str:
    return f'{{"resource":{records.public_of(resource)},"decisions":{msgspec.json.encode(decisions).decode()}}}'
