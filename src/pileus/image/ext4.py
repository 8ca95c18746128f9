"""Writes a tree as an ext4 file system into a plain file: no mount, no root, the same bytes each time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from pileus.image.tools import EPOCH_S, run
from pileus.image.tree import Entry
from pileus.image.types import BuildError

_GROW_BLOCKS = 1 << 28
"""Room for block group descriptors up to 1 TiB of 4 KiB blocks; further growth still works, a little slower."""

_RESERVED_INODES = 11
"""Ten of the file system's own and lost+found."""


class Ext4(Struct, frozen=True, kw_only=True):
    """What is fixed about the file system; the identifier seeds its hashes too."""

    size_bytes: int
    label: str
    uuid: str


def write_ext4(entries: Sequence[Entry], image: Path, shape: Ext4, scratch: Path) -> None:
    """Write the file system. ``scratch`` takes the files' contents meanwhile. Raises: BuildError (ToolFailed).

    debugfs puts the files in rather than ``mke2fs -d``, which copies owners, change times and the order of the
    building machine's folders. Source: debugfs(8), mke2fs(8).
    """
    with image.open("wb") as file:
        file.truncate(shape.size_bytes)
    options = f"root_owner=0:0,resize={_GROW_BLOCKS},hash_seed={shape.uuid},lazy_itable_init=0,lazy_journal_init=1"
    layout = ["-t", "ext4", "-b", "4096", "-I", "256", "-m", "1"]
    features = ["-J", "size=4", "-O", "^orphan_file,^metadata_csum_seed"]
    run(["mke2fs", "-q", "-F", *layout, *features, "-U", shape.uuid, "-L", shape.label, "-E", options, image])
    script = "\n".join(_commands(entries, scratch)) + "\n"
    _refuse_complaints(run(["debugfs", "-w", "-f", "-", image], text=script.encode(), errors_too=True).decode())
    run(["e2fsck", "-f", "-n", image])
    used = _used_inodes(image)
    if used != _RESERVED_INODES + len(entries):
        raise BuildError("ToolFailed", f"debugfs wrote {used - _RESERVED_INODES} of {len(entries)} entries")


def _refuse_complaints(text: str) -> None:
    """debugfs ends well whatever happened: anything it says beyond the echo of its commands is a failure."""
    said = [line for line in text.splitlines() if line and not line.startswith(("debugfs", "Allocated inode: "))]
    if said:
        raise BuildError("ToolFailed", f"debugfs could not write the file system: {said[0]}")


def _used_inodes(image: Path) -> int:
    header = run(["dumpe2fs", "-h", image]).decode()
    counts = {line.partition(":")[0]: line.partition(":")[2].strip() for line in header.splitlines()}
    return int(counts["Inode count"]) - int(counts["Free inodes"])


def _commands(entries: Sequence[Entry], scratch: Path) -> Iterator[str]:
    for number, entry in enumerate(entries):
        folder, _, name = entry.path.rpartition("/")
        yield f"cd /{folder}"
        if entry.kind == "folder":
            yield f"mkdir {name}"
            yield f"sif {name} mode 0{0o040000 | entry.mode:o}"
        elif entry.kind == "link":
            yield f"symlink {name} {entry.content.decode()}"
        else:
            source = scratch / str(number)
            source.write_bytes(entry.content)
            yield f"write {source} {name}"
            yield f"sif {name} mode 0{0o100000 | entry.mode:o}"
        for field in ("atime", "ctime", "mtime", "crtime"):
            yield f"sif {name} {field} @{EPOCH_S}"
