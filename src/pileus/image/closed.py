"""The part that appliances' roots have in common: busybox as init, drivers, and nobody who could log in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pileus.image.build import COMMON_FILES
from pileus.image.kernel import Kernel, add_modules, load_order
from pileus.image.programs import add_busybox
from pileus.image.tree import Tree

MACHINE_MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "virtio_balloon", "virtio_console", "virtio_scsi"),
    *("sd_mod", "sr_mod", "ata_piix", "isofs", "acpiphp", "button", "evdev", "af_packet"),
)
"""Drivers of what a virtual machine has."""


def closed_root(
    unpacked: Path, kernel: Kernel, files: Path, modules: Iterable[str] = (), without: Iterable[str] = ()
) -> Tree:
    """Return a root whose init runs ``rc`` and ``inittab`` of the folder ``files``, with ``modules`` beside the usual.

    ``without``: names of busybox's applets that the image has better programs for.
    """
    tree = Tree()
    for folder in ("dev", "mnt", "proc", "run", "sys", "var/log"):
        tree.folder(folder)
    tree.folder("root", 0o700)
    tree.folder("tmp", 0o1777)
    tree.link("var/run", "/run")
    tree.link("var/lock", "/run")
    add_busybox(tree, unpacked, without)
    add_modules(tree, kernel, load_order(kernel, (*MACHINE_MODULES, *modules)))
    tree.file("etc/inittab", (files / "inittab").read_bytes())
    tree.file("etc/rc", (files / "rc").read_bytes(), 0o755)
    tree.file("etc/acpi/PWRF/00000080", (COMMON_FILES / "power-off").read_bytes(), 0o755)
    tree.file("etc/passwd", b"root:x:0:0:root:/root:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    tree.file("etc/shadow", b"root:!:19000:0:99999:7:::\nnobody:!:19000:0:99999:7:::\n", 0o600)
    tree.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    tree.file("etc/nsswitch.conf", b"passwd: files\ngroup: files\nshadow: files\nhosts: files\n")
    tree.file("etc/hosts", b"127.0.0.1 localhost\n")
    return tree
