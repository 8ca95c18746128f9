"""Opens a package: an ``.ova`` in a file or on a stream, or a folder; then its files stream by, each checked.

In a file, everything is found wherever it lies. On a stream the descriptor has to come before the disks, as the standard
says; the manifest may come last, and what it says is then judged at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from pileus.ovf.contents import Content, Terms, compare
from pileus.ovf.descriptor import read_descriptor
from pileus.ovf.digests import ALGORITHMS, Digests
from pileus.ovf.faults import Faults, shown
from pileus.ovf.limits import DEFAULT, Limits
from pileus.ovf.manifest import Manifest, read_manifest
from pileus.ovf.model import Envelope
from pileus.ovf.properties import by_key, capacity_bytes
from pileus.ovf.signature import Signature, Trust
from pileus.ovf.sources import Found, Stream, from_store, missing, names_of
from pileus.ovf.stores import Archive, Folder, Store
from pileus.ovf.tar import Member, Readable, members

_DESCRIPTOR, _MANIFEST, _CERTIFICATE = ".ovf", ".mf", ".cert"


def open_package(
    path: Path, *, limits: Limits = DEFAULT, language: str = "", trust: Trust | None = None
) -> StoredPackage:
    """Return the package at ``path``: a folder, a descriptor in one, or an archive. Use it with ``with``.

    What is wrong so far is in its ``faults``. Raises: OvfFault, when nothing can be made of it.
    """
    faults = Faults(path.name)
    is_folder = os.path.isdir(path)  # unlike Path's it does not raise where nobody may look
    named = path.name if path.suffix.lower() == _DESCRIPTOR and not is_folder else ""
    store: Store = Folder(path.parent if named else path) if named or is_folder else Archive(path, faults, limits)
    try:
        return StoredPackage(store, named, Settings(path.name, faults, limits, trust), language)
    except BaseException:
        store.close()
        raise


def open_stream(
    stream: Readable, name: str = "", *, limits: Limits = DEFAULT, language: str = "", trust: Trust | None = None
) -> Package:
    """Return the package on a stream that is read once, from front to back: an archive with the descriptor in front.

    Raises: OvfFault, also when a disk comes before the descriptor.
    """
    return StreamedPackage(stream, Settings(name, Faults(name), limits, trust), language)


class Settings:
    """What a package is opened with."""

    def __init__(self, name: str, faults: Faults, limits: Limits, trust: Trust | None) -> None:
        self.name = name
        self.faults = faults
        self.limits = limits
        self.trust = trust


class Package:
    """An open package. ``faults`` grows while ``contents`` is read, once; after its end everything is judged."""

    envelope: Envelope

    def __init__(self, settings: Settings) -> None:
        self.name = settings.name
        self.faults = settings.faults
        self.limits = settings.limits
        self.descriptor = ""
        """Name of the descriptor in the package."""
        self.manifest: Manifest | None = None
        self.signature: Signature | None = None
        """None: there is no certificate, or it has not come yet."""
        self._trust = settings.trust
        self._certificate: tuple[str, bytes] | None = None
        self._descriptor_digests: dict[str, str] = {}
        self._late: dict[str, dict[str, str]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of files."""

    @property
    def signed(self) -> bool:
        """Whether there is a certificate file; what it is worth says ``signature``."""
        return self._certificate is not None

    @property
    def certificate(self) -> bytes:
        """The certificate file; empty when there is none."""
        return self._certificate[1] if self._certificate is not None else b""

    def contents(self) -> Iterator[Content]:
        """Yield the files of the package: in the descriptor's order, or as they come on a stream.

        Raises: OvfFault. What is missing at the end is in ``faults``.
        """
        terms = Terms(
            descriptor=self.descriptor, faults=self.faults, limits=self.limits,
            manifest=lambda: self.manifest, signed=lambda: self.signed, late=self._late,
        )  # fmt: skip
        disks = {disk.file_id: disk for disk in self.envelope.disks if disk.file_id}
        known = by_key(self.envelope)
        for file, parts in self._found():
            disk = disks.get(file.id)
            capacity = None if disk is None else capacity_bytes(self.envelope, disk, known=known)
            yield Content(file, disk, capacity, parts, terms)
        self._finish()

    def _found(self) -> Iterator[Found]:
        """Yield the files of the descriptor."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Judge what could not be judged before the last file."""

    def _read_descriptor(self, name: str, chunks: Iterable[bytes], language: str) -> None:
        self.descriptor = self.faults.file = name
        digests = Digests(ALGORITHMS)
        self.envelope = read_descriptor(_fed(chunks, digests), self.faults, limits=self.limits, language=language)
        self._descriptor_digests = digests.finish()

    def _read_beside(self, name: str, raw: bytes) -> None:
        """Take a manifest or a certificate."""
        suffix = _MANIFEST if name.endswith(_MANIFEST) else _CERTIFICATE
        if name.removesuffix(suffix) != self.descriptor.removesuffix(_DESCRIPTOR):
            self.faults.warn(
                "odd-name", f"{shown(name)} is not named as the descriptor {shown(self.descriptor)}", file=name
            )
        if suffix == _CERTIFICATE:
            self._certificate = name, raw
        else:
            self.manifest = read_manifest(name, raw, self.faults, self.limits)

    def _small(self, name: str, chunks: Iterable[bytes]) -> bytes:
        """Return a manifest's or certificate's bytes. Raises: OvfFault, when it is too long."""
        most = self.limits.manifest_bytes if name.endswith(_MANIFEST) else self.limits.certificate_bytes
        parts: list[bytes] = []
        count = 0
        for chunk in chunks:
            count += len(chunk)
            if count > most:
                self.faults.stop("too-big", f"{shown(name)} is longer than {most} bytes", file=name)
            parts.append(chunk)
        return b"".join(parts)

    def _judge(self) -> None:
        """Check the descriptor against the manifest, and the manifest against the certificate."""
        if self._certificate is not None and self.manifest is None:
            message = "there is a certificate and no manifest, so it proves nothing; get the manifest, or take it away"
            self.faults.error("certificate-without-manifest", message, file=self._certificate[0])
            self.signature = Signature(state="invalid")
        if self.manifest is None:
            return
        compare(self.manifest, self.descriptor, self._descriptor_digests, self.signed, self.faults)
        if self._certificate is not None:
            from pileus.ovf.certificate import check_signature

            self.signature = check_signature(*self._certificate, self.manifest, self._trust, self.faults)

    def _judge_listed(self, manifest: Manifest, present: Iterable[str]) -> None:
        """Note what the manifest lists and the package lacks."""
        there = set(present)
        for name, lines in manifest.files.items():
            if name not in there:
                self.faults.warn(
                    "listed-not-there", f"{shown(name)} is in the manifest and not in the package",
                    file=manifest.name, line=lines[0].line,
                )  # fmt: skip


class StoredPackage(Package):
    """A package whose files can be read in any order."""

    def __init__(self, store: Store, descriptor: str, settings: Settings, language: str) -> None:
        super().__init__(settings)
        self._store = store
        name = descriptor or self._find_descriptor()
        if store.size_of(name) is None:
            self.faults.stop("unreadable", f"there is no {shown(name)}", file=name)
        self._read_descriptor(name, store.chunks(name), language)
        for suffix in (_MANIFEST, _CERTIFICATE):
            beside = self._find_beside(suffix)
            if beside:
                self._read_beside(beside, self._small(beside, store.chunks(beside)))
        self._judge()
        if self.manifest is not None:
            self._judge_listed(self.manifest, [name for name in self.manifest.files if store.size_of(name) is not None])
        if isinstance(store, Archive):
            self._judge_unused(store)

    def close(self) -> None:
        """Let go of the archive or folder."""
        self._store.close()

    def descriptor_text(self) -> bytes:
        """Return the descriptor as it is stored. Raises: OvfFault."""
        return b"".join(self._store.chunks(self.descriptor))

    def _found(self) -> Iterator[Found]:
        return from_store(self._store, self.envelope.files, self.descriptor, self.faults, self.limits)

    def _find_descriptor(self) -> str:
        found = [name for name in self._store.names() if name.lower().endswith(_DESCRIPTOR)]
        if not found:
            self.faults.stop("no-descriptor", "it has no descriptor: no file with the ending .ovf")
        if len(found) > 1:
            names = ", ".join(shown(name) for name in found[:5])
            self.faults.stop("two-descriptors", f"it has {len(found)} descriptors: {names}; name the one that is meant")
        return found[0]

    def _find_beside(self, suffix: str) -> str:
        """Return the name of the manifest or certificate: beside the descriptor by its name, else the archive's only one."""
        name = self.descriptor.removesuffix(_DESCRIPTOR) + suffix
        if self._store.size_of(name) is not None:
            return name
        others = (
            [name for name in self._store.names() if name.endswith(suffix)] if isinstance(self._store, Archive) else []
        )
        if len(others) > 1:
            self.faults.error(
                "odd-name", f"it has {len(others)} files with the ending {suffix}, and none is {shown(name)}"
            )
        return others[0] if len(others) == 1 else ""

    def _judge_unused(self, store: Archive) -> None:
        used = {name for file in self.envelope.files for name in names_of(file, self.limits)}
        for name in store.names():
            stem = name.rpartition(".")[0] if name[-9:].isdigit() else name
            if name not in used and stem not in used and not name.endswith((_DESCRIPTOR, _MANIFEST, _CERTIFICATE)):
                self.faults.note("not-used", f"nothing refers to {shown(name)}", file=self.name)


class StreamedPackage(Package):
    """A package on a stream."""

    def __init__(self, stream: Readable, settings: Settings, language: str) -> None:
        super().__init__(settings)
        self._stream = Stream(members(stream, self.faults, self.limits))
        self._late = {}
        early: list[tuple[str, bytes]] = []
        while not self.descriptor:
            member = self._stream.next()
            if member is None:
                self.faults.stop("no-descriptor", "it has no descriptor: no file with the ending .ovf")
            elif member.name.lower().endswith(_DESCRIPTOR):
                self._read_descriptor(member.name, member.chunks(), language)
            elif self._is_beside(member):
                early.append((member.name, self._small(member.name, member.chunks())))
            else:
                self._too_late(member)
        for name, raw in early:
            self._read_beside(name, raw)
        while (member := self._stream.next()) is not None and self._is_beside(member):
            self._read_beside(member.name, self._small(member.name, member.chunks()))
        self._stream.put_back(member)
        self._judge_now()

    def _found(self) -> Iterator[Found]:
        return self._stream.files(self.envelope.files, self.limits, self._other, self.faults)

    def _finish(self) -> None:
        for file in self.envelope.files:
            names = names_of(file, self.limits)
            if names and not any(name in self._stream.seen or f"{name}.{0:09d}" in self._stream.seen for name in names):
                missing(file, self.descriptor, self.faults)
        self._judge()
        if self.manifest is not None:
            for name, found in (self._late or {}).items():
                compare(self.manifest, name, found, self.signed, self.faults)
            self._judge_listed(self.manifest, self._stream.seen)

    def _judge_now(self) -> None:
        if self.manifest is not None:
            self._judge()

    def _is_beside(self, member: Member) -> bool:
        return member.name.endswith((_MANIFEST, _CERTIFICATE))

    def _other(self, member: Member) -> None:
        """Take a member that is no file of the descriptor."""
        taken = self.manifest is not None if member.name.endswith(_MANIFEST) else self.signed
        if self._is_beside(member) and not taken:
            self._read_beside(member.name, self._small(member.name, member.chunks()))
        elif member.name.lower().endswith(_DESCRIPTOR):
            self.faults.error("two-descriptors", f"{shown(member.name)} is a second descriptor", file=self.name)
        else:
            self.faults.note("not-used", f"nothing refers to {shown(member.name)}", file=self.name)

    def _too_late(self, member: Member) -> None:
        self.faults.stop(
            "descriptor-late",
            f"{shown(member.name)} comes before the descriptor, so a stream cannot be read in one pass; read it from a file",
        )


def _fed(chunks: Iterable[bytes], digests: Digests) -> Iterator[bytes]:
    for chunk in chunks:
        digests.update(chunk)
        yield chunk
