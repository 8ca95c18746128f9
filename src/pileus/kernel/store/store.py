"""The store: reads, and writes as transactions. What a caller was told is done is on disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from msgspec import Struct

from pileus.kernel import records
from pileus.kernel.clock import Clock
from pileus.kernel.errors import NotFound
from pileus.kernel.ids import IdSource
from pileus.kernel.kind import Registry, Resource
from pileus.kernel.store import statements as sql
from pileus.kernel.store.engine import Engine, Row, Session
from pileus.kernel.store.lists import Filter, list_statement
from pileus.kernel.transaction import Transaction

T = TypeVar("T")

PAGE = 1000
"""Rows of one read, of a list that is read whole."""


class _Undone(Exception):
    """Carries the result of a dry run out of its transaction."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


class Store:
    """Resources and what belongs to them, on one engine."""

    def __init__(self, engine: Engine, registry: Registry, clock: Clock, server: str = "server") -> None:
        self.engine = engine
        self.registry = registry
        self.clock = clock
        self.server = server
        self._ids = IdSource()
        self.unstored: dict[str, Struct] = {}
        """Id -> what is observed of the object, where this server knows more than it stores: shown, never decided by."""

    async def write(self, work: Callable[[Transaction], Awaitable[T]], *, reconciling: str = "") -> T:
        """Run ``work`` in a transaction; its result is returned once durable. What it raises undoes all of it."""

        async def inside(session: Session) -> T:
            transaction = Transaction(session, self.registry, self.clock, self._ids)
            transaction.server = self.server
            transaction.reconciling = reconciling
            return await work(transaction)

        return await self.engine.write(inside)

    async def dry_run(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run ``work`` and undo it; return its result."""

        async def inside(transaction: Transaction) -> T:
            raise _Undone(await work(transaction))

        try:
            return await self.write(inside)
        except _Undone as undone:
            result: T = undone.result
            return result

    async def get(self, id: str) -> Resource:
        """Return the resource. Raises: NotFound."""
        found = await self.find_id(id)
        if found is None:
            raise NotFound(f"there is no object {id}")
        return found

    async def find_id(self, id: str) -> Resource | None:
        """Return the resource, if there is one."""
        row = await self.row(id)
        return records.decode(self.registry, row) if row else None

    async def get_all(self, ids: Iterable[str]) -> dict[str, Resource]:
        """Return several resources by id, in few reads. Raises: NotFound when one of them is not there."""
        wanted = sorted(set(ids))
        found = {}
        for first in range(0, len(wanted), sql.AT_ONCE):
            some = wanted[first : first + sql.AT_ONCE]
            padded = (*some, *[some[0]] * (sql.AT_ONCE - len(some)))
            rows = await self.engine.fetch(sql.GET_ALL, **{f"id{position}": id for position, id in enumerate(padded)})
            found.update({row.id: row for row in (records.decode(self.registry, row) for row in rows)})
        missing = [id for id in wanted if id not in found]
        if missing:
            raise NotFound(f"there is no object {missing[0]}")
        return found

    async def row(self, id: str) -> Row | None:
        """Return the stored row of the resource, if it exists."""
        rows = await self.engine.fetch(sql.GET, id=id)
        return rows[0] if rows else None

    async def find_row(self, kind: str, account_id: str, name: str) -> Row | None:
        """Return the row of the resource with this name, if there is one."""
        rows = await self.engine.fetch(sql.FIND, kind=kind, account_id=account_id, name=name)
        return rows[0] if rows else None

    async def find(self, kind: str, account_id: str, name: str) -> Resource | None:
        """Return the resource with this name, if there is one."""
        row = await self.find_row(kind, account_id, name)
        return records.decode(self.registry, row) if row else None

    async def links(self, source: str) -> dict[str, str]:
        """Return what ``source`` refers to: field to id."""
        return {field: target for field, target in await self.engine.fetch(sql.LINKS_OF, source=source)}

    async def holder(self, space: str, value: str) -> str | None:
        """Return the owner of ``value``, if any."""
        rows = await self.engine.fetch(sql.CLAIM_OWNER, space=space, value=value)
        return rows[0][0] if rows else None

    async def queue(self, space: str, limit: int) -> Sequence[str]:
        """Return the owners of the lowest numbers of ``space``, in their order."""
        return [owner for (owner,) in await self.engine.fetch(sql.QUEUE, space=space, n=limit)]

    async def list_rows(self, filter: Filter, *, after: str = "", limit: int = 500) -> Sequence[Row]:
        """Return at most ``limit`` rows with ids above ``after``, in the order of their ids."""
        statement, parameters = list_statement(filter, after=after, limit=limit)
        return await self.engine.fetch(statement, **parameters)

    async def list(self, filter: Filter, *, after: str = "", limit: int = 500) -> list[Resource]:
        """Return the resources of ``list_rows``, decoded."""
        return [records.decode(self.registry, row) for row in await self.list_rows(filter, after=after, limit=limit)]

    async def list_all(self, filter: Filter) -> Sequence[Resource]:
        """Return all resources that match, however many; others have their turn between its pages."""
        found: list[Resource] = []
        while page := await self.list(filter, after=found[-1].id if found else "", limit=PAGE):
            found += page
            if len(page) < PAGE:
                break
        return found

    async def fetch(self, statement: sa.sql.ClauseElement, **parameters: Any) -> Sequence[Row]:
        """Return the rows of one of the kernel's own reads."""
        return await self.engine.fetch(statement, **parameters)

    async def sample(self, id: str) -> tuple[float, str] | None:
        """Return (Unix seconds, JSON) of the latest counters reported for a resource."""
        rows = await self.engine.fetch(sql.SAMPLE, id=id)
        return (rows[0][0], rows[0][1]) if rows else None

    async def content(self, id: str, part: str) -> bytes | None:
        """Return bytes that are kept of a resource, if there are any."""
        rows = await self.engine.fetch(sql.CONTENT, id=id, part=part)
        return bytes(rows[0][0]) if rows else None

    async def put_settings(self, values: Mapping[str, str]) -> None:
        """Write settings of the cluster."""

        async def put(transaction: Transaction) -> None:
            for name, value in values.items():
                await transaction.change(transaction.insert.setting, name=name, value=value)

        await self.write(put)

    async def setting(self, name: str) -> str | None:
        """Return a setting of the cluster."""
        rows = await self.engine.fetch(sql.SETTING, name=name)
        return rows[0][0] if rows else None
