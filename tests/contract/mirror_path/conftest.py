"""Data paths of decapsulators on this machine's kernel, attached to nothing or to devices of a namespace of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.contract.ebpf.rooms import Room, skip_without_ebpf

from pileus.node.mirror.xdp import XdpPath


@pytest.fixture(autouse=True)
def _kernel_with_xdp() -> None:
    skip_without_ebpf()


@pytest.fixture
def path() -> Iterator[XdpPath]:
    """A data path that only takes test runs, all on one CPU, so that their order is the one of the counts."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    made = XdpPath(sniffers=1)
    yield made
    made.close()
    os.sched_setaffinity(0, cpus)


@pytest.fixture
def room() -> Iterator[Room]:
    """A network namespace without a way out."""
    made = Room()
    yield made
    made.close()
