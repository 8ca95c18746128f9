"""What tests of eBPF stand on: a kernel that takes programs, a bpffs of their own, a network namespace of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.ebpf.rooms import Room, skip_without_ebpf


@pytest.fixture(autouse=True)
def _kernel_with_ebpf() -> None:
    skip_without_ebpf()


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    """A bpffs in a temporary folder."""
    folder = tmp_path / "pins"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "bpf", "none", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no bpffs can be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def room() -> Iterator[Room]:
    """A network namespace without a way out."""
    made = Room()
    yield made
    made.close()
