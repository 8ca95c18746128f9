"""What a node was asked to do once, kept over every restart: what it began last, and how its last requests ended.

``Book`` decides and knows no file; ``Ledger`` keeps one: a file of records that only grows, in room that was written
before, so that noting something is one write and one flush. What is torn at its end never happened.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Literal

State = Literal["applied", "refused", "expired", "withdrawn", "unknown"]

ENDS_MAX = 16
ANSWERS_BYTES_MAX = 1 << 20
ANSWER_BYTES_MAX = 256 << 10

ROOM_BYTES = 512 << 10
"""Written beyond what is kept: for two long answers, or some thousand short ones, until the file is written anew."""

_STATES: tuple[State, ...] = ("applied", "refused", "expired", "withdrawn", "unknown")
_BEGUN = len(_STATES)
_FRAME = struct.Struct(">I8s")
_RECORD = struct.Struct(">BQH")
_RECORD_BYTES_MAX = 2 * ANSWER_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Request:
    """What the host asks; see ``GuestRequest`` of the host's guest driver."""

    id: str
    sequence: int
    deadline: float
    withdrawn: bool = False
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class End:
    """How a request ended."""

    id: str
    state: State
    answer: bytes = b""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a request: ``answer`` what is known, note an ``end`` and answer it, or ``begin`` it.

    ``again``: it was begun before, and how that ended is not known.
    """

    step: Literal["answer", "end", "begin"]
    end: End | None = None
    again: bool = False


@dataclass(slots=True)
class Book:
    """``last``: the highest sequence that ended or began. ``begun``: that one's, until its end is noted."""

    last: int = 0
    begun: tuple[int, str] | None = None
    ends: dict[int, End] = field(default_factory=dict)

    def decide(self, request: Request, now: float) -> Verdict:
        """Return what to do. What was begun is only finished before its deadline; after it nobody knows."""
        known = self.ends.get(request.sequence)
        if known is not None and known.id == request.id:
            return Verdict("answer", known)
        again = self.begun == (request.sequence, request.id)
        if request.sequence <= self.last and not again:
            return Verdict("answer", End(request.id, "unknown"))
        if now < request.deadline and not request.withdrawn:
            return Verdict("begin", again=again)
        if again:
            return Verdict("end", End(request.id, "unknown", b"it was begun and cut off, and may not be begun again"))
        return Verdict("end", End(request.id, "expired" if now >= request.deadline else "withdrawn"))

    def begin(self, sequence: int, id: str) -> None:
        """Note that the request is given to the role now."""
        self._forsake(sequence)
        self.last = sequence
        self.begun = sequence, id

    def end(self, sequence: int, end: End) -> None:
        """Note how the request ended, and forget the oldest."""
        self._forsake(sequence)
        self.last = max(self.last, sequence)
        self.begun = None
        self.ends[sequence] = end
        while len(self.ends) > ENDS_MAX or sum(len(one.answer) for one in self.ends.values()) > ANSWERS_BYTES_MAX:
            del self.ends[min(self.ends)]

    def _forsake(self, sequence: int) -> None:
        """Give up what was begun when a later one comes: the host waits for each before it sends the next."""
        if self.begun is not None and self.begun[0] < sequence:
            before, id = self.begun
            self.begun = None
            self.ends[before] = End(id, "unknown")


class Ledger:
    """A book in ``file``. What a call notes is on the disk when it returns. Raises: OSError."""

    def __init__(self, file: Path) -> None:
        self.book = Book()
        self._file = file
        self._fd = -1
        self._at = self._size = 0
        try:
            kept = file.read_bytes()
        except FileNotFoundError:
            kept = b""
        for sequence, entry in _read(kept):
            if isinstance(entry, End):
                self.book.end(sequence, entry)
            else:
                self.book.begin(sequence, entry)

    def begin(self, sequence: int, id: str) -> None:
        """Note that the request is given to the role now."""
        self._write(_record(sequence, id))
        self.book.begin(sequence, id)

    def end(self, sequence: int, end: End) -> None:
        """Note how the request ended."""
        self._write(_record(sequence, end))
        self.book.end(sequence, end)

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, record: bytes) -> None:
        if self._at + len(record) > self._size:
            self._begin_file()
        os.pwrite(self._fd, record, self._at)
        os.fdatasync(self._fd)
        self._at += len(record)

    def _begin_file(self) -> None:
        """Write the book anew, with room; a power cut leaves the old file or the new one."""
        kept = b"".join(_record(sequence, end) for sequence, end in sorted(self.book.ends.items()))
        kept += _record(*self.book.begun) if self.book.begun is not None else b""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._file.with_suffix(".new")
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb", closefd=False) as out:
                out.write(kept)
                out.write(bytes(ROOM_BYTES))
            os.fsync(fd)
            draft.replace(self._file)
            flush_folder(self._file.parent)
        except OSError:
            os.close(fd)
            raise
        self.close()
        self._fd, self._at, self._size = fd, len(kept), len(kept) + ROOM_BYTES


def flush_folder(folder: Path) -> None:
    """Return when the folder's entries are on the disk. Raises: OSError."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _record(sequence: int, entry: End | str) -> bytes:
    """Return what stands for a beginning (of that id) or an end in the file."""
    id = (entry.id if isinstance(entry, End) else entry).encode()
    kind = _STATES.index(entry.state) if isinstance(entry, End) else _BEGUN
    body = _RECORD.pack(kind, sequence, len(id)) + id + (entry.answer if isinstance(entry, End) else b"")
    return _FRAME.pack(len(body), _checksum(body)) + body


def _read(kept: bytes) -> Iterator[tuple[int, End | str]]:
    at = 0
    while at + _FRAME.size <= len(kept):
        length, checksum = _FRAME.unpack_from(kept, at)
        body = kept[at + _FRAME.size : at + _FRAME.size + length]
        if not _RECORD.size <= length <= _RECORD_BYTES_MAX or _checksum(body) != checksum:
            return
        kind, sequence, id_bytes = _RECORD.unpack_from(body)
        id = body[_RECORD.size : _RECORD.size + id_bytes].decode()
        if kind == _BEGUN:
            yield sequence, id
        else:
            yield sequence, End(id, _STATES[kind], body[_RECORD.size + id_bytes :])
        at += _FRAME.size + length


def _checksum(body: bytes) -> bytes:
    return blake2b(body, digest_size=8).digest()
