"""PostgreSQL through asyncpg: a pool for reads, one connection that writes, one that listens to the other servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import asyncpg as dialect
from sqlalchemy.dialects.postgresql import insert

from pileus.kernel.errors import Transient
from pileus.kernel.store import tables
from pileus.kernel.store.engine import Engine, Row, Session, Spelling, Work

T = TypeVar("T")

SPELLING = Spelling(dialect.dialect(), insert)  # type: ignore[no-untyped-call]

CHANNEL = "pileus"
NOTIFY_EVERY_S = 0.005
"""At most one NOTIFY per this time: one in each transaction cost 4.5 times the throughput (measured)."""

CLOSE_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
"""For a connection or a statement: a database that vanished without a word is told from a slow one."""
INDEX_TIMEOUT_S = 3600.0
"""A new version may need an index over everything there is."""

SETTINGS = {
    "default_transaction_isolation": "read committed",  # whoever waited for the counter sees what was committed
    "idle_in_transaction_session_timeout": "5s",  # a server that stands still lets the others write
    "lock_timeout": "8s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "15s",
}
"""Of every session: what a server left that is gone is free soon."""

_LOST = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what asyncpg says when it was cut in the middle of a roll-back
    OSError,
)
"""Outside a caller's work every error is the database's, and may pass."""

_WRONG = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.SyntaxOrAccessError,
)
"""Inside it these are the work's own fault."""


class PostgresSession:
    """Statements of one open transaction."""

    def __init__(self, connection: Any, engine: Engine, revision: int) -> None:
        self._connection = connection
        self._prepare = engine.prepare
        self.statements = engine.statements
        self.revision = revision

    async def all(self, statement: sa.sql.ClauseElement, **parameters: Any) -> Sequence[Row]:
        prepared = self._prepare(statement)
        return [tuple(row) for row in await self._connection.fetch(prepared.sql, *prepared.arguments(parameters))]

    async def run(self, statement: sa.sql.ClauseElement, **parameters: Any) -> int:
        prepared = self._prepare(statement)
        tag = await self._connection.execute(prepared.sql, *prepared.arguments(parameters))
        return int(tag.rpartition(" ")[2])


class PostgresEngine(Engine):
    """A PostgreSQL database shared by any number of servers. ``url``: postgresql://user:password@host:port/name."""

    def __init__(self, url: str) -> None:
        super().__init__(SPELLING)
        self._connecting = {
            "dsn": url,
            "timeout": ANSWER_TIMEOUT_S,
            "command_timeout": ANSWER_TIMEOUT_S,
            "server_settings": SETTINGS,
        }
        self._pool: Any = None
        self._connection: Any = None
        self._listener: Any = None
        self._notify = asyncio.Event()
        self._notifier: asyncio.Task[None] | None = None
        self.on_notify: Callable[[], None] = lambda: None
        """Called when another server committed something."""

    async def open(self) -> None:
        try:
            self._pool = await asyncpg.create_pool(min_size=1, max_size=8, **self._connecting)
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(7241)")  # two servers may start at once
                await self._make_tables(connection)
        except _LOST as error:
            raise Transient(f"PostgreSQL does not answer: {error}", code="database-unavailable") from error
        self._notifier = asyncio.create_task(self._notify_others(), name="store-notifier")
        self.start_writer()

    async def _make_tables(self, connection: Any) -> None:
        """Make what is missing; nothing missing: nothing is locked, for other servers may be writing."""
        names = [*(table.name for table, _ in SPELLING.tables), *(name for name, _ in SPELLING.indexes)]
        there = await connection.fetchval("SELECT COUNT(*) FROM pg_class WHERE relname = ANY($1)", names)
        if there == len(names) and not await _additions(connection):
            return
        if await connection.fetchval("SELECT to_regclass('counter')") is not None:
            await connection.execute("LOCK TABLE counter IN EXCLUSIVE MODE")  # first, as every writer does: no deadlock
        for _, create in SPELLING.tables:
            await connection.execute(create)
        for addition in await _additions(connection):
            await connection.execute(addition)
        for _, create in SPELLING.indexes:
            await connection.execute(create, timeout=INDEX_TIMEOUT_S)
        await connection.execute("INSERT INTO counter VALUES('revision', 0) ON CONFLICT DO NOTHING")

    async def close(self) -> None:
        await super().close()
        if self._notifier is not None:
            self._notifier.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._notifier
        for connection in (self._connection, self._listener):
            if connection is not None and not connection.is_closed():
                try:
                    await connection.close(timeout=CLOSE_TIMEOUT_S)
                except _LOST:
                    _drop(connection)
        if self._pool is not None:
            await self._pool.close()

    async def fetch(self, statement: sa.sql.ClauseElement, **parameters: Any) -> Sequence[Row]:
        prepared = self.prepare(statement)
        try:
            async with self._pool.acquire(timeout=ANSWER_TIMEOUT_S) as connection:
                return [tuple(row) for row in await connection.fetch(prepared.sql, *prepared.arguments(parameters))]
        except _LOST as error:
            raise Transient(f"PostgreSQL does not answer: {error}", code="database-unavailable") from error

    @contextlib.asynccontextmanager
    async def group(self) -> AsyncIterator[Session]:
        try:
            connection = await self._writing()
            async with connection.transaction():
                row = await connection.fetchrow("SELECT value FROM counter WHERE name='revision' FOR UPDATE")
                session = PostgresSession(connection, self, row[0])
                yield session
                await connection.execute("UPDATE counter SET value=$1 WHERE name='revision'", session.revision)
        except _LOST as error:
            _drop(self._connection)
            self._connection = None
            raise Transient(f"PostgreSQL did not take the write: {error}", code="database-unavailable") from error
        self._notify.set()

    async def attempt(self, session: Session, work: Work[T]) -> T:
        try:
            async with self._connection.transaction():
                return await work(session)
        except _WRONG:
            raise
        except _LOST as error:
            raise Transient(f"PostgreSQL did not take the write: {error}", code="database-unavailable") from error

    async def _writing(self) -> Any:
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(**self._connecting)
        return self._connection

    async def _notify_others(self) -> None:
        """Tell the other servers that something was committed, and hear them; polling covers what is lost."""
        while True:
            try:
                if self._listener is None or self._listener.is_closed():
                    self._listener = await asyncpg.connect(**self._connecting)
                    await self._listener.add_listener(CHANNEL, lambda *_: self.on_notify())
                await self._notify.wait()
                self._notify.clear()
                await self._listener.execute(f"NOTIFY {CHANNEL}")
            except _LOST:
                _drop(self._listener)
                self._listener = None
                await asyncio.sleep(1.0)
            await asyncio.sleep(NOTIFY_EVERY_S)


async def _additions(connection: Any) -> list[str]:
    """Return what adds the columns that the tables lack."""
    query = "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped"
    found: list[str] = []
    for table, _ in SPELLING.tables:
        present = [row[0] for row in await connection.fetch(query, table.name)]
        found += tables.additions(table, present, SPELLING.dialect)
    return found


def _drop(connection: Any) -> None:
    """Free the socket of a connection that was lost: asyncpg leaves that to its owner."""
    if connection is not None:
        connection.terminate()
