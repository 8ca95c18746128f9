"""The files that a descriptor names, out of a store or out of a stream, with their chunks put in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pileus.ovf.contents import Part
from pileus.ovf.faults import Faults, OvfFault, shown
from pileus.ovf.limits import Limits
from pileus.ovf.model import File
from pileus.ovf.names import UnsafeName, decoded, inside
from pileus.ovf.stores import Store
from pileus.ovf.tar import Member

Found = tuple[File, Iterator[Part]]


def names_of(file: File, limits: Limits) -> tuple[str, ...]:
    """Return the names under which a file may be stored: as written, and with percent escapes decoded."""
    try:
        name = inside(file.href, limits)
    except UnsafeName:
        return ()  # said where the descriptor was parsed
    plain = decoded(file.href)
    return (name,) if plain is None else (name, inside(plain, limits))


def chunk_name(name: str, number: int) -> str:
    """Return the name of a chunk. Source: DSP0243 7.1."""
    return f"{name}.{number:09d}"


def missing(file: File, descriptor: str, faults: Faults) -> None:
    """Note that a file of the descriptor is not there."""
    faults.error("missing-file", f"file {shown(file.href)} is not in the package", file=descriptor, line=file.line)


def from_store(store: Store, files: Sequence[File], descriptor: str, faults: Faults, limits: Limits) -> Iterator[Found]:
    """Yield each file that is there, in the order of the descriptor; those that are not are faults."""
    for file in files:
        try:
            parts = _parts(store, file, limits)
        except OvfFault as fault:
            faults.take(fault.faults)
            continue
        if parts:
            yield file, iter(parts)
        elif names_of(file, limits):
            missing(file, descriptor, faults)


def _parts(store: Store, file: File, limits: Limits) -> list[Part]:
    for name in names_of(file, limits):
        if file.chunk_bytes is None:
            size = store.size_of(name)
            if size is not None:
                return [Part(name=name, size_bytes=size, chunks=store.chunks(name))]
            continue
        parts: list[Part] = []
        while len(parts) < limits.members:
            part = chunk_name(name, len(parts))
            size = store.size_of(part)
            if size is None:
                break
            parts.append(Part(name=part, size_bytes=size, chunks=store.chunks(part)))
        if parts:
            return parts
    return []


class Stream:
    """A stream's members, of which one can be put back."""

    def __init__(self, members: Iterator[Member]) -> None:
        self._members = members
        self._back: Member | None = None
        self.seen: set[str] = set()

    def next(self) -> Member | None:
        """Return the next member; None at the end."""
        member, self._back = self._back, None
        if member is None:
            member = next(self._members, None)
        if member is not None:
            self.seen.add(member.name)
        return member

    def put_back(self, member: Member | None) -> None:
        """Let the next call of ``next`` return this one, of which nothing was read."""
        self._back = member

    def files(
        self, files: Sequence[File], limits: Limits, other: Callable[[Member], None], faults: Faults
    ) -> Iterator[Found]:
        """Yield each file of the descriptor as it comes by. ``other`` is given what is none."""
        whole = {name: file for file in files if file.chunk_bytes is None for name in names_of(file, limits)}
        first = {
            chunk_name(name, 0): (name, file)
            for file in files
            if file.chunk_bytes is not None
            for name in names_of(file, limits)
        }
        while (member := self.next()) is not None:
            if member.name in whole:
                yield whole[member.name], iter([_part(member)])
            elif member.name in first:
                name, file = first[member.name]
                yield file, self._chunks(member, name)
            elif any(member.name.startswith(f"{name}.0") for name, _ in first.values()):
                faults.stop(
                    "chunk-order",
                    f"chunk {shown(member.name)} comes out of order; read the archive from a file",
                    file="",
                )
            else:
                other(member)

    def _chunks(self, member: Member, name: str) -> Iterator[Part]:
        number = 0
        following: Member | None = member
        while following is not None and following.name == chunk_name(name, number):
            yield _part(following)
            number += 1
            following = self.next()
        self.put_back(following)


def _part(member: Member) -> Part:
    return Part(name=member.name, size_bytes=member.size_bytes, chunks=member.chunks())
