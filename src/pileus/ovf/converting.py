"""Takes a whole package apart on this machine: every disk converted, and what the VMs are as ``machines.json``.

Each file is compared with the manifest while it is converted, and the folder appears only when all of it was right.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from pileus.ovf.contents import Content
from pileus.ovf.disks import Converter, Form, Seen, Wanted, receive
from pileus.ovf.exporting import file_stem
from pileus.ovf.faults import Faults
from pileus.ovf.machines import Choice, machines
from pileus.ovf.model import Machine, Network
from pileus.ovf.package import Package
from pileus.ovf.target import Qcow2Target, RawTarget

MACHINES = "machines.json"

_TEMPORARY = ".partial"


class ConvertedDisk(Struct, frozen=True, kw_only=True):
    """A disk of the package, as it is in the folder now."""

    id: str
    file: str
    format: Form
    capacity_bytes: int
    found: Seen | None = None
    """What it was; None: blank."""


class Converted(Struct, frozen=True, kw_only=True):
    """What ``machines.json`` says."""

    machines: tuple[Machine, ...]
    disks: tuple[ConvertedDisk, ...]
    media: dict[str, str]
    """Files for CD and floppy drives, by the id that machines name."""
    networks: tuple[Network, ...]


class Wish(Struct, frozen=True, kw_only=True):
    """What is wanted of a package."""

    form: Form = "qcow2"
    choice: Choice = Choice()


def convert(
    package: Package, folder: Path, wish: Wish, converter: Converter, read: Callable[[int], object] = lambda _: None
) -> Converted:
    """Write the new ``folder`` and return what is in it. ``read`` hears each count of stored bytes that were read.

    Raises: OvfFault when the package is refused, FileExistsError, OSError, and what ``converter`` raises.
    """
    found = Faults(package.descriptor)
    made = machines(package.envelope, found, choice=wish.choice, limits=package.limits)
    package.faults.take(found.found)
    package.faults.settle()
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; name a folder that is not")
    temporary = folder.with_name(folder.name + _TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        work = _Work(package, temporary, wish, converter, read)
        result = work.done(made)
        package.faults.settle()
        (temporary / MACHINES).write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return result


class _Work:
    """The folder while it is filled."""

    def __init__(
        self, package: Package, folder: Path, wish: Wish, converter: Converter, read: Callable[[int], object]
    ) -> None:
        self._package = package
        self._folder = folder
        self._form = wish.form
        self._converter = converter
        self._read = read
        self._names: set[str] = {MACHINES}

    def done(self, made: tuple[Machine, ...]) -> Converted:
        """Write all disks and media."""
        drives = {disk.file_id for machine in made for disk in machine.disks if disk.kind != "disk" and disk.file_id}
        disks, media = {}, {}
        for content in self._package.contents():
            if content.disk is not None:
                disks[content.disk.id] = self._disk(content, content.disk.id)
            elif content.file.id in drives:
                media[content.file.id] = self._medium(content)
            else:
                for _ in content.plain():
                    pass
        for machine in made:
            for disk in machine.disks:
                if disk.kind == "disk" and not disk.file_id and disk.disk_id not in disks:
                    disks[disk.disk_id] = self._blank(disk.disk_id, disk.capacity_bytes)
        return Converted(
            machines=made, disks=tuple(disks.values()), media=media, networks=self._package.envelope.networks
        )

    def _disk(self, content: Content, disk_id: str) -> ConvertedDisk:
        assert content.disk is not None
        name = self._name(disk_id, self._form)
        wanted = Wanted(
            format=content.disk.format, capacity_bytes=content.capacity_bytes or 0,
            capacity_bytes_max=self._package.limits.capacity_bytes, form=self._form,
        )  # fmt: skip
        facts = receive(self._counted(content), self._folder / name, wanted, self._converter)
        return ConvertedDisk(
            id=disk_id, file=name, format=self._form, capacity_bytes=facts.capacity_bytes, found=facts.found
        )

    def _medium(self, content: Content) -> str:
        name = self._name(content.file.id, "iso")
        with (self._folder / name).open("xb") as file:
            for chunk in self._counted(content):
                file.write(chunk)
        return name

    def _blank(self, disk_id: str, capacity_bytes: int) -> ConvertedDisk:
        name = self._name(disk_id, self._form)
        with (self._folder / name).open("x+b", buffering=0) as file:
            target = (Qcow2Target if self._form == "qcow2" else RawTarget)(file.fileno(), capacity_bytes)
            target.finish()
            os.fsync(file.fileno())
        return ConvertedDisk(id=disk_id, file=name, format=self._form, capacity_bytes=capacity_bytes)

    def _counted(self, content: Content) -> Iterator[bytes]:
        told = 0
        for chunk in content.plain():
            self._read(content.stored_bytes - told)
            told = content.stored_bytes
            yield chunk

    def _name(self, id: str, ending: str) -> str:
        """Return a name for a file that no other has."""
        stem, number = file_stem(id), 1
        name = f"{stem}.{ending}"
        while name in self._names:
            number += 1
            name = f"{stem}-{number}.{ending}"
        self._names.add(name)
        return name
