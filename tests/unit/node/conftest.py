"""A machine of its own for each test of the role applications."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pileus.node.applications.role import Applications

if TYPE_CHECKING:
    from tests.unit.node.applications_role import Make


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes roles over one machine; what they started is ended."""
    roles: list[Applications] = []

    def made(boot_id: str = "boot-1") -> Applications:
        roles.append(Applications(tmp_path, boot_id))
        return roles[-1]

    yield made
    for role in roles:
        if not role._supervisor.wake.closed:
            role.apply({})
            role.close()
