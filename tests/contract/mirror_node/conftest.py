"""A decapsulator for each test, on both of its data paths."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.mirror_node import rig


@pytest.fixture(params=["xdp", "packets"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[rig.Node]:
    yield from running(request.param, tmp_path)


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rig.Node]:
    """One for all tests that leave nothing behind."""
    yield from running("packets", tmp_path_factory.mktemp("node"))


def running(path: str, folder: Path) -> Iterator[rig.Node]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a decapsulator in a network namespace needs root and iproute2")
    yield from rig.run(path, folder)
