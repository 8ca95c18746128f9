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


class Part(Struct, frozen=True, kw_only=True):
    """A file of the package to be: its chunks, together ``size_bytes``, are asked for once."""

    name: str
    size_bytes: int
    chunks: Callable[[], Iterable[bytes]]


def text_part(name: str, content: bytes) -> Part:
    """Return a part that is in memory."""
    return Part(name=name, size_bytes=len(content), chunks=lambda: (content,))


def file_part(name: str, path: Path) -> Part:
    """Return a part that is a file as long as it is now. Raises: OSError."""
    return Part(name=name, size_bytes=path.stat().st_size, chunks=lambda: file_chunks(path))


def file_chunks(path: Path) -> Iterator[bytes]:
    """Yield the file's content. Raises: OSError."""
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def manifest_text(digests: Mapping[str, str]) -> bytes:
    """Return the manifest of files by name, with their SHA-256, in the spelling that all readers take (DSP0243 6.1)."""
    return "".join(f"SHA256({name})= {digest}\n" for name, digest in digests.items()).encode()


def write_archive(write: Write, parts: Iterable[Part]) -> None:
    """Hand an archive of the parts, in their order, to ``write``.

    Raises: ValueError when a part is not as long as it said; whatever chunks and ``write`` raise.
    """
    total = 0
    for part in parts:
        header = _header(part)
        write(header)
        for chunk in _whole(part):
            write(chunk)
        padding = -part.size_bytes % tarfile.BLOCKSIZE
        if padding:
            write(bytes(padding))
        total += len(header) + part.size_bytes + padding
    end = 2 * tarfile.BLOCKSIZE
    write(bytes(end + -(total + end) % RECORD_BYTES))


def write_folder(folder: Path, parts: Iterable[Part]) -> None:
    """Write the parts into an existing folder; a name may have slashes. Raises: OSError, ValueError."""
    for part in parts:
        path = folder / part.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for chunk in _whole(part):
                file.write(chunk)


def _header(part: Part) -> bytes:
    """Return the member's header: nobody's file, without a time, so that the same parts give the same archive."""
    member = tarfile.TarInfo(part.name)
    member.size = part.size_bytes
    if part.size_bytes <= USTAR_BYTES_MAX:
        try:
            return member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
        except ValueError:
            pass  # a name too long for USTAR
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def _whole(part: Part) -> Iterator[bytes]:
    """Yield the chunks. Raises: ValueError when they are more or less than was said."""
    found = 0
    for chunk in part.chunks():
        found += len(chunk)
        if found > part.size_bytes:
            break
        yield chunk
    if found != part.size_bytes:
        raise ValueError(f"{part.name} changed while it was packed: it has {found} bytes, not {part.size_bytes}")
