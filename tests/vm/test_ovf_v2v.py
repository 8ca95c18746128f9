"""virt-v2v converts what is exported, to its end: an ordinary Debian, inspected and made fit for another KVM."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.vm.debian_disk import debian_disk, debian_tree, kernel_release, need_debootstrap
    from tests.vm.realcloud import RealCloud
else:
    from debian_disk import debian_disk, debian_tree, kernel_release, need_debootstrap
    from realcloud import RealCloud

pytestmark = pytest.mark.long

IMPORT_S = 300.0
CONVERT_S = 900.0
"""libguestfs starts a machine of its own without acceleration, and rebuilds the guest's initramfs in it."""


def environment(root: Path, folder: Path) -> dict[str, str]:
    """Return what libguestfs needs to start a machine with the kernel of the tree, and to leave nothing elsewhere."""
    release = kernel_release(root)
    return {
        **os.environ,
        "LIBGUESTFS_BACKEND": "direct",
        "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg",
        "LIBGUESTFS_CACHEDIR": str(folder),
        "TMPDIR": str(folder),
        "SUPERMIN_KERNEL": str(root / "boot" / f"vmlinuz-{release}"),
        "SUPERMIN_KERNEL_VERSION": release,
        "SUPERMIN_MODULES": str(root / "lib/modules" / release),
    }


def with_modules(folder: Path) -> list[str]:
    """Return what runs the command after it on a machine with /lib/modules, which supermin copies, be it empty."""
    if Path("/lib/modules").is_dir():
        return []
    (folder / "modules").mkdir(parents=True)
    mount = f"mount -t overlay none -o lowerdir={folder}:/usr/lib /usr/lib"
    return ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]


def test_virt_v2v_converts_what_is_exported(cloud: RealCloud, tmp_path: Path) -> None:
    for program in ("virt-v2v", "nbdkit", "nbdcopy"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    need_debootstrap()
    root = debian_tree(tmp_path)
    disk = debian_disk(root, tmp_path / "debian.raw")
    account = ("--account", "acme")
    cloud.pileus("create", "image", "debian", "--file", str(disk), *account, "--wait", timeout_s=IMPORT_S)
    cloud.pileus("create", "vm", "debian", "--image", "debian", "--power", "stopped", *account, "--wait")
    made = ("--for", "jsonpath={.observed.state}=present")
    cloud.pileus("wait", "volume", cloud.vm("debian")["assigned"]["volumes"][0], *account, *made)
    exported = tmp_path / "debian.ova"
    cloud.pileus("ovf", "export", "debian", *account, "-o", str(exported), timeout_s=IMPORT_S)
    work = tmp_path / "work"
    work.mkdir()
    words = [*with_modules(tmp_path / "lib"), "virt-v2v", "-i", "ova", str(exported), "-o", "null"]
    done = subprocess.run(
        words, check=False, capture_output=True, text=True, env=environment(root, work), timeout=CONVERT_S
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for step in ("Converting 12", "This guest has virtio drivers installed", "Finishing off"):
        assert step in said, said
