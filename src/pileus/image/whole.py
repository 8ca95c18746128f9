"""Puts Debian packages into an image as they are, but for what people read; no script of theirs runs."""

from __future__ import annotations

import os
from pathlib import Path

from pileus.image.elf import needed_libraries
from pileus.image.programs import add_libraries
from pileus.image.tree import Tree

_FOR_PEOPLE = (
    *("usr/share/doc/", "usr/share/man/", "usr/share/info/", "usr/share/locale/", "usr/share/lintian/"),
    *("usr/share/bug/", "usr/share/bash-completion/", "usr/share/doc-base/", "usr/share/menu/", "etc/init.d/"),
    *("lib/systemd/", "usr/lib/systemd/"),
)


def add_whole(tree: Tree, folder: Path, unpacked: Path) -> None:
    """Add what was unpacked into ``folder``, and the libraries that its programs need out of ``unpacked``."""
    wanted: list[str] = []
    for file in sorted(folder.rglob("*")):
        path = str(file.relative_to(folder))
        if f"{path}/".startswith(_FOR_PEOPLE) or tree.passes_link(path):
            continue
        if file.is_symlink():
            tree.link(path, os.readlink(file))
        elif file.is_dir():
            if path not in tree:
                tree.folder(path)
        else:
            content = file.read_bytes()
            tree.file(path, content, file.stat().st_mode & 0o777)
            wanted += needed_libraries(content) if content.startswith(b"\x7fELF") else []
    add_libraries(tree, unpacked, wanted)
