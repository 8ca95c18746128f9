"""Reads a tar archive forward only: USTAR, GNU's big sizes and long names, PAX; regular files and nothing else.

Not the standard library's, which reads headers of any length into memory and takes sparse files, links and devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn, Protocol

from pileus.ovf.faults import Faults, shown
from pileus.ovf.limits import Limits
from pileus.ovf.names import UnsafeName, inside, is_ignored

BLOCK = 512
CHUNK_BYTES = 1 << 20
_EXTENSION_BYTES_MAX = 1 << 16
_EXTENSIONS_MAX = 8

_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"S": "a sparse file",
    b"M": "a part of an archive of several volumes",
    b"V": "a volume label",
}

_WRAPPED = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"\xfd7zXZ\x00", "xz", "unxz"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"PK\x03\x04", "zip", "unzip"),
    (b"7z\xbc\xaf", "7z", "7z x"),
)
"""Wrappings that are met, by first bytes, and the command that takes them off."""


class Readable(Protocol):
    """A binary stream."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; none at the end."""


class Seekable(Readable, Protocol):
    """A binary file."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place."""


class Member:
    """A regular file of the archive; its bytes are read before the next member is asked for, or never."""

    def __init__(self, name: str, size_bytes: int, offset: int, stream: _Stream) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.offset = offset
        """Of its first byte in the archive."""
        self.left = size_bytes
        """Bytes not read yet."""
        self._stream = stream

    def chunks(self) -> Iterator[bytes]:
        """Yield the member's bytes. Raises: OvfFault, when the archive ends within it."""
        while self.left:
            chunk = self._stream.some(min(self.left, CHUNK_BYTES), self.name)
            self.left -= len(chunk)
            yield chunk


class _Header:
    """A header block, and what extended headers before it said."""

    def __init__(self) -> None:
        self.name: bytes | None = None
        self.size: int | None = None
        self.extensions = 0


def members(stream: Readable, faults: Faults, limits: Limits) -> Iterator[Member]:
    """Yield the members of an archive on any binary stream. Raises: OvfFault, at the first thing that is no plain file."""
    return _Reader(_Stream(stream, None, faults), faults, limits).members()


def members_of_file(file: Seekable, size_bytes: int, faults: Faults, limits: Limits) -> Iterator[Member]:
    """Yield the members of an archive in a file of that many bytes; what is not read is skipped without being read."""
    return _Reader(_Stream(file, size_bytes, faults), faults, limits).members()


class _Stream:
    """Counts and bounds what is read."""

    def __init__(self, stream: Readable | Seekable, size_bytes: int | None, faults: Faults) -> None:
        self._stream = stream
        self._size_bytes = size_bytes
        self._faults = faults
        self.position = 0

    def some(self, count: int, name: str) -> bytes:
        """Return 1 to ``count`` bytes. Raises: OvfFault at the end."""
        chunk = self._read(count)
        if not chunk:
            self._truncated(name)
        return chunk

    def block(self) -> bytes:
        """Return the next block; nothing at the end. Raises: OvfFault, when the archive ends within it."""
        found = self._read(BLOCK)
        while 0 < len(found) < BLOCK:
            more = self._read(BLOCK - len(found))
            if not more:
                if self.position <= BLOCK:
                    return found  # no tar at all; its first bytes may tell what else
                self._truncated("")
            found += more
        return found

    def exactly(self, count: int, name: str) -> bytes:
        """Return ``count`` bytes, which the caller has bounded."""
        parts: list[bytes] = []
        while count:
            parts.append(self.some(count, name))
            count -= len(parts[-1])
        return b"".join(parts)

    def skip(self, count: int, name: str) -> None:
        """Pass over bytes."""
        if self._size_bytes is None:
            while count:
                count -= len(self.some(min(count, CHUNK_BYTES), name))
            return
        if self.position + count > self._size_bytes:
            self._truncated(name)
        self.position += count
        self._stream.seek(self.position)  # type: ignore[union-attr]

    def _read(self, count: int) -> bytes:
        try:
            chunk = self._stream.read(count)
        except OSError as error:
            self._faults.stop("unreadable", f"reading failed: {error.strerror or error}")
        self.position += len(chunk)
        return chunk

    def _truncated(self, name: str) -> NoReturn:
        within = f" within {shown(name)}" if name else ""
        self._faults.stop(
            "truncated", f"the archive ends after {self.position} bytes{within}; get the whole of it again"
        )


class _Reader:
    def __init__(self, stream: _Stream, faults: Faults, limits: Limits) -> None:
        self._stream = stream
        self._faults = faults
        self._limits = limits
        self._seen: set[str] = set()
        self._count = 0

    def members(self) -> Iterator[Member]:
        said = _Header()
        while block := self._stream.block():
            if block.count(0) == BLOCK:
                if said.extensions:
                    self._faults.stop("bad-tar", "the archive ends after an extended header")
                return
            kind = self._checked(block)
            member = self._member(block, kind, said)
            if member is None:
                continue
            said = _Header()
            if member.name:
                yield member
            self._stream.skip(member.left + -member.size_bytes % BLOCK, member.name)
        if self._stream.position == 0:
            self._faults.stop("empty", "there is nothing in it")
        self._faults.warn("no-end", "the archive has no end mark; it may have been cut off")

    def _checked(self, block: bytes) -> bytes:
        """Return the type of a header block. Raises: OvfFault, when it is none."""
        first = self._stream.position <= BLOCK
        said = _octal(block[148:156])
        plain = sum(block) - sum(block[148:156]) + 8 * 32 if len(block) == BLOCK else -1
        if said is None or said not in (plain, plain - 256 * sum(byte > 127 for byte in block[:148] + block[156:])):
            if first:
                self._no_tar(block)
            self._faults.stop("bad-tar", f"the header at byte {self._stream.position - BLOCK} is damaged")
        self._count += 1
        if self._count > self._limits.members:
            self._faults.stop("too-many-members", f"the archive has more than {self._limits.members} members")
        return block[156:157]

    def _no_tar(self, block: bytes) -> NoReturn:
        for magic, name, command in _WRAPPED:
            if block.startswith(magic):
                self._faults.stop("wrapped", f"this is {name}, not an OVA; unpack it first: {command}")
        if block.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            self._faults.stop("not-an-archive", "this is XML, not an OVA; name the folder or the file with .ovf")
        self._faults.stop("not-an-archive", "this is no tar archive, so it is no OVA")

    def _member(self, block: bytes, kind: bytes, said: _Header) -> Member | None:
        """Return the member of a header, without a name when it is passed over; None for an extended header."""
        size = self._size(block)
        if kind in (b"x", b"g", b"L", b"K"):
            self._extend(kind, size, said)
            return None
        raw = said.name if said.name is not None else _full_name(block)
        text = _decode(raw)
        size = size if said.size is None else said.size
        if kind in _KINDS or kind not in (b"0", b"\0", b"7", b"5"):
            what = _KINDS.get(kind, f"of type {kind!r}")
            self._faults.stop("not-a-file", f"member {shown(text)} is {what}; an OVA has regular files only")
        folder = kind == b"5" or raw.endswith(b"/")
        if folder and size:
            self._faults.stop("bad-tar", f"folder {shown(text)} has {size} bytes")
        if size > self._limits.file_bytes:
            self._faults.stop(
                "member-too-big", f"member {shown(text)} has {size} bytes, more than {self._limits.file_bytes}"
            )
        name = "" if folder or is_ignored(text) else self._name(text)
        return Member(name, size, self._stream.position, self._stream)

    def _name(self, text: str) -> str:
        try:
            name = inside(text, self._limits)
        except UnsafeName as unsafe:
            self._faults.stop(unsafe.code, f"member {shown(text)} is refused: {unsafe.reason}")
        if name in self._seen:
            self._faults.stop("duplicate-member", f"member {shown(name)} is in the archive twice")
        self._seen.add(name)
        return name

    def _size(self, block: bytes) -> int:
        field = block[124:136]
        size = _binary(field) if field[0] & 0x80 else _octal(field)
        if size is None or size < 0:
            self._faults.stop("bad-tar", f"the size at byte {self._stream.position - BLOCK + 124} is none")
        return size

    def _extend(self, kind: bytes, size: int, said: _Header) -> None:
        """Read an extended header into ``said``."""
        said.extensions += 1
        if size > _EXTENSION_BYTES_MAX or said.extensions > _EXTENSIONS_MAX:
            self._faults.stop("bad-tar", f"an extended header has {size} bytes, or there are too many of them")
        content = self._stream.exactly(size, "")
        self._stream.skip(-size % BLOCK, "")
        if kind == b"L":
            said.name = content.rstrip(b"\0")
        elif kind == b"x":
            self._records(content, said)

    def _records(self, content: bytes, said: _Header) -> None:
        """Take name and size of a PAX header: records of ``LENGTH KEY=VALUE`` and a line's end."""
        start, end = 0, len(content.rstrip(b"\0"))
        while start < end:
            blank = content.find(b" ", start, start + 22)
            length = _decimal(content[start:blank]) if blank > start else None
            if length is None or not blank - start + 2 < length <= end - start:
                self._faults.stop("bad-tar", "a PAX header is damaged")
            key, _, value = content[blank + 1 : start + length].rstrip(b"\n").partition(b"=")
            if key == b"path":
                said.name = value
            elif key == b"size":
                said.size = _decimal(value)
                if said.size is None:
                    self._faults.stop("bad-tar", "the size in a PAX header is none")
            elif key.startswith(b"GNU.sparse"):
                self._faults.stop("not-a-file", "the archive has a sparse file; pack it again without --sparse")
            start += length


def _full_name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0]
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _octal(field: bytes) -> int | None:
    text = field.partition(b"\0")[0].strip(b" ")
    if not text:
        return 0
    return int(text, 8) if all(byte in b"01234567" for byte in text) else None


def _binary(field: bytes) -> int:
    """Return a size in GNU's form: base 256, the first bit set, the second one the sign."""
    number = int.from_bytes(field, "big", signed=True)
    return -1 if field[0] & 0x40 else number + (1 << 95)


def _decimal(text: bytes) -> int | None:
    return int(text) if text.isdigit() and len(text) <= 20 else None
