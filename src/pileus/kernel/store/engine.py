"""What the two engines share: compiled statements, and one writer that commits many callers' writes together.

Writes of a cluster are serial: each group holds the row ``counter.revision``, so revisions are committed in their
order and a watcher that has seen revision n has seen everything before it. Group commit pays for that.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from pileus.kernel.errors import Transient
from pileus.kernel.store import tables
from pileus.kernel.store.statements import Statements

T = TypeVar("T")
Row = tuple[Any, ...]

BATCH_MAX = 256
"""Writes in one commit: more only lengthens the wait of the first."""
PREPARED_MAX = 384
"""Compiled statements kept: all fixed ones, and as many shapes of lists as callers ask for at a time."""


class Prepared:
    """A statement compiled once for a dialect: its SQL and the order of its parameters."""

    __slots__ = ("_fixed", "_names", "sql")

    def __init__(self, statement: sa.sql.ClauseElement, dialect: Dialect) -> None:
        compiled: Any = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
        self.sql = str(compiled)
        self._names: list[str] = compiled.positiontup or []
        self._fixed = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}

    def arguments(self, parameters: dict[str, Any]) -> list[Any]:
        """Return the positional arguments for these named parameters."""
        fixed = self._fixed
        return [parameters[name] if name in parameters else fixed[name] for name in self._names]


class Spelling:
    """The SQL of one dialect, compiled once for all engines of a process."""

    def __init__(self, dialect: Dialect, insert: Callable[[sa.Table], Any]) -> None:
        self.dialect = dialect
        self.statements = Statements(insert)
        self.prepare = functools.lru_cache(PREPARED_MAX)(lambda statement: Prepared(statement, dialect))

    @functools.cached_property
    def tables(self) -> Sequence[tuple[sa.Table, str]]:
        """Each table with what makes it, should it be missing."""
        found = tables.metadata.sorted_tables
        return [(each, str(CreateTable(each, if_not_exists=True).compile(dialect=self.dialect))) for each in found]

    @functools.cached_property
    def indexes(self) -> Sequence[tuple[str, str]]:
        """The name of each index with what makes it, should it be missing."""
        found = [index for table, _ in self.tables for index in table.indexes]
        creates = [CreateIndex(each, if_not_exists=True).compile(dialect=self.dialect) for each in found]
        return [(str(index.name), str(create)) for index, create in zip(found, creates, strict=True)]


class Session(Protocol):
    """Statements inside one transaction."""

    revision: int
    """The last revision given out in this transaction."""

    async def all(self, statement: sa.sql.ClauseElement, **parameters: Any) -> Sequence[Row]:
        """Return all rows."""

    async def run(self, statement: sa.sql.ClauseElement, **parameters: Any) -> int:
        """Return the number of rows changed."""

    statements: Statements
    """The inserts in this engine's dialect."""


Work = Callable[[Session], Awaitable[T]]


class Engine(abc.ABC):
    """A database. ``write`` callers share commits; ``fetch`` reads what is committed."""

    def __init__(self, spelling: Spelling) -> None:
        self.statements = spelling.statements
        self._prepare = spelling.prepare
        self._queue: list[tuple[Work[Any], asyncio.Future[Any]]] = []
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self.on_commit: Callable[[int], None] = lambda revision: None
        """Called with the newest revision after each commit of this process."""

    def prepare(self, statement: sa.sql.ClauseElement) -> Prepared:
        """Return the compiled statement; those in use are compiled once."""
        return self._prepare(statement)

    @abc.abstractmethod
    async def open(self) -> None:
        """Connect, make the tables, start the writer. Raises: Transient."""

    @abc.abstractmethod
    async def fetch(self, statement: sa.sql.ClauseElement, **parameters: Any) -> Sequence[Row]:
        """Return all rows of a read outside any transaction. Raises: Transient."""

    @abc.abstractmethod
    def group(self) -> contextlib.AbstractAsyncContextManager[Session]:
        """Begin a transaction that ends with the block: commit, or roll back when it raises."""

    @abc.abstractmethod
    async def attempt(self, session: Session, work: Work[T]) -> T:
        """Run ``work`` inside a savepoint; what it wrote is undone when it raises."""

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction and return its result once it is durable.

        ``work`` must do nothing but statements. What it raises reaches the caller, and nothing of it is written.
        Raises: Transient when the commit's fate is unknown.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append((work, future))
        self._wake.set()
        return await future

    def start_writer(self) -> None:
        """Start the task that commits."""
        self._writer = asyncio.create_task(self._write_groups(), name="store-writer")

    async def close(self) -> None:
        """Stop the writer; writes still in the queue fail."""
        if self._writer is not None:
            self._writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writer
            self._writer = None
        for _, future in self._queue:
            future.cancel()
        self._queue.clear()

    async def _write_groups(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                batch, self._queue = self._queue[:BATCH_MAX], self._queue[BATCH_MAX:]
                await self._write_group(batch)

    async def _write_group(self, batch: list[tuple[Work[Any], asyncio.Future[Any]]]) -> None:
        waiting = [(work, future) for work, future in batch if not future.cancelled()]
        try:
            async with self.group() as session:
                results = [await self._settle(session, work) for work, _ in waiting]
                revision = session.revision
        except Transient as error:
            results = [error] * len(waiting)
        except asyncio.CancelledError:
            for _, future in waiting:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - told to every caller of the group; the writer lives on
            results = [error] * len(waiting)
        else:
            self.on_commit(revision)
        for (_, future), result in zip(waiting, results, strict=True):
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

    async def _settle(self, session: Session, work: Work[Any]) -> Any:
        """Return the work's result, or what it raised; a lost database ends the whole group."""
        try:
            return await self.attempt(session, work)
        except Transient:
            raise
        except Exception as error:  # noqa: BLE001 - handed to the caller, who knows what it means
            return error
