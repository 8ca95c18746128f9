"""One suite for both engines: ``open_stores`` gives any number of stores on one fresh database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.store.store_bench import Bench
from tests.postgres import database, postgres, postgres_url

__all__ = ["bench", "postgres", "postgres_url"]


@pytest.fixture(params=["sqlite", "postgres"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A fresh database of each engine."""
    if request.param == "sqlite":
        yield Bench(path=tmp_path / "db")
        return
    with database(request.getfixturevalue("postgres")) as url:
        yield Bench(url=url)


@pytest.fixture
def shared_bench(postgres_url: str) -> Bench:
    """A fresh database that several servers may use at once."""
    return Bench(url=postgres_url)
