"""The benches as fixtures."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.contract.qemu.qemu_bench import Bench, FakeBench, RealBench, need_real
else:
    from qemu_bench import FakeBench, RealBench, need_real


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def real() -> AsyncIterator[RealBench]:
    """A bench with real machines; none of them is left afterwards."""
    need_real()
    # Not pytest's folder: socket paths have a limit of 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="pileus-q-"))
    bench = RealBench(folder)
    try:
        yield bench
    finally:
        await bench.tear_down()
        shutil.rmtree(folder)


@pytest.fixture(params=["fake", "real"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """Either bench."""
    if request.param == "fake":
        return FakeBench()
    found: RealBench = request.getfixturevalue("real")
    return found
