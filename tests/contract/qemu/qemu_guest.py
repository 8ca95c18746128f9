"""A small live guest: Debian's cloud kernel and busybox, which does what is typed on its serial console."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from pileus.drivers.host.qemu.base import DirectBoot
from pileus.image.kernel import find_kernel, load_order

MODULES = ["virtio_pci", "virtio_blk", "virtio_net", "virtio_balloon", "button", "evdev", "pvpanic_mmio", "isofs"]

_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
while read module; do insmod "/modules/$module" || echo "GUEST-NO $module" >/dev/ttyS0; done </order
mkdir -p /etc/acpi/PWRF
printf '#!/bin/sh\\npoweroff -f\\n' >/etc/acpi/PWRF/00000080; chmod 755 /etc/acpi/PWRF/00000080
acpid -l /dev/null
ip link set eth0 up 2>/dev/null
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo
echo "GUEST-READY $(cut -d' ' -f1 /proc/uptime)"
while read line; do eval "$line"; done
poweroff -f
"""


@functools.cache
def live_boot() -> DirectBoot:
    """Return kernel and initramfs, made once per computer; skips where they cannot be had."""
    for tool in ("apt-get", "dpkg-deb", "cpio", "busybox"):
        if shutil.which(tool) is None:
            pytest.skip(f"a live guest needs {tool}")
    folder = Path(tempfile.gettempdir()) / f"pileus-test-guest-{os.getuid()}"
    folder.mkdir(mode=0o711, exist_ok=True)
    unpacked = folder / "kernel"
    if not unpacked.exists():
        _fetch_kernel(folder, unpacked)
    kernel = find_kernel(unpacked)
    with tempfile.TemporaryDirectory(dir=folder) as build:
        initrd = _pack(Path(build), kernel)
        final = folder / "initrd.cpio"
        initrd.replace(final)
    return DirectBoot(kernel=str(kernel.image), initrd=str(final), append="console=ttyS0 quiet panic=1 net.ifnames=0")


def _fetch_kernel(folder: Path, unpacked: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as build:
        name = "linux-image-cloud-amd64"
        try:
            depends = _run("apt-cache", "depends", name, cwd=build)
            package = next(word for word in depends.split() if word.startswith("linux-image-") and word != name)
            _run("apt-get", "download", package, cwd=build)
        except (subprocess.SubprocessError, StopIteration):
            pytest.skip(f"a live guest needs the package {name}, which cannot be downloaded")
        draft = Path(build) / "kernel"
        _run("dpkg-deb", "-x", str(next(Path(build).glob("*.deb"))), str(draft), cwd=build)
        draft.replace(unpacked)


def _pack(build: Path, kernel: object) -> Path:
    root = build / "root"
    for folder in ("bin", "proc", "sys", "dev", "mnt", "etc", "modules"):
        (root / folder).mkdir(parents=True)
    shutil.copy2(shutil.which("busybox") or "", root / "bin/busybox")
    modules = load_order(kernel, MODULES)  # type: ignore[arg-type]
    for module in modules:
        (root / "modules" / f"{module.name}.ko").write_bytes(module.content)
    (root / "order").write_text("".join(f"{module.name}.ko\n" for module in modules))
    (root / "init").write_text(_INIT)
    (root / "init").chmod(0o755)
    names = "\n".join(str(one.relative_to(root)) for one in sorted(root.rglob("*")))
    archive = subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=names.encode(), check=True,
                             capture_output=True, timeout=60).stdout  # fmt: skip
    (build / "initrd.cpio").write_bytes(archive)
    return build / "initrd.cpio"


def _run(*command: str, cwd: str) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=300).stdout
