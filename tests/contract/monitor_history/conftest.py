"""One customer's PostgreSQL for the suite, and a fresh database in it for each test."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

import pytest
from tests.contract.monitor_history.customers_database import Database, running
from tests.contract.monitor_history.history_rig import Rig
from tests.postgres import BIN


@pytest.fixture(scope="session")
def history_database() -> Iterator[Database]:
    """The customer's cluster."""
    if not (BIN / "postgres").exists():
        pytest.skip("PostgreSQL 15 is not installed: apt-get install postgresql-15")
    with running() as database:
        yield database


@pytest.fixture
def anyio_backend() -> str:
    """The event loop that the server has."""
    return "asyncio"


@pytest.fixture
def rig(history_database: Database) -> Rig:
    """A fresh database, and what writes there."""
    name = f"h{uuid.uuid4().hex[:12]}"
    asyncio.run(history_database.fetch(f"CREATE DATABASE {name}"))
    return Rig(history_database, name)
