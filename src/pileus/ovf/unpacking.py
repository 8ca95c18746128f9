"""Unpacks gzip and bzip2 as it streams by, never further than was allowed."""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Iterable, Iterator

from msgspec import Struct

from pileus.ovf.faults import refusal, shown
from pileus.ovf.model import Compression

_OUT_BYTES = 1 << 20
_IN_BYTES = 1 << 16
_STREAMS_FREE, _STREAM_BYTES = 16, 256
"""Each stream costs time of its own: beyond the first few they are this long on average."""

_FREE_BYTES = 1 << 20
_GZIP_WINDOW = 31


class Allowance(Struct, frozen=True, kw_only=True):
    """How much may come out."""

    bytes: int
    ratio: int | None = None
    """Of what came out to what went in, after the first MiB; None: any."""


def unpacked(chunks: Iterable[bytes], compression: Compression, allowed: Allowance, name: str) -> Iterator[bytes]:
    """Yield what ``chunks`` unpack to. Raises: OvfFault, when it is more than is allowed, damaged or cut off."""
    count = _Count(allowed, name)
    if compression == "identity":
        for chunk in chunks:
            count.add(len(chunk))
            yield chunk
        return
    unpacking = _Gzip() if compression == "gzip" else _Bzip2()
    try:
        for chunk in chunks:
            count.stored += len(chunk)
            for part in unpacking.feed(chunk):
                count.add(len(part))
                yield part
    except (zlib.error, OSError, ValueError, EOFError):
        raise refusal("damaged", f"what {shown(name)} holds is no sound {compression}", file=name) from None
    if not unpacking.whole:
        raise refusal("truncated", f"{shown(name)} ends in the middle of its {compression}", file=name)


class _Count:
    def __init__(self, allowed: Allowance, name: str) -> None:
        self._allowed = allowed
        self._name = name
        self._out = 0
        self.stored = 0

    def add(self, count: int) -> None:
        self._out += count
        ratio = self._allowed.ratio
        beyond = ratio is not None and self._out > max(_FREE_BYTES, self.stored * ratio)
        if self._out > self._allowed.bytes or (self.stored and beyond):
            allowed = f"more than {self._allowed.bytes} bytes" if not beyond else f"more than {ratio} times its size"
            raise refusal("unpacks-too-far", f"{shown(self._name)} unpacks to {allowed}", file=self._name)


class _Streams:
    """Several compressed streams after each other, as both formats allow; no flood of empty ones."""

    def __init__(self) -> None:
        self._fed = 0
        self._streams = 1

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what this chunk adds, in parts of a MiB at most."""
        for start in range(0, len(chunk), _IN_BYTES):
            part = chunk[start : start + _IN_BYTES]
            self._fed += len(part)
            yield from self._unpack(part)

    def _unpack(self, chunk: bytes) -> Iterator[bytes]:
        raise NotImplementedError

    def _next(self) -> None:
        self._streams += 1
        if self._streams > _STREAMS_FREE + self._fed // _STREAM_BYTES:
            raise ValueError("a flood of streams")


class _Gzip(_Streams):
    def __init__(self) -> None:
        super().__init__()
        self._current = zlib.decompressobj(_GZIP_WINDOW)

    @property
    def whole(self) -> bool:
        """Whether nothing is missing at the end."""
        return self._current.eof

    def _unpack(self, chunk: bytes) -> Iterator[bytes]:
        while True:
            if self._current.eof:
                if not chunk.strip(b"\0"):
                    return  # padding to a block's end
                self._next()
                self._current = zlib.decompressobj(_GZIP_WINDOW)
            part = self._current.decompress(chunk, _OUT_BYTES)
            chunk = self._current.unused_data if self._current.eof else self._current.unconsumed_tail
            if part:
                yield part
            if not chunk and (self._current.eof or len(part) < _OUT_BYTES):
                return


class _Bzip2(_Streams):
    def __init__(self) -> None:
        super().__init__()
        self._current = bz2.BZ2Decompressor()

    @property
    def whole(self) -> bool:
        """Whether nothing is missing at the end."""
        return self._current.eof

    def _unpack(self, chunk: bytes) -> Iterator[bytes]:
        while chunk or not (self._current.needs_input or self._current.eof):
            if self._current.eof:
                self._next()
                self._current = bz2.BZ2Decompressor()
            part = self._current.decompress(chunk, _OUT_BYTES)
            chunk = self._current.unused_data if self._current.eof else b""
            if part:
                yield part
