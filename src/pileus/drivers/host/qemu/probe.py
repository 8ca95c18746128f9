"""Which accelerator to use: KVM only when a Linux guest really boots under it, because /dev/kvm may open and then hang.

A few bytes of boot sector are no proof (they ran where Linux hung), so without a test guest the answer is TCG.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from pileus.drivers.host.qemu.base import Accelerator, DirectBoot
from pileus.drivers.host.qemu.command import QEMU, SANDBOX
from pileus.drivers.host.qemu.jail import FIRST_UID, UID_COUNT, jail, kvm_groups
from pileus.drivers.host.qemu.procfs import host_boot

PROBE_TIMEOUT_S = 5.0
"""A kernel under KVM reaches its init in about 1 s."""

PROBE_UID = FIRST_UID + UID_COUNT

_BOOTED = b"Run /init as init process"  # printed by init/main.c since Linux 5.0 when the initramfs takes over


class _Kept(Struct, frozen=True):
    boot: str
    had_guest: bool
    accelerator: Accelerator


async def choose(run: Path, wanted: Literal["auto", "kvm", "tcg"], guest: DirectBoot | None) -> Accelerator:
    """Return the accelerator; a probe's result is kept in ``run`` for this boot of the host."""
    if wanted != "auto":
        return Accelerator(name=wanted, reason="asked for")
    file = run / "accelerator.json"
    with suppress(OSError, msgspec.DecodeError):
        kept = msgspec.json.decode(file.read_bytes(), type=_Kept)
        if kept.boot == host_boot() and kept.had_guest >= (guest is not None):
            return kept.accelerator
    found = await probe_kvm(guest)
    draft = file.with_suffix(".new")
    draft.write_bytes(msgspec.json.encode(_Kept(host_boot(), guest is not None, found)))
    draft.replace(file)
    return found


async def probe_kvm(guest: DirectBoot | None, timeout_s: float = PROBE_TIMEOUT_S) -> Accelerator:
    """Return KVM when ``guest`` boots under it within ``timeout_s``, else TCG; the reason says what was found."""
    if not _has_kvm():
        return _tcg("this computer has no /dev/kvm")
    if guest is None:
        return _tcg("no test guest at hand to try KVM with")
    groups = kvm_groups()
    if groups is None:
        return _tcg("/dev/kvm is closed to its group; give it to the group kvm with mode 0660")
    return await try_kvm(guest, jail(PROBE_UID, groups), timeout_s)


async def try_kvm(guest: DirectBoot, prefix: list[str], timeout_s: float = PROBE_TIMEOUT_S) -> Accelerator:
    """Boot ``guest`` under KVM behind the command ``prefix``; its process is killed at the latest at ``timeout_s``."""
    kernel, initrd = (os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in (guest.kernel, guest.initrd))
    try:
        process = await asyncio.create_subprocess_exec(
            *prefix, QEMU, "-machine", "pc", "-accel", "kvm", "-cpu", "host", "-m", "256",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", SANDBOX,
            "-serial", "stdio", "-kernel", f"/proc/self/fd/{kernel}", "-initrd", f"/proc/self/fd/{initrd}",
            "-append", "console=ttyS0 panic=-1 loglevel=7",
            pass_fds=(kernel, initrd), start_new_session=True, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
    finally:
        os.close(kernel)
        os.close(initrd)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(timeout_s):
            printed = await _until_booted(process.stdout)
    except TimeoutError:
        return _tcg(f"a Linux guest did not boot under KVM within {timeout_s:g} s")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
    if _BOOTED in printed:
        return Accelerator(name="kvm", reason="a Linux guest booted under KVM")
    lines = printed.decode(errors="replace").strip().splitlines()
    return _tcg(f"QEMU under KVM ended: {lines[-1] if lines else 'no output'}")


async def _until_booted(stream: asyncio.StreamReader) -> bytes:
    printed = b""
    while _BOOTED not in printed:
        chunk = await stream.read(65536)
        if not chunk:
            break
        printed += chunk
    return printed


def _has_kvm() -> bool:
    return os.path.exists("/dev/kvm")


def _tcg(reason: str) -> Accelerator:
    return Accelerator(name="tcg", reason=reason)
