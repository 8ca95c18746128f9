"""An ordinary Debian on a disk, as debootstrap makes it: what tools look for that convert systems of others."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SUITE = "bookworm"
PACKAGES = ("linux-image-cloud-amd64", "initramfs-tools", "grub2-common", "grub-pc-bin")
ROOT = "70696c65-7573-4074-a96e-7900000000d1"
DISK_MIB = 2048
MAKE_S = 600.0
MEGABYTE = 1 << 20


def need_debootstrap() -> None:
    """Skip, visibly, where no Debian can be made."""
    for program in ("debootstrap", "sfdisk", "mke2fs"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def debian_tree(folder: Path) -> Path:
    """Return a folder with a Debian of a kernel, its initramfs and GRUB; no service of it runs, none is started."""
    root = folder / "root"
    # The mounts that debootstrap leaves in the tree end with its namespace.
    words = [
        "unshare",
        "--mount",
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        SUITE,
        str(root),
    ]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=MAKE_S)
    if done.returncode != 0:
        pytest.skip(f"debootstrap made no Debian here: {' '.join(done.stdout.splitlines()[-1:])} {done.stderr}")
    for file in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*Packages")):
        file.unlink()
    (root / "etc/fstab").write_text(f"UUID={ROOT} / ext4 errors=remount-ro 0 1\n")
    (root / "etc/hostname").write_text("debian\n")
    # Everything is rebuilt in a guest without acceleration: the few modules that a VM needs, not all there are.
    settings = root / "etc/initramfs-tools/initramfs.conf"
    settings.write_text(settings.read_text().replace("MODULES=most", "MODULES=list"))
    (root / "etc/initramfs-tools/modules").write_text("virtio_pci\nvirtio_blk\next4\n")
    release = kernel_release(root)
    (root / "boot/grub").mkdir(exist_ok=True)
    (root / "boot/grub/grub.cfg").write_text(
        "menuentry 'Debian GNU/Linux' {\n"
        f"  search --no-floppy --fs-uuid --set=root {ROOT}\n"
        f"  linux /boot/vmlinuz-{release} root=UUID={ROOT} ro console=ttyS0\n"
        f"  initrd /boot/initrd.img-{release}\n"
        "}\n"
    )
    return root


def kernel_release(root: Path) -> str:
    """Return the release of the tree's one kernel."""
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    return kernel.name.removeprefix("vmlinuz-")


def debian_disk(root: Path, path: Path) -> Path:
    """Write the tree as a raw disk with one partition. No boot loader is in its first sectors: nobody starts it."""
    with path.open("wb") as disk:
        disk.truncate(DISK_MIB * MEGABYTE)
    table = "label: dos\nstart=2048, type=83, bootable\n"
    subprocess.run(["sfdisk", "--quiet", str(path)], input=table, text=True, check=True)
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-U", ROOT, "-E", f"offset={MEGABYTE}", "-d", str(root), str(path)]
    subprocess.run([*words, f"{DISK_MIB - 1}M"], check=True)
    return path
