"""What a machine must have to be a host, and what to do about each thing that is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
from msgspec import Struct

from pileus.drivers.host.qemu.firmware import PACKAGE, UEFI_CODE, has_uefi

PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "ovs-vswitchd": "openvswitch-switch",
    "ovsdb-server": "openvswitch-switch",
    "ovs-ofctl": "openvswitch-switch",
    "ip": "iproute2",
    "xorriso": "xorriso",
    "setpriv": "util-linux",
}
"""Programs that an agent runs, and Debian's packages that have them."""

MEMORY_MIB_MIN = 1024


class Finding(Struct, frozen=True, kw_only=True):
    """One thing looked at. ``level``: ok, warning (works, less well) or error (does not work)."""

    level: str
    subject: str
    message: str


def examine() -> Iterator[Finding]:
    """Yield what is right and wrong with this machine, quickly; the accelerator is probed by ``pileus doctor`` itself."""
    if os.geteuid() == 0:
        yield Finding(level="ok", subject="root", message="runs as root")
    else:
        yield Finding(level="error", subject="root", message="an agent needs root; run with sudo")
    for program, package in PROGRAMS.items():
        path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if path:
            yield Finding(level="ok", subject=program, message=path)
        else:
            yield Finding(level="error", subject=program, message=f"not installed: apt-get install {package}")
    if Path("/dev/net/tun").exists():
        yield Finding(level="ok", subject="/dev/net/tun", message="taps can be made")
    else:
        yield Finding(level="error", subject="/dev/net/tun", message="missing: modprobe tun")
    if has_uefi():
        yield Finding(level="ok", subject="UEFI", message=str(UEFI_CODE))
    else:
        yield Finding(level="warning", subject="UEFI", message=f"only for BIOS; for UEFI: apt-get install {PACKAGE}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    level = "ok" if memory >= MEMORY_MIB_MIN else "warning"
    yield Finding(level=level, subject="memory", message=f"{memory} MiB")


def require() -> None:
    """Raises: ClickException naming everything that keeps this machine from being a host."""
    errors = [finding for finding in examine() if finding.level == "error"]
    if errors:
        lines = "; ".join(f"{finding.subject}: {finding.message}" for finding in errors)
        raise click.ClickException(f"this machine cannot be a host yet: {lines}")
