"""What may be done inside one transaction: resources, links, claims, charges, due work, events, audit.

Every write of a resource gives it a new revision, computes its condition Ready, makes it due, and wakes its owner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from pileus.kernel import holding, metering, records
from pileus.kernel.clock import Clock, iso
from pileus.kernel.condition import Condition, unknown
from pileus.kernel.errors import Conflict, LeaseLost, NotFound, QuotaExceeded
from pileus.kernel.ids import IdSource
from pileus.kernel.kind import Registry, Resource
from pileus.kernel.notice import TOLD_SPACE, Notice
from pileus.kernel.outcome import Wait
from pileus.kernel.store import statements as sql
from pileus.kernel.store.engine import Session
from pileus.kernel.store.lists import Filter, list_statement

WAITING = "Waiting"
"""The condition that keeps the last ``Wait`` until the next outcome; its status is what Ready is meanwhile."""


class Exhausted(QuotaExceeded):
    """A space has no room: ``space``, how much was ``asked``, ``used`` and its ``capacity``."""

    code = "exhausted"

    def __init__(self, space: str, asked: int, used: int, capacity: int) -> None:
        super().__init__(f"{space}: {asked} asked, {used} of {capacity} used")
        self.space, self.asked, self.used, self.capacity = space, asked, used, capacity


class AlreadyClaimed(Conflict):
    """Another owner holds the value; ``holder`` is its id."""

    code = "already-exists"

    def __init__(self, space: str, value: str, holder: str) -> None:
        super().__init__(f"{value} is taken in {space}")
        self.space, self.value, self.holder = space, value, holder


class Transaction:
    """One caller's part of a group commit."""

    def __init__(self, session: Session, registry: Registry, clock: Clock, ids: IdSource) -> None:
        self._session = session
        self._insert = session.statements
        self.registry = registry
        self.now = clock()
        self._ids = ids
        self.server = ""
        self.reconciling = ""
        """The resource whose decision is being written: its own writes do not make it due again."""

    # resources

    async def get(self, id: str) -> Resource:
        """Return the resource. Raises: NotFound."""
        rows = await self._session.all(sql.GET, id=id)
        if not rows:
            raise NotFound(f"there is no object {id}")
        return records.decode(self.registry, rows[0])

    async def find_id(self, id: str) -> Resource | None:
        """Return the resource, if there is one."""
        rows = await self._session.all(sql.GET, id=id)
        return records.decode(self.registry, rows[0]) if rows else None

    async def find(self, kind: str, account_id: str, name: str) -> Resource | None:
        """Return the resource with this name, if there is one."""
        rows = await self._session.all(sql.FIND, kind=kind, account_id=account_id, name=name)
        return records.decode(self.registry, rows[0]) if rows else None

    async def matching(self, filter: Filter, limit: int = 1000) -> list[Resource]:
        """Return the first ``limit`` resources that match."""
        statement, parameters = list_statement(filter, after="", limit=limit)
        rows = await self._session.all(statement, **parameters)
        return [records.decode(self.registry, row) for row in rows]

    async def children(self, owner: str, limit: int = 1000) -> list[Resource]:
        """Return the resources that ``owner`` made, oldest first."""
        rows = await self._session.all(sql.CHILDREN, owner=owner, n=limit)
        return [records.decode(self.registry, row) for row in rows]

    async def create(self, resource: Resource, links: Mapping[str, str] | None = None) -> Resource:
        """Insert a new resource and claim its name. Its id, times and revision are filled in here.

        Raises: Conflict (already-exists).
        """
        made = replace(
            resource,
            id=resource.id or self.new_id(),
            generation=1,
            created_at=iso(self.now),
        )
        space = f"name/{made.kind}/{made.account_id}"
        try:
            await self.claim(space, made.name, made.id)
        except AlreadyClaimed:
            where = f" in account {made.account}" if made.account else ""
            raise Conflict(
                f"{made} exists already{where}; choose another name or delete it first",
                code="already-exists",
                field="name",
            ) from None
        made = replace(self._settled(made), revision=self._next_revision())
        await self._session.run(self._insert.resource, **records.encode(made))
        await self._insert_labels(made)
        await self._write_links(made.id, links or {})
        await self._follow_up(None, made)
        await self.enqueue(made.id)
        return made

    async def ensure_child(self, owner: Resource, child: Resource, links: Mapping[str, str] | None = None) -> Resource:
        """Make ``child`` owned by ``owner`` unless it is there already (by name); its account is the owner's."""
        found = await self.find(child.kind, owner.account_id, child.name)
        if found is not None and found.owner == owner.id:
            return found
        child = replace(child, owner=owner.id, account_id=owner.account_id, account=owner.account)
        return await self.create(child, links)

    async def update(self, old: Resource, **changes: Any) -> Resource:
        """Write ``changes`` over ``old`` and return the new resource; no change of meaning writes nothing.

        A new ``desired`` (or deletion) raises the generation. Raises: Conflict (stale-revision) when somebody wrote
        since ``old`` was read.
        """
        new = replace(old, **changes)
        if new.desired != old.desired or new.deleting_at != old.deleting_at:
            new = replace(new, generation=old.generation + 1)
        new = self._settled(new)
        if new == old:
            return old
        new = replace(new, revision=self._next_revision())
        values = records.encode(new)
        done = await self._session.run(sql.UPDATE, b_id=old.id, b_revision=old.revision, **values)
        if done != 1:
            raise Conflict(f"{old} was changed by somebody else; read it again and repeat", code="stale-revision")
        if old.host and new.host != old.host:
            await self._note_gone(replace(old, name=""))  # for the host only: it is still there
        if new.host != old.host:
            await self._wake_referrers(new.id)
        if new.labels != old.labels:
            await self._session.run(sql.LABELS_DELETE, id=new.id)
            await self._insert_labels(new)
        await self._follow_up(old, new)
        await self.enqueue(new.id)
        if new.owner and new.owner != new.account_id and new.ready != old.ready:
            await self.enqueue(new.owner)
        return new

    async def link(self, source: str, links: Mapping[str, str]) -> None:
        """Replace what ``source`` refers to: field to id. A target cannot go while somebody refers to it."""
        await self._session.run(sql.LINKS_DELETE, source=source)
        await self._write_links(source, links)

    async def links(self, source: str) -> dict[str, str]:
        """Return what ``source`` refers to: field to id."""
        return {field: target for field, target in await self._session.all(sql.LINKS_OF, source=source)}

    async def referrer(self, target: str) -> Resource | None:
        """Return a resource that refers to ``target`` and is not its child: the VM rather than a port or disk of it."""
        rows = await self._session.all(sql.LINKED_BY, target=target)
        if not rows:
            return None
        found = records.decode(self.registry, rows[0])
        return found if found.owner in ("", found.account_id) else await self.get(found.owner)

    async def referrers(self, target: str) -> list[Resource]:
        """Return all resources that refer to ``target``."""
        return [await self.get(source) for (source,) in await self._session.all(sql.SOURCES_OF, target=target)]

    async def set_waiting(self, resource: Resource, wait: Wait | None) -> Resource:
        """Note why the resource waits (its Ready becomes false for that reason), or that it waits no more."""
        conditions = tuple(c for c in resource.conditions if c.type != WAITING)
        if wait is not None:
            conditions += (Condition(type=WAITING, status=wait.status, reason=wait.reason, message=wait.message),)
        return await self.update(resource, conditions=conditions)

    async def distrust(self, host: str) -> None:
        """Make unknown all that is on a host which fell silent, until its agent has said it anew."""
        for (id,) in await self._session.all(sql.ON_HOST, host=host):
            await self.update(await self.get(id), observed_generation=0)

    async def mark_deleting(self, resource: Resource) -> Resource:
        """Ask for the deletion of ``resource``; asked already: nothing."""
        if resource.deleting:
            return resource
        return await self.update(resource, deleting_at=iso(self.now))

    async def purge(self, resource: Resource) -> None:
        """Remove the row with its claims, charges, labels, links and credentials, and wake who waits for that."""
        targets = await self._session.all(sql.DELETING_TARGETS, source=resource.id)
        await self._session.run(sql.DELETE, id=resource.id)
        await self.release(resource.id)
        await self.uncharge(resource.id)
        await self._session.run(sql.LABELS_DELETE, id=resource.id)
        await self._session.run(sql.LINKS_DELETE, source=resource.id)
        await self._session.run(sql.CREDENTIALS_DELETE, id=resource.id)
        await self._session.run(sql.SAMPLE_DELETE, id=resource.id)
        await self._session.run(sql.CONTENT_DELETE, id=resource.id)
        await self._session.run(sql.PRESENCE_DELETE, host=resource.id)
        await self._session.run(sql.LEASE_DELETE, id=resource.id)
        await self._session.run(sql.JOURNAL_END, stream=resource.id)
        await self._session.run(sql.WORK_DELETE, id=resource.id)
        await self._note_gone(resource)
        await self.event(resource, "Deleted", "Deleted", f"{resource} is gone")
        await self._follow_up(resource, None)
        for (target,) in targets:
            await self.enqueue(target)
        if resource.owner and (resource.owner != resource.account_id or await self._deleting(resource.owner)):
            await self.enqueue(resource.owner)

    # claims and charges

    async def claim(self, space: str, value: str, owner: str, number: int | None = None) -> None:
        """Take ``value`` in ``space`` for ``owner``; held by it already: nothing. Raises: AlreadyClaimed."""
        done = await self._session.run(self._insert.claim, space=space, value=value, number=number, owner=owner)
        if done == 1:
            return
        rows = await self._session.all(sql.CLAIM_OWNER, space=space, value=value)
        if not rows or rows[0][0] != owner:
            raise AlreadyClaimed(space, value, rows[0][0] if rows else "")

    async def claim_number(self, space: str, low: int, high: int, owner: str) -> int:
        """Take a free number of ``space``, low <= number <= high: the one after the highest taken, else the lowest gap.

        Raises: Exhausted.
        """
        last = (await self._session.all(sql.CLAIM_LAST, space=space, high=high))[0][0]
        number = low if last is None or last < low else last + 1
        if number > high:
            number = await self._lowest_free(space, low, high)
        await self.claim(space, str(number), owner, number)
        return number

    async def _lowest_free(self, space: str, low: int, high: int) -> int:
        if not await self._session.all(sql.CLAIM_NUMBER, space=space, number=low):
            return low
        before_gap = (await self._session.all(sql.CLAIM_GAP, space=space, low=low, high=high))[0][0]
        if before_gap is None:
            raise Exhausted(space, 1, high - low + 1, high - low + 1)
        return int(before_gap) + 1

    async def claims(self, space: str, owner: str) -> list[str]:
        """Return the values of ``space`` that ``owner`` holds."""
        return [value for value, _ in await self._session.all(sql.CLAIMED, owner=owner, space=space)]

    async def holder(self, space: str, value: str) -> str | None:
        """Return the owner of ``value``, if any."""
        rows = await self._session.all(sql.CLAIM_OWNER, space=space, value=value)
        return rows[0][0] if rows else None

    async def release(self, owner: str, space: str | None = None, value: str | None = None) -> None:
        """Give back what ``owner`` holds: everything, all of one space, or one value."""
        if space is None:
            await self._session.run(sql.CLAIM_RELEASE, owner=owner)
        elif value is None:
            await self._session.run(sql.CLAIM_RELEASE_SPACE, owner=owner, space=space)
        else:
            await self._session.run(sql.CLAIM_RELEASE_VALUE, owner=owner, space=space, value=value)

    async def queue(self, space: str, limit: int) -> list[str]:
        """Return the owners of the lowest numbers of ``space``, in their order."""
        return [owner for (owner,) in await self._session.all(sql.QUEUE, space=space, n=limit)]

    async def claimed(self, space: str) -> int:
        """Return how many values of ``space`` are taken."""
        return int((await self._session.all(sql.QUEUE_LENGTH, space=space))[0][0])

    async def set_capacity(self, space: str, capacity: int) -> None:
        """Say how much there is of ``space``; what is used already stays."""
        await self._session.run(self._insert.capacity, space=space, capacity=capacity)

    async def remove_capacity(self, space: str) -> None:
        """Forget a space whose charges are gone."""
        await self._session.run(sql.BUDGET_DELETE, space=space)

    async def budget(self, space: str) -> tuple[int, int]:
        """Return (capacity, used) of ``space``; (0, 0) when it is unknown."""
        rows = await self._session.all(sql.BUDGET, space=space)
        return (rows[0][0], rows[0][1]) if rows else (0, 0)

    async def charge(self, space: str, owner: str, amount: int, until: float | None = None) -> None:
        """Let ``owner`` use exactly ``amount`` of ``space``, in place of what it used before. Raises: Exhausted.

        ``until``: when it is to be given back; 0: nobody knows; None: as before.
        """
        await self._refuse(space, await holding.charge(self._session, self.now, space, owner, amount, until))

    async def promise(self, space: str, owner: str, amount: int, start: float, until: float = 0.0) -> None:
        """Promise ``owner`` exactly ``amount`` of ``space`` from ``start`` on; amount 0: nothing. Raises: Exhausted."""
        wished = holding.Promise(amount, start, until)
        await self._refuse(space, await holding.promise(self._session, self.now, space, owner, wished))

    async def _refuse(self, space: str, asked: int) -> None:
        if asked:
            capacity, used = await self.budget(space)
            raise Exhausted(space, asked, used, capacity)

    async def uncharge(self, owner: str, prefix: str = "") -> None:
        """Give back what ``owner`` was charged and promised, in all spaces that start with ``prefix``."""
        for (space,) in await self._session.all(sql.PROMISES_OF, owner=owner):
            if space.startswith(prefix):
                await self.promise(space, owner, 0, 0.0)
        for space, _ in await self._session.all(sql.CHARGES_OF, owner=owner):
            if space.startswith(prefix):
                await self.charge(space, owner, 0)

    async def meter(self, resource: Resource) -> None:
        """Let the meter have what the resource uses now, should it not: an older version did not write it."""
        await metering.note_now(self._session, self.now, self.registry, resource)

    # content

    async def put_content(self, resource: Resource, part: str, body: bytes) -> None:
        """Keep bytes of a resource until it goes."""
        about = {"id": resource.id, "part": part, "account_id": resource.account_id}
        await self._session.run(self._insert.content, **about, size_bytes=len(body), body=body)

    async def drop_content(self, resource: Resource, part: str) -> None:
        """Forget them."""
        await self._session.run(sql.CONTENT_PART_DELETE, id=resource.id, part=part)

    async def content_bytes(self, account_id: str) -> int:
        """Return how much is kept of all resources of an account."""
        return int((await self._session.all(sql.CONTENT_BYTES, account_id=account_id))[0][0])

    # work, events, audit

    def new_id(self) -> str:
        """Return a fresh id."""
        return self._ids.next(self.now)

    async def enqueue(self, id: str, after_s: float = 0.0) -> None:
        """Make a resource due ``after_s`` from now at the latest."""
        if id == self.reconciling:
            return
        await self._session.run(self._insert.enqueue, id=id, due=self.now + after_s)

    async def event(self, resource: Resource, type: str, reason: str, message: str) -> None:
        """Note what happened to ``resource``, for people."""
        await self._session.run(
            self._insert.event,
            seq=self._next_revision(),
            at=iso(self.now),
            account_id=resource.account_id,
            kind=resource.kind,
            id=resource.id,
            name=resource.name,
            type=type,
            reason=reason,
            message=message,
            manager=resource.manager,
        )

    async def note(self, stream: str, kind: str, body: str) -> None:
        """Append to a journal that is delivered elsewhere: one order for all that is committed."""
        about = {"seq": self._next_revision(), "stream": stream, "at": iso(self.now), "kind": kind, "body": body}
        await self._session.run(self._insert.journal, **about)
        await self.enqueue(stream)

    async def audit(self, entry: Mapping[str, Any]) -> None:
        """Append to the audit log of this server; its numbers have no gap."""
        last = (await self._session.all(sql.AUDIT_LAST, server=self.server))[0][0] or 0
        await self._session.run(self._insert.audit, server=self.server, seq=last + 1, at=iso(self.now), **entry)

    async def statement(self, statement: Any, **parameters: Any) -> Sequence[Any]:
        """Run one of the kernel's own statements and return its rows."""
        return await self._session.all(statement, **parameters)

    async def change(self, statement: Any, **parameters: Any) -> int:
        """Run one of the kernel's own statements and return the number of rows changed."""
        return await self._session.run(statement, **parameters)

    @property
    def insert(self) -> Any:
        """The inserts of this engine."""
        return self._insert

    async def check_lease(self, id: str, token: int) -> int:
        """Return the work's sequence number while the lease with ``token`` holds. Raises: LeaseLost."""
        rows = await self._session.all(sql.WORK_TOKEN, id=id)
        if not rows or rows[0][0] != token:
            raise LeaseLost(f"the lease on {id} went to another server")
        return int(rows[0][1])

    # inside

    def _next_revision(self) -> int:
        self._session.revision += 1
        return self._session.revision

    async def _deleting(self, id: str) -> bool:
        return bool(await self._session.all(sql.DELETING, id=id))

    async def _wake_referrers(self, target: str) -> None:
        """Make due what refers to a resource that is on another host now."""
        for (source,) in await self._session.all(sql.SOURCES_OF, target=target):
            await self.enqueue(source)

    async def _note_gone(self, resource: Resource) -> None:
        """Tell watchers that the resource left the cluster, or its host."""
        await self._session.run(
            self._insert.gone,
            revision=self._next_revision(),
            id=resource.id,
            kind=resource.kind,
            account_id=resource.account_id,
            host=resource.host,
            name=resource.name,
            at=self.now,
            manager=resource.manager,
        )

    def _settled(self, resource: Resource) -> Resource:
        """Return the resource with its condition Ready computed and its places copied to their columns."""
        kind = self.registry[resource.kind]
        waiting = next((c for c in resource.conditions if c.type == WAITING), None)
        if waiting is not None:
            computed = msgspec.structs.replace(waiting, type="Ready")
        elif kind.host_bound and resource.unheard:
            computed = unknown("HostReturned", "its host is back and has not said yet how it is now")
        else:
            computed = kind.ready(resource)
        old = resource.ready
        same = old is not None and old.status == computed.status
        condition = msgspec.structs.replace(
            computed,
            observed_generation=resource.observed_generation if kind.host_bound else resource.generation,
            since=old.since if same and old is not None else iso(self.now),
        )
        conditions = (condition,) if waiting is None else (condition, waiting)
        return replace(
            resource,
            conditions=conditions,
            host=resource.placed("host"),
            zone=resource.placed("zone"),
            vdc=resource.placed("vdc"),
            manager=resource.placed("manager"),
        )

    async def _follow_up(self, old: Resource | None, new: Resource | None) -> None:
        """Write what comes with each write of a resource: events, notices, and what the meter says."""
        if new is not None:
            await self._ready_event(old, new)
        await self._notify(old, new)
        await metering.note_change(self._session, self.now, self.registry, old, new)

    async def _ready_event(self, old: Resource | None, new: Resource) -> None:
        before, after = old.ready if old else None, new.ready
        if after is not None and (before is None or (before.status, before.reason) != (after.status, after.reason)):
            type_ = "Ready" if after.status == "true" else "NotReady"
            await self.event(new, type_, after.reason, after.message)

    async def _notify(self, old: Resource | None, new: Resource | None) -> None:
        """Write what the resource's manager is told of a change, if it is told."""
        resource = new or old
        decide = self.registry[resource.kind].notice if resource is not None and resource.manager else None
        notice = decide(old, new) if decide is not None else None
        if resource is None or notice is None or await self.holder(TOLD_SPACE, resource.manager) is None:
            return
        if notice.keep == "newest":
            await self._session.run(sql.NOTICE_REPLACED, manager=resource.manager, subject=notice.subject)
        await self._session.run(
            self._insert.notice,
            seq=self._next_revision(),
            id=self.new_id(),
            manager=resource.manager,
            subject=notice.subject,
            account_id=resource.account_id,
            keep=notice.keep,
            body=self._told(resource, notice),
        )
        await self.enqueue(resource.manager)

    def _told(self, resource: Resource, notice: Notice) -> str:
        about = {"type": notice.type, "at": iso(self.now), "account": resource.account, **notice.about}
        return msgspec.json.encode({**about, "data": notice.data}).decode()

    async def _insert_labels(self, resource: Resource) -> None:
        for key, value in resource.labels.items():
            await self._session.run(self._insert.label, id=resource.id, key=key, value=value)

    async def _write_links(self, source: str, links: Mapping[str, str]) -> None:
        for field, target in links.items():
            await self._session.run(self._insert.link, source=source, field=field, target=target)
