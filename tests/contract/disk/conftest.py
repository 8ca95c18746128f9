"""Pools for each test: simulated and real, roomy and nearly full."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from pileus.drivers.host.disk.base import DiskPool
from pileus.drivers.host.disk.fake import FakePool, FakePoolWorld
from pileus.drivers.host.disk.real import QemuImgPool
from pileus.drivers.host.paths import HostPaths

SMALL_BYTES = 1024 * 1024


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Rig(Protocol):
    """One host's disk, and the agents that come and go over it."""

    def pool(self) -> DiskPool: ...


class FakeRig:
    def __init__(self, capacity_bytes: int) -> None:
        self.world = FakePoolWorld(latencies_s={})
        self.capacity_bytes = capacity_bytes

    def pool(self) -> DiskPool:
        return FakePool(self.world, self.capacity_bytes)


class RealRig:
    def __init__(self, state: Path) -> None:
        self.paths = HostPaths.under(state)

    def pool(self) -> QemuImgPool:
        return QemuImgPool(self.paths)

    def names(self) -> set[str]:
        """Return every file of the pool, relative to it."""
        return {str(path.relative_to(self.paths.pool)) for path in self.paths.pool.rglob("*") if path.is_file()}


def need(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


@pytest.fixture
def real(tmp_path: Path) -> RealRig:
    need("qemu-img", "qemu-io")
    return RealRig(tmp_path / "state")


@pytest.fixture
def full_real(tmp_path: Path) -> Iterator[RealRig]:
    """A real pool on a file system of ``SMALL_BYTES``."""
    need("qemu-img", "mount")
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    state = tmp_path / "small"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "pileus-test", state], check=True)
    try:
        yield RealRig(state)
    finally:
        subprocess.run(["umount", state], check=True)


@pytest.fixture(params=["fake", "real"])
def rig(request: pytest.FixtureRequest) -> Rig:
    if request.param == "fake":
        return FakeRig(10 * 1024**3)
    rig: RealRig = request.getfixturevalue("real")
    return rig


@pytest.fixture(params=["fake", "real"])
def small_rig(request: pytest.FixtureRequest) -> Rig:
    if request.param == "fake":
        return FakeRig(SMALL_BYTES)
    rig: RealRig = request.getfixturevalue("full_real")
    return rig
