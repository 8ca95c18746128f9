"""The recipe of ``debian-qga``: what a foreign appliance is to Pileus, a Debian with nothing of ours but its agent.

QEMU's guest agent runs in it, and no NIC is needed. It proves the backchannel of the form ``qga``.
"""

from __future__ import annotations

from pathlib import Path

from pileus.image.build import Recipe
from pileus.image.closed import closed_root
from pileus.image.ext4 import Ext4
from pileus.image.kernel import Kernel
from pileus.image.programs import add_binaries
from pileus.image.tree import Tree

ROOT_BYTES = 96 << 20

_FILES = Path(__file__).parent / "debian-qga"


def root_tree(unpacked: Path, kernel: Kernel) -> Tree:
    """Return the machine's root."""
    tree = closed_root(unpacked, kernel, _FILES)
    add_binaries(tree, unpacked, ("usr/sbin/qemu-ga",))
    tree.file("lib/agent", (_FILES / "agent").read_bytes(), 0o755)
    return tree


DEBIAN_QGA = Recipe(
    name="debian-qga",
    revision=1,
    programs=("busybox-static", "qemu-guest-agent"),
    root=Ext4(size_bytes=ROOT_BYTES, label="root", uuid="70696c65-7573-4074-a96e-790000000003"),
    root_tree=root_tree,
)
