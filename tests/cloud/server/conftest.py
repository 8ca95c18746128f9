"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.cloud.server.server_world import World
from tests.cloud.server.server_world import world as made_world


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A fresh cluster."""
    async with made_world(tmp_path) as it:
        yield it
