"""The random walk, short: on SQLite, and on PostgreSQL with two servers. The long one is a command."""

from __future__ import annotations

import time

import pytest

from tests.cloud.walk_main import walk
from tests.postgres import postgres, postgres_url

__all__ = ["postgres", "postgres_url"]


def test_no_invariant_breaks_on_a_random_walk() -> None:
    seed = int(time.time())
    print(f"seed {seed}")
    done = walk(2000, seed)
    assert done.operations == 2000
    assert done.outcomes["create ok"] > 70


@pytest.mark.long
def test_no_invariant_breaks_on_a_random_walk_with_two_servers_on_postgresql(postgres_url: str) -> None:
    seed = int(time.time())
    print(f"seed {seed}")
    done = walk(500, seed, postgres_url, servers=2)
    assert done.operations == 500
