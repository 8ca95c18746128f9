"""Writes what a package is carried in: its manifest, and an archive or a folder of its files, piece by piece.

An archive is USTAR, which every reader knows; only a member of 8 GiB or more, or of a very long name, gets a header of
GNU's, which VMware and VirtualBox read too (unlike PAX).
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from msgspec import Struct

USTAR_BYTES_MAX = 8 * 1024**3 - 1
RECORD_BYTES = tarfile.RECORDSIZE
CHUNK_BYTES = 1024**2

Write = Callable[[bytes], object]


class Entry(Struct, frozen=True, kw_only=True):
    """A file of the package to be: its chunks, together ``size_bytes``, are asked for once."""

    name: str
    size_bytes: int
    chunks: Callable[[], Iterable[bytes]]


def text_entry(name: str, content: bytes) -> Entry:
    """Return an entry that is in memory."""
    return Entry(name=name, size_bytes=len(content), chunks=lambda: (content,))


def file_entry(name: str, path: Path) -> Entry:
    """Return an entry that is a file as long as it is now. Raises: OSError."""
    return Entry(name=name, size_bytes=path.stat().st_size, chunks=lambda: file_chunks(path))


def file_chunks(path: Path) -> Iterator[bytes]:
    """Yield the file's content. Raises: OSError."""
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def manifest_text(digests: Mapping[str, str]) -> bytes:
    """Return the manifest of files by name, with their SHA-256, in the spelling that all readers take (DSP0243 6.1)."""
    return "".join(f"SHA256({name})= {digest}\n" for name, digest in digests.items()).encode()


def write_archive(write: Write, entries: Iterable[Entry]) -> None:
    """Hand an archive of the entries, in their order, to ``write``.

    Raises: ValueError when an entry is not as long as it said; whatever chunks and ``write`` raise.
    """
    total = 0
    for entry in entries:
        header = _header(entry)
        write(header)
        for chunk in _whole(entry):
            write(chunk)
        padding = -entry.size_bytes % tarfile.BLOCKSIZE
        if padding:
            write(bytes(padding))
        total += len(header) + entry.size_bytes + padding
    end = 2 * tarfile.BLOCKSIZE
    write(bytes(end + -(total + end) % RECORD_BYTES))


def write_folder(folder: Path, entries: Iterable[Entry]) -> None:
    """Write the entries into an existing folder; a name may have slashes. Raises: OSError, ValueError."""
    for entry in entries:
        path = folder / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for chunk in _whole(entry):
                file.write(chunk)


def _header(entry: Entry) -> bytes:
    """Return the member's header: nobody's file, without a time, so that the same entries give the same archive."""
    member = tarfile.TarInfo(entry.name)
    member.size = entry.size_bytes
    if entry.size_bytes <= USTAR_BYTES_MAX:
        try:
            return member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
        except ValueError:
            pass  # a name too long for USTAR
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def _whole(entry: Entry) -> Iterator[bytes]:
    """Yield the chunks. Raises: ValueError when they are more or less than was said."""
    found = 0
    for chunk in entry.chunks():
        found += len(chunk)
        if found > entry.size_bytes:
            break
        yield chunk
    if found != entry.size_bytes:
        raise ValueError(f"{entry.name} changed while it was packed: it has {found} bytes, not {entry.size_bytes}")
