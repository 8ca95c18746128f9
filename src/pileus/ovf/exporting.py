"""Makes a package of VMs: disks as streamOptimized VMDK, descriptor, manifest and, when wanted, a signature.

``pack_disk`` for each disk, then ``package``, then ``archiving.write_archive`` or ``write_folder``. What is unpacked
never lies beside what is packed longer than one disk takes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from pileus.ovf.archiving import Entry, file_entry, manifest_text, text_entry
from pileus.ovf.deflating import Progress, deflate
from pileus.ovf.describing import Appliance, describe
from pileus.ovf.model import Disk, File, Machine
from pileus.ovf.signing import Signer

_ODD = re.compile(r"[^A-Za-z0-9._-]+")


class PackedDisk(Struct, frozen=True, kw_only=True):
    """A disk as it goes into the package."""

    path: Path
    capacity_bytes: int
    populated_bytes: int
    size_bytes: int
    sha256: str


def pack_disk(raw: Path, vmdk: Path, *, name: str = "disk.vmdk", progress: Progress | None = None) -> PackedDisk:
    """Write the raw disk as the new file ``vmdk``; when this fails it is gone again. Raises: OvfFault, OSError."""
    digest = hashlib.sha256()
    with raw.open("rb") as disk:
        capacity_bytes = os.fstat(disk.fileno()).st_size
        try:
            with vmdk.open("xb") as file:

                def write(content: bytes) -> None:
                    digest.update(content)
                    file.write(content)

                populated = deflate(disk.fileno(), capacity_bytes, write, name=name, progress=progress)
        except BaseException:
            vmdk.unlink(missing_ok=True)
            raise
    return PackedDisk(
        path=vmdk, capacity_bytes=capacity_bytes, populated_bytes=min(populated, capacity_bytes),
        size_bytes=vmdk.stat().st_size, sha256=digest.hexdigest(),
    )  # fmt: skip


def package(appliance: Appliance, packed: Mapping[str, PackedDisk], signer: Signer | None = None) -> list[Entry]:
    """Return the files of the package in their order. ``packed``: by the disk's id; a disk that is not there is blank.

    The appliance's own ``files`` and ``disks`` are not used: they come from its machines, whose drives are empty.
    """
    stem = file_stem(appliance.id)
    files, disks, entries, digests = [], [], [], {}
    for number, (disk_id, capacity_bytes) in enumerate(_disks(appliance).items(), 1):
        found = packed.get(disk_id)
        if found is None:
            disks.append(Disk(id=disk_id, capacity_bytes=capacity_bytes))
            continue
        name = f"{stem}-disk{number}.vmdk"
        files.append(File(id=f"file{number}", href=name, size_bytes=found.size_bytes))
        disks.append(
            Disk(id=disk_id, file_id=f"file{number}", capacity_bytes=found.capacity_bytes,
                 populated_bytes=found.populated_bytes)
        )  # fmt: skip
        entries.append(file_entry(name, found.path))
        digests[name] = found.sha256
    machines = tuple(_emptied(machine) for machine in appliance.machines)
    text = describe(replace(appliance, machines=machines, files=tuple(files), disks=tuple(disks)))
    manifest = manifest_text({f"{stem}.ovf": hashlib.sha256(text).hexdigest(), **digests})
    front = [text_entry(f"{stem}.ovf", text), text_entry(f"{stem}.mf", manifest)]
    if signer is not None:
        front.append(text_entry(f"{stem}.cert", signer.sign(f"{stem}.mf", manifest)))
    return [*front, *entries]


def _emptied(machine: Machine) -> Machine:
    """Return the machine without media in its drives."""
    return replace(machine, disks=tuple(replace(disk, file_id="") for disk in machine.disks))


def file_stem(name: str) -> str:
    """Return the name as a file's: what archives, manifests and shells all take."""
    return _ODD.sub("-", name).strip(".-")[:80] or "package"


def _disks(appliance: Appliance) -> dict[str, int]:
    """Return the capacity of every disk by its id, in the machines' order; a shared one is there once."""
    return {
        disk.disk_id: disk.capacity_bytes
        for machine in appliance.machines
        for disk in machine.disks
        if disk.kind == "disk" and disk.disk_id
    }
