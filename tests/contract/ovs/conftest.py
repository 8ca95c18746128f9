"""A host of its own for each test of the switch, and the proof that nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.contract.ovs.site import Site

from pileus.drivers.host.ovs.command import PACKAGES
from pileus.drivers.host.ovs.real import OpenVSwitch
from pileus.drivers.host.paths import HostPaths


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostPaths]:
    """Paths of a host that can have a real switch; whatever the test leaves running is taken down."""
    skip_without_switch()
    paths = HostPaths.under(tmp_path / "state")
    yield paths
    asyncio.run(OpenVSwitch(paths).remove())
    assert_nothing_left(paths)


def skip_without_switch() -> None:
    if os.geteuid() != 0:
        pytest.skip("a real switch needs root")
    missing = [program for program in PACKAGES if shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin") is None]
    if missing:
        pytest.skip(f"a real switch needs {', '.join(missing)}")


def assert_nothing_left(paths: HostPaths) -> None:
    assert not paths.switch.exists()
    assert not paths.run.exists()
    assert not (Path("/run/netns") / paths.namespace).exists()
    assert not processes_of(paths)


def processes_of(paths: HostPaths) -> list[int]:
    """Return the processes that have the host's folder in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if str(paths.run).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """Three hosts with real switches."""
    async with built(tmp_path) as site:
        yield site


@contextlib.asynccontextmanager
async def built(folder: Path) -> AsyncIterator[Site]:
    """Give three hosts with real switches; whatever the test leaves is taken down."""
    skip_without_switch()
    site = Site(folder)
    try:
        await site.build()
        yield site
    finally:
        await site.remove()
    for lan in site.hosts.values():
        assert_nothing_left(lan.paths)
