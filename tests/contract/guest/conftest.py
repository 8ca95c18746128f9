"""A host with a guest for each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pileus.drivers.host.paths import HostPaths

if TYPE_CHECKING:
    from tests.contract.guest.guest_rigs import FakeRig, RealRig, Rig
else:
    from guest_rigs import FakeRig, RealRig


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[HostPaths]:
    """A host of its own, with sockets in a short folder."""
    if shutil.which("xorriso") is None:
        pytest.skip("real seeds need xorriso")
    with tempfile.TemporaryDirectory(prefix="pg") as run:
        yield HostPaths(state=tmp_path / "state", run=Path(run))


@pytest.fixture(params=["fake", "real"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    made: Rig = FakeRig() if request.param == "fake" else RealRig(request.getfixturevalue("paths"))
    yield made
    await made.stop()
