"""A rig of three hosts for each test, and the proof that nothing of it is left."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.mirror.rig import FakeRig, RealRig, Rig

from pileus.drivers.host.ovs import namespace


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[RealRig]:
    skip_without_kernel()
    rig = RealRig(tmp_path)
    try:
        await rig.build()
        yield rig
    finally:
        await rig.remove()
    assert_nothing_left(rig)


@pytest.fixture(params=["fake", "real", "without tcx"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    """The same hosts three times: in memory, in the kernel, and there as in one before 6.6."""
    if request.param == "fake":
        fake = FakeRig()
        await fake.build()
        yield fake
        return
    skip_without_kernel()
    real = RealRig(tmp_path, "never" if request.param == "without tcx" else "if-there")
    try:
        await real.build()
        yield real
    finally:
        await real.remove()
    assert_nothing_left(real)


def assert_nothing_left(rig: RealRig) -> None:
    for host in rig.real.values():
        assert not os.path.ismount(host.paths.run / "mirror")
        assert not [path for path in host.paths.run.rglob("*") if path.is_file()]
        assert not (namespace.FOLDER / host.paths.namespace).exists()
        shutil.rmtree(host.paths.run, ignore_errors=True)


def skip_without_kernel() -> None:
    if os.geteuid() != 0:
        pytest.skip("a real mirror needs root")
