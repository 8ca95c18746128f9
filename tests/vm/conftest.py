"""Clouds that several test files share; starting one takes about three seconds, so it is done once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.vm import realcloud
else:
    import realcloud


@pytest.fixture(scope="session")
def cloud() -> Iterator[realcloud.RealCloud]:
    """A cloud of one process, with the account acme; each test uses VMs of its own names."""
    with realcloud.upped() as running:
        running.pileus("create", "account", "acme")
        yield running
