"""A folder for what is scanned."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.jail import require_jail


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder; skipped where no jail can be made."""
    require_jail("qemu-img", "setpriv")
    (tmp_path / "scratch").mkdir()
    return tmp_path
