"""A decapsulator for each test, on both of its data paths."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from tests.contract.mirror_node import rig


@pytest.fixture(params=["xdp", "packets"])
def node(request: pytest.FixtureRequest) -> Iterator[rig.Node]:
    yield from running(request.param)


@pytest.fixture(scope="module")
def one_node() -> Iterator[rig.Node]:
    """One for all tests that leave nothing behind."""
    yield from running("packets")


def running(path: str) -> Iterator[rig.Node]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a decapsulator in a network namespace needs root and iproute2")
    yield from rig.run(path)
