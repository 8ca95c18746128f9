"""SQLite: one writer connection and one reader, both used in the event loop's thread; only COMMIT, which waits for the

disk, runs in a thread. Measured: 2-4 times the throughput of handing each statement to a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite as dialect
from sqlalchemy.dialects.sqlite import insert

from pileus.kernel.errors import Bug, Transient
from pileus.kernel.store import tables
from pileus.kernel.store.engine import Engine, Row, Session, Spelling, Work

T = TypeVar("T")

SPELLING = Spelling(dialect.dialect(paramstyle="qmark"), insert)


class SqliteSession:
    """Statements of the writer's open transaction; nothing here ever suspends."""

    def __init__(self, connection: sqlite3.Connection, engine: Engine, revision: int):
        self._connection = connection
        self._prepare = engine.prepare
        self.statements = engine.statements
        self.revision = revision

    async def all(self, statement: sa.sql.ClauseElement, **parameters: Any) -> Sequence[Row]:
        prepared = self._prepare(statement)
        return self._connection.execute(prepared.sql, prepared.arguments(parameters)).fetchall()

    async def run(self, statement: sa.sql.ClauseElement, **parameters: Any) -> int:
        prepared = self._prepare(statement)
        return self._connection.execute(prepared.sql, prepared.arguments(parameters)).rowcount


class SqliteEngine(Engine):
    """A database file of one server process (WAL, synchronous=FULL)."""

    def __init__(self, path: Path, *, commit_inline: bool = False) -> None:
        """``commit_inline`` commits in the loop's thread: simulations, whose time stands still meanwhile."""
        super().__init__(SPELLING)
        self._path = path
        self._commit_inline = commit_inline
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._write: sqlite3.Connection
        self._read: sqlite3.Connection
        self._revision = 0

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, cached_statements=512)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA busy_timeout=10000")
        connection.execute("PRAGMA cache_size=-65536")
        return connection

    async def open(self) -> None:
        try:
            self._write, self._read = self._connect(), self._connect()
            for table, create in SPELLING.tables:
                self._write.execute(create)
                present = [row[1] for row in self._write.execute(f"PRAGMA table_info({table.name})")]
                for addition in tables.additions(table, present, SPELLING.dialect):
                    self._write.execute(addition)
            for _, create in SPELLING.indexes:
                self._write.execute(create)
            self._write.execute("INSERT INTO counter(name, value) VALUES('revision', 0) ON CONFLICT DO NOTHING")
            self._revision = self._write.execute("SELECT value FROM counter WHERE name='revision'").fetchone()[0]
        except sqlite3.Error as error:
            raise Transient(f"the database {self._path.name} cannot be opened: {error}") from error
        self.start_writer()

    async def close(self) -> None:
        await super().close()
        self._thread.shutdown(wait=True)
        self._read.close()
        self._write.close()

    async def fetch(self, statement: sa.sql.ClauseElement, **parameters: Any) -> Sequence[Row]:
        prepared = self.prepare(statement)
        try:
            return self._read.execute(prepared.sql, prepared.arguments(parameters)).fetchall()
        except sqlite3.ProgrammingError:  # ours, not the database's
            raise
        except sqlite3.Error as error:
            raise Transient(f"the database does not answer: {error}", code="database-unavailable") from error

    @contextlib.asynccontextmanager
    async def group(self) -> AsyncIterator[Session]:
        try:
            self._write.execute("BEGIN IMMEDIATE")
            session = SqliteSession(self._write, self, self._revision)
            yield session
            self._write.execute("UPDATE counter SET value=? WHERE name='revision'", (session.revision,))
            if self._commit_inline:
                self._write.execute("COMMIT")
            else:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._write.execute, "COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._write.execute("ROLLBACK")
            raise Transient(f"the database did not take the write: {error}", code="database-unavailable") from error
        except BaseException:
            if self._write.in_transaction:
                self._write.execute("ROLLBACK")
            raise
        self._revision = session.revision

    async def attempt(self, session: Session, work: Work[T]) -> T:
        self._write.execute("SAVEPOINT attempt")
        coroutine: Any = work(session)
        try:
            coroutine.send(None)
        except StopIteration as done:
            self._write.execute("RELEASE attempt")
            result: T = done.value
            return result
        except sqlite3.OperationalError as error:  # disk full, I/O error: the whole group is lost
            raise Transient(f"the database did not take the write: {error}", code="database-unavailable") from error
        except BaseException:
            self._write.execute("ROLLBACK TO attempt")
            self._write.execute("RELEASE attempt")
            raise
        coroutine.close()
        self._write.execute("ROLLBACK TO attempt")
        self._write.execute("RELEASE attempt")
        raise Bug("a write waited for something inside its transaction")
