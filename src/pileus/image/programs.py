"""Takes programs out of unpacked Debian packages, with the libraries that they ask for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pileus.image.elf import needed_libraries
from pileus.image.tools import run
from pileus.image.tree import Tree
from pileus.image.types import BuildError

LIBRARIES = "lib/x86_64-linux-gnu"

_NO_APPLETS = {"busybox", "dpkg", "dpkg-deb", "linuxrc", "mke2fs", "rpm", "rpm2cpio"}
_SBIN_APPLETS = ("halt", "init", "modprobe", "poweroff", "reboot")


def find(unpacked: Path, path: str) -> Path:
    """Return the file in the unpacked packages, wherever Debian has it: /x or /usr/x. Raises: BuildError."""
    for candidate in (unpacked / path, unpacked / "usr" / path, unpacked / path.removeprefix("usr/")):
        if candidate.is_file():
            return candidate
    raise BuildError("BadPackage", f"no package holds {path}")


def add_busybox(tree: Tree, unpacked: Path, without: Iterable[str] = ()) -> None:
    """Add busybox under the names of its applets, except those in ``without``, which other programs give."""
    busybox = find(unpacked, "bin/busybox")
    tree.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in run([busybox, "--list"]).decode().split():
        if applet not in _NO_APPLETS and applet not in without:
            tree.link(f"bin/{applet}", "busybox")
    if "env" not in without:
        tree.link("usr/bin/env", "../../bin/busybox")  # where first lines of scripts look for it
    for applet in _SBIN_APPLETS:
        tree.link(f"sbin/{applet}", "../bin/busybox")


def add_binaries(tree: Tree, unpacked: Path, paths: Iterable[str]) -> None:
    """Add the programs (or loadable libraries) with all libraries that they need, directly or not."""
    wanted: list[str] = []
    for path in paths:
        content = find(unpacked, path).read_bytes()
        tree.file(path, content, 0o755)
        wanted += needed_libraries(content)
    add_libraries(tree, unpacked, wanted)
    tree.link("lib64", LIBRARIES)


def add_libraries(tree: Tree, unpacked: Path, names: Iterable[str]) -> None:
    """Add the libraries, and those that they need, unless the tree has one of that name somewhere."""
    there = {entry.path.rsplit("/", 1)[-1] for entry in tree}
    wanted = list(names)
    while wanted:
        library = wanted.pop()
        if library not in there:
            there.add(library)
            content = find(unpacked, f"{LIBRARIES}/{library}").read_bytes()
            tree.file(f"{LIBRARIES}/{library}", content, 0o755)
            wanted += needed_libraries(content)
