"""PostgreSQL under virtual time: the simulation stands still while the database works."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import sqlalchemy as sa

from pileus.kernel.store.engine import Row, Session
from pileus.kernel.store.postgres import PostgresEngine
from tests.virtual_time import real_time


class VirtualPostgres(PostgresEngine):
    """The engine as it is, with every wait for the database outside simulated time."""

    async def open(self) -> None:
        with real_time():
            await super().open()

    async def close(self) -> None:
        with real_time():
            await super().close()

    async def fetch(self, statement: sa.sql.ClauseElement, **parameters: Any) -> Sequence[Row]:
        with real_time():
            return await super().fetch(statement, **parameters)

    @contextlib.asynccontextmanager
    async def group(self) -> AsyncIterator[Session]:
        with real_time():
            async with super().group() as session:
                yield session
