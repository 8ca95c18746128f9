"""What tests of eBPF stand on: a kernel that takes programs, a bpffs of their own, a network namespace of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.ebpf.rooms import Room, is_root

from pileus.node.ebpf import kernel


@pytest.fixture(autouse=True)
def _kernel_with_ebpf() -> None:
    if not is_root():
        pytest.skip("eBPF needs root")
    try:
        os.close(kernel.create_map(kernel.ARRAY, 4, 4, 1, name="probe"))
    except kernel.BpfRefused as exc:
        pytest.skip(f"this kernel takes no eBPF: {exc}")


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
