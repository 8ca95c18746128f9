"""The recipe of ``tiny``, the default image of tenants' machines: kernel, busybox, dropbear, resize2fs.

What the machine does is said by the files in ``tiny/``; what it consists of, here.
"""

from __future__ import annotations

from pathlib import Path

from pileus.image.build import COMMON_FILES, Recipe
from pileus.image.ext4 import Ext4
from pileus.image.kernel import Kernel, add_modules, load_order
from pileus.image.programs import add_binaries, add_busybox
from pileus.image.tree import Tree

ROOT_BYTES = 96 << 20
"""Size of the root partition in the image; it grows to the volume at the first boot."""

_BINARIES = ("usr/sbin/dropbear", "usr/bin/dropbearkey", "usr/sbin/mke2fs", "usr/sbin/resize2fs")
_MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "virtio_balloon", "virtio_console", "virtio_scsi"),
    *("sd_mod", "sr_mod", "ata_piix", "isofs", "vfat", "nls_ascii", "nls_cp437", "nls_iso8859_1"),
    *("button", "evdev", "psmouse", "acpiphp"),
)
_FILES = Path(__file__).parent / "tiny"


def root_tree(unpacked: Path, kernel: Kernel) -> Tree:
    """Return the machine's root: no key, no machine-id, no password in it."""
    tree = Tree()
    for folder in ("dev", "etc/dropbear", "mnt", "proc", "run", "sys", "var/lib/pileus", "var/log", "www"):
        tree.folder(folder)
    tree.folder("root", 0o700)
    tree.folder("root/.ssh", 0o700)
    tree.folder("tmp", 0o1777)
    tree.link("etc/resolv.conf", "/run/resolv.conf")
    tree.link("var/run", "/run")
    add_busybox(tree, unpacked)
    add_binaries(tree, unpacked, _BINARIES)
    tree.link("usr/sbin/mkfs.ext4", "mke2fs")
    _add_accounts(tree)
    add_modules(tree, kernel, load_order(kernel, _MODULES))
    for name in ("inittab", "profile"):
        tree.file(f"etc/{name}", (_FILES / name).read_bytes())
    tree.file("etc/rc", (_FILES / "rc").read_bytes(), 0o755)
    tree.file("etc/acpi/PWRF/00000080", (_FILES / "power-off").read_bytes(), 0o755)
    for name in ("console-login", "hotplug", "udhcpc-script", "user-data"):
        tree.file(f"lib/pileus/{name}", (_FILES / name).read_bytes(), 0o755)
    for name in ("network", "network.awk", "seed", "yaml.awk"):
        tree.file(f"lib/pileus/{name}", (_FILES / name).read_bytes())
    tree.file("lib/pileus/seed-disk", (COMMON_FILES / "seed-disk").read_bytes())
    return tree


def _add_accounts(tree: Tree) -> None:
    tree.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    tree.file("etc/shadow", b"root:*:19000:0:99999:7:::\n", 0o600)  # no password fits "*"
    tree.file("etc/group", b"root:x:0:\ntty:x:5:\n")
    tree.file("etc/shells", b"/bin/sh\n")
    tree.file("etc/nsswitch.conf", b"passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n")


TINY = Recipe(
    name="tiny",
    revision=1,
    programs=("busybox-static", "dropbear-bin", "e2fsprogs"),
    root=Ext4(size_bytes=ROOT_BYTES, label="root", uuid="70696c65-7573-4074-a96e-790000000001"),
    root_tree=root_tree,
)
