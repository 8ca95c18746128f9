"""The generic surface: create, replace, patch, delete, get, list, watch for every kind, with rights and audit.

The HTTP server turns requests into calls of this and answers into responses; it adds no rule of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import Struct

from pileus.kernel import records
from pileus.kernel.access import Principal, visible
from pileus.kernel.admission import Admission, Change, look_up, make, resolve
from pileus.kernel.errors import Conflict, Denied, Invalid, NotFound, Rejected
from pileus.kernel.hub import Hub
from pileus.kernel.ids import is_id
from pileus.kernel.kind import Kind, Registry, Resource, is_name
from pileus.kernel.merge import merge_patch
from pileus.kernel.reading import Answer, Call, Reading, Scope, missing, sight
from pileus.kernel.shape import decode, invalid, references
from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

LABELS_MAX = 32


class Body(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a create or replace."""

    desired: msgspec.Raw = msgspec.Raw(b"{}")
    name: str = ""
    kind: str = ""
    account: str = ""
    labels: dict[str, str] | None = None
    revision: int | None = None


class _Owned(Struct, frozen=True):
    """What a stored answer says of whose object it is about."""

    account_id: str


_OWNED = msgspec.json.Decoder(_Owned)


class Written(Struct, frozen=True):
    """What a write came to: the resource, the status, and what is said this once only (a key's secret)."""

    resource: Resource
    status: int
    extra: Mapping[str, Any] = {}
    decisions: Sequence[Struct] = ()


class Surface(Reading):
    """All kinds, over one store."""

    def __init__(self, store: Store, hub: Hub, registry: Registry, admissions: Mapping[str, Admission]) -> None:
        super().__init__(store, hub, registry)
        self._admissions = admissions
        self._default = Admission()

    async def create(self, call: Call, kind: str, body: bytes) -> Answer:
        """Take a new wish. Raises: Rejected."""
        definition = self._registry[kind]

        async def work(tx: Transaction) -> Written:
            wish = _body(body)
            scope = await self._account_of(tx, call, definition, wish)
            new = await self._new(tx, definition, scope, wish)
            made = await make(tx, self._admissions, call.principal, new)
            if call.dry_run:
                decisions = await self._admissions.get(kind, self._default).preview(tx, made.resource, call.principal)
                return Written(made.resource, 200, decisions=decisions)
            return Written(made.resource, 201, made.extra)

        return await self._write(call, "create", definition, body, work)

    async def replace(self, call: Call, kind: str, ident: str, body: bytes) -> Answer:
        """Replace the wish and the labels; what no answer shows stays as it is unless it is said. Raises: Rejected."""

        def given(old: Resource) -> Body:
            return _with_private(_body(body), self._registry[kind], old)

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

        async def work(tx: Transaction) -> Written:
            found = await self._own(tx, call, definition, ident)
            if not found.deleting:
                await self._check_unused(tx, found, call.principal)
                await self._admissions.get(kind, self._default).may_delete(tx, found, call.principal)
            marked = await tx.mark_deleting(found)
            return Written(marked, 202)

        return await self._write(call, "delete", definition, b"", work, ident)

    # inside

    async def _change(
        self, call: Call, verb: str, kind: Kind, ident: str, body: bytes, given: Callable[[Resource], Body]
    ) -> Answer:
        async def work(tx: Transaction) -> Written:
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
            new = replace(old, desired=desired, labels=labels)
            links = await resolve(tx, call.principal, new, await tx.links(old.id))
            new = await self._admissions.get(kind.name, self._default).admit(
                tx, Change(call.principal, old, new, links)
            )
            if desired != old.desired:
                await tx.link(old.id, links)
            written = await tx.update(old, desired=new.desired, labels=new.labels, assigned=new.assigned)
            return Written(written, 200)

        return await self._write(call, verb, kind, body, work, ident)

    async def _write(
        self,
        call: Call,
        verb: str,
        kind: Kind,
        body: bytes,
        work: Callable[[Transaction], Awaitable[Written]],
        ident: str = "",
    ) -> Answer:
        """Run ``work`` with rights, idempotency and audit around it."""
        principal = call.principal
        asked = (verb, kind.name, ident, call.account, "dry" if call.dry_run else "")
        digest = hashlib.sha256("\0".join(asked).encode() + b"\0" + body).hexdigest()

        async def inside(tx: Transaction) -> Answer:
            self._require_write(principal, verb, kind)
            if call.idempotency_key:
                known = await self._answered(tx, call, digest)
                if known is not None:
                    return known
            written = await work(tx)
            if call.dry_run:
                return Answer(200, _dry(self._registry, written))
            await tx.audit(_entry(call, verb, kind, ident, "ok", written.resource))
            body = records.public_of(self._registry, written.resource)
            if call.idempotency_key:
                await tx.change(
                    tx.insert.idempotency,
                    principal=principal.user_id,
                    key=call.idempotency_key,
                    digest=digest,
                    status=written.status,
                    body=body,  # without what is said once only: secrets are not stored
                    at=tx.now,
                )
            return Answer(written.status, _with(body, written.extra))

        if call.dry_run:
            return await self._store.dry_run(inside)
        try:
            return await self._store.write(inside)
        except Rejected as error:
            entry = _entry(call, verb, kind, ident, error.code, None)
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
        if not call.principal.operator and not call.principal.acts_in(_OWNED.decode(rows[0][2]).account_id):
            raise NotFound("what this Idempotency-Key made is out of sight: the account withdrew its consent")
        return Answer(rows[0][1], rows[0][2])

    async def _account_of(self, tx: Transaction, call: Call, kind: Kind, wish: Body) -> Scope:
        """Return the account a new resource goes to."""
        wished, principal = wish.account, call.principal
        if wished and call.account and wished != call.account:
            raise Invalid(f"the request names two accounts, {wished!r} and {call.account!r}", field="account")
        scope = await self.scope(msgspec.structs.replace(call, account=wished or call.account), tx)
        if kind.scope == "cluster":
            if scope.id:
                raise Invalid(f"a {kind.short} belongs to the cluster, not to an account; leave the account out")
            return scope
        if principal.manager_id and not (wished or call.account) and kind.scope == "account":
            scope = await self._account_named(tx, call, decode(kind.desired, wish.desired, "desired")) or scope
        if kind.scope == "account" and not scope.id:
            raise Invalid(f"a {kind.short} belongs to an account; say which with --account", field="account")
        if kind.scope == "either" and principal.manager_id and scope.id != principal.account_id:
            raise Invalid(f"a {kind.short} of a manager is made where the manager is; leave the account out")
        if scope.id and (await tx.get(scope.id)).deleting:
            raise Conflict(f"account {scope.name} is being deleted", code="deleting")
        return scope

    async def _account_named(self, tx: Transaction, call: Call, desired: Struct) -> Scope | None:
        """Return the account of the first object that a manager's wish names by id, when it says no account."""
        for _, kind, word in references(desired):
            found = await tx.find_id(word) if is_id(word) else None
            if found is not None and found.account_id and visible(call.principal, tx.registry[kind], found):
                return Scope(found.account_id, found.account)
        return None

    async def _new(self, tx: Transaction, kind: Kind, scope: Scope, wish: Body) -> Resource:
        id = tx.new_id()
        name = wish.name or (f"{kind.name_prefix}-{id[-12:]}" if kind.name_prefix else "")
        if not is_name(name):
            raise Invalid(
                f"{name!r} cannot be the name of this {kind.short}: 1 to 63 of a-z, 0-9 and -, starting with a letter",
                field="name",
            )
        if wish.kind and wish.kind != kind.name:
            raise Invalid(f"the body says kind {wish.kind!r}, the path {kind.name!r}", field="kind")
        return Resource(
            id=id,
            kind=kind.name,
            name=name,
            account_id=scope.id,
            account=scope.name,
            owner=scope.id,
            labels=_labels(wish.labels or {}),
            desired=decode(kind.desired, wish.desired, "desired"),
        )

    async def _own(self, tx: Transaction, call: Call, kind: Kind, ident: str) -> Resource:
        """Return the resource that the caller means and may write. Raises: NotFound, Denied."""
        scope = await self.scope(call, tx)
        found = await look_up(tx, kind, scope.id, ident, sight(call.principal, kind))
        if found is None:
            raise missing(kind, ident, scope)
        tenant = not call.principal.operator and not call.principal.manager_id
        if tenant and found.account_id != scope.id:
            raise Denied(f"{found} is the cloud's own; only its operator may change it")
        return found

    async def _check_unused(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        if resource.owner and resource.owner != resource.account_id:
            owner = await tx.get(resource.owner)
            raise Conflict(f"{resource} belongs to {owner}; delete that instead", code="in-use")
        referrer = None if resource.kind == "tenancy.account" else await tx.referrer(resource.id)
        if referrer is not None:
            known = visible(principal, tx.registry[referrer.kind], referrer)
            user = str(referrer) if known else "something that you do not see"
            raise Conflict(f"{resource} is used by {user}; delete or change that first", code="in-use")


def _body(text: bytes) -> Body:
    try:
        return msgspec.json.decode(text, type=Body)
    except msgspec.ValidationError as error:
        raise invalid(error, "request") from None
    except msgspec.DecodeError as error:
        raise Invalid(f"the request is not JSON: {error}", code="not-json") from None


def _with_private(wish: Body, kind: Kind, old: Resource) -> Body:
    """Return the wish with the private fields that it leaves out as they were: its writer could not read them."""
    private = [path.partition(".")[2] for path in kind.private if path.startswith("desired.")]
    if not private:
        return wish
    try:
        said = msgspec.json.decode(wish.desired, type=dict[str, Any])
    except msgspec.DecodeError:
        return wish  # whoever decodes it next says what is wrong
    kept = {field: msgspec.to_builtins(getattr(old.desired, field)) for field in private if field not in said}
    return msgspec.structs.replace(wish, desired=msgspec.Raw(msgspec.json.encode(kept | said)))


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


def _entry(call: Call, verb: str, kind: Kind, ident: str, outcome: str, made: Resource | None) -> dict[str, Any]:
    """Return an audit entry. Of a refused request only what the caller may be believed is noted: who, what, where."""
    principal = call.principal
    return {
        "actor": principal.actor,
        "account_id": made.account_id if made is not None else principal.account_id,
        "verb": verb,
        "kind": kind.name,
        "id": made.id if made is not None else "",
        "name": made.name if made is not None else ident[:200],
        "outcome": outcome,
        "address": principal.address,
        "request": call.request_id,
    }


def _with(body: str, extra: Mapping[str, Any]) -> str:
    if not extra:
        return body
    return f"{body[:-1]},{msgspec.json.encode(extra).decode()[1:]}"


def _dry(registry: Registry, written: Written) -> str:
    decisions = msgspec.json.encode(written.decisions).decode()
    return f'{{"resource":{records.public_of(registry, written.resource)},"decisions":{decisions}}}'
