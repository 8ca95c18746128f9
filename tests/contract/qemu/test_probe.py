"""Whether KVM is used is decided by a guest that really boots under it, within a few seconds, once per boot."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pileus.drivers.host.qemu.probe import PROBE_TIMEOUT_S, choose, try_kvm
from pileus.drivers.host.qemu.real import QemuHypervisor

if TYPE_CHECKING:
    from tests.contract.qemu.qemu_bench import RealBench, need_real
    from tests.contract.qemu.qemu_guest import live_boot
else:
    from qemu_bench import RealBench, need_real
    from qemu_guest import live_boot

pytestmark = pytest.mark.anyio


def under_kvm() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.joinpath("cmdline").exists():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if b"kvm" in arguments:
                found.append(entry.name)
    return found


async def test_without_a_test_guest_the_answer_is_tcg(tmp_path: Path) -> None:
    found = await choose(tmp_path, "auto", None)
    assert found.name == "tcg"
    assert found.reason


async def test_an_accelerator_that_was_asked_for_is_not_questioned(tmp_path: Path) -> None:
    assert (await choose(tmp_path, "kvm", None)).name == "kvm"
    assert (await choose(tmp_path, "tcg", None)).name == "tcg"
    assert os.listdir(tmp_path) == []


async def test_a_kvm_that_hangs_is_given_up_in_time_and_leaves_no_process() -> None:
    need_real()
    if not os.path.exists("/dev/kvm"):  # noqa: ASYNC240
        pytest.skip("this computer has no /dev/kvm")
    guest = live_boot()
    before = under_kvm()
    started = time.monotonic()
    found = await try_kvm(guest, [])
    took_s = time.monotonic() - started
    print(f"{found.name} after {took_s:.2f} s: {found.reason}")
    assert took_s < PROBE_TIMEOUT_S + 2
    assert under_kvm() == before


async def test_a_guest_boots_under_what_was_found_and_the_answer_is_kept(real: RealBench) -> None:
    guest = live_boot()
    for _ in range(2):
        started = time.monotonic()
        agent = QemuHypervisor(real.paths, real.open_tap, "auto", test_guest=guest)
        await agent.open()
        took_s = time.monotonic() - started
        found = agent.accelerator()
        await agent.start(real.spec("m1", live=True))
        await real.guest_ready("m1")
        await agent.power_off("m1")
        await agent.close()
    print(f"{found.name}: {found.reason}")
    assert took_s < 1.0
