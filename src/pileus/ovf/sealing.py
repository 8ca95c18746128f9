"""Signs a package that is there: every file is read and compared with the manifest, which is then written anew.

An archive is rewritten in the standard's order, without what its descriptor does not name; in a folder only manifest
and certificate are. What is not finished is never found under the package's name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from pileus.ovf.archiving import Entry, manifest_text, text_entry, write_archive
from pileus.ovf.contents import compare
from pileus.ovf.digests import Digests
from pileus.ovf.faults import Faults
from pileus.ovf.limits import DEFAULT, Limits
from pileus.ovf.package import Package, open_package
from pileus.ovf.signing import Signer
from pileus.ovf.sources import from_store
from pileus.ovf.stores import Archive, Folder, Store

Progress = Callable[[int], object]
"""Hears each count of bytes that were read."""

_TEMPORARY = ".partial"


def seal(
    path: Path, signer: Signer, out: Path | None = None, *, limits: Limits = DEFAULT, read: Progress = lambda _: None
) -> Path:
    """Sign the package at ``path``, a folder, a descriptor in one or an archive, and return where it is now.

    ``out``: a new archive; None: in place. An old certificate is replaced.
    Raises: OvfFault when the package is not what its manifest says, or nothing can be made of it; OSError.
    """
    with open_package(path, limits=limits) as package:
        package.faults.settle()
        store = _store(path, limits)
        try:
            stem = package.descriptor.removesuffix(".ovf")
            digests = _digests(package, store, read)
            package.faults.settle()
            manifest = text_entry(f"{stem}.mf", manifest_text(digests))
            certificate = text_entry(f"{stem}.cert", signer.sign(manifest.name, _content(manifest)))
            if out is None and isinstance(store, Folder):
                _place(path if path.is_dir() else path.parent, manifest, certificate)
                return path
            first, *others = (_entry(store, name) for name in digests)
            with replaced(out or path) as file:
                write_archive(file.write, [first, manifest, certificate, *others])
        finally:
            store.close()
    return out or path


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that becomes ``path`` when the block ends well, and is gone when it does not."""
    temporary = path.with_name(path.name + _TEMPORARY)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _store(path: Path, limits: Limits) -> Store:
    if path.is_dir():
        return Folder(path)
    return Folder(path.parent) if path.suffix.lower() == ".ovf" else Archive(path, Faults(path.name), limits)


def _digests(package: Package, store: Store, read: Progress) -> dict[str, str]:
    """Return the SHA-256 of the descriptor and every stored file, in their order; what differs is a fault."""
    names = [package.descriptor]
    for _, parts in from_store(store, package.envelope.files, package.descriptor, package.faults, package.limits):
        names += [part.name for part in parts]
    return {name: _digest(package, store, name, read) for name in dict.fromkeys(names)}


def _digest(package: Package, store: Store, name: str, read: Progress) -> str:
    listed = package.manifest.listed(name) if package.manifest is not None else ()
    digests = Digests({"SHA256", *(one.algorithm for one in listed)})
    try:
        for chunk in store.chunks(name):
            digests.update(chunk)
            read(len(chunk))
    finally:
        digests.close()
    found = digests.finish()
    if package.manifest is not None and listed:
        compare(package.manifest, name, found, package.signed, package.faults)
    return found["SHA256"]


def _entry(store: Store, name: str) -> Entry:
    return Entry(name=name, size_bytes=store.size_of(name) or 0, chunks=lambda: store.chunks(name))


def _content(entry: Entry) -> bytes:
    return b"".join(entry.chunks())


def _place(folder: Path, manifest: Entry, certificate: Entry) -> None:
    """Write both; in between there is a manifest without a certificate, never one with another's."""
    (folder / certificate.name).unlink(missing_ok=True)
    for entry in (manifest, certificate):
        with replaced(folder / entry.name) as file:
            file.write(_content(entry))
