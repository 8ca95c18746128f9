"""Turns a streamOptimized VMDK into a disk as it streams by, in one thread.

Not several: each grain is inflated in 50 to 200 µs, and handing the interpreter's lock around that often took more time
than a second core gave (measured on two busy cores). Digests are computed beside it, in ``digests``' thread.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice

from pileus.ovf import vmdk
from pileus.ovf.faults import refusal
from pileus.ovf.target import Piece, Target

BATCH_GRAINS = 16
"""Written in one go when they touch: 1 MiB."""


@lru_cache(8)
def zeros(length: int) -> bytes:
    """Return so many zero bytes, to compare with."""
    return bytes(length)


def inflate(
    chunks: Iterator[bytes], make: Callable[[int], Target], *, capacity_bytes_max: int = vmdk.CAPACITY_BYTES_MAX
) -> vmdk.Header:
    """Write the disk that the stream holds and return its header; ``make`` gets the capacity and returns the target.

    Raises: OvfFault (those of ``vmdk.read``; disk-bad-grain), OSError and what ``chunks`` and ``make`` raise. Whoever
    called removes what was written so far.
    """
    made: list[tuple[vmdk.Header, Target]] = []

    def begin(header: vmdk.Header) -> None:
        made.append((header, make(header.capacity_bytes)))

    grains = vmdk.read(chunks, capacity_bytes_max=capacity_bytes_max, on_header=begin)
    writer = _Writer()
    while batch := list(islice(grains, BATCH_GRAINS)):
        writer.write(batch, made[0][1])
    header, target = made[0]
    target.finish()
    return header


class _Writer:
    """Writes grains, and remembers how zeros looked last, so that a disk full of them is not inflated again and again."""

    def __init__(self) -> None:
        self._zeros: tuple[bytes | memoryview, int] = (b"", 0)

    def write(self, batch: list[vmdk.Grain], target: Target) -> None:
        """Write grains, those that touch in one go. Raises: OvfFault (disk-bad-grain), OSError."""
        run: list[Piece] = []
        start = end = 0
        for grain in batch:
            content = self._content(grain)
            if not content:
                continue
            if run and grain.offset != end:
                target.write(start, run)
                run = []
            if not run:
                start = grain.offset
            run.append(content)
            end = grain.offset + len(content)
        if run:
            target.write(start, run)

    def _content(self, grain: vmdk.Grain) -> bytes:
        """Return what the grain holds; nothing when that is zeros."""
        if self._zeros == (grain.deflated, grain.length):
            return b""
        content = _inflated(grain)
        if content != zeros(len(content)):
            return content
        self._zeros = bytes(grain.deflated), grain.length
        return b""


def _inflated(grain: vmdk.Grain) -> bytes:
    """Return the grain's content, whose length is known before. Raises: OvfFault (disk-bad-grain)."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(grain.deflated, grain.filled)
        # All bytes may be there before the end is.
        more = stream.decompress(stream.unconsumed_tail, 1) if not stream.eof else b""
    except zlib.error as exc:
        raise _bad(grain, f"cannot be inflated ({exc})") from exc
    if more:
        raise _bad(grain, f"inflates to more than {grain.filled} bytes")
    if not stream.eof or len(content) < grain.length:
        raise _bad(grain, f"inflates to {len(content)} bytes instead of {grain.length}")
    return content if grain.length == len(content) else content[: grain.length]


def _bad(grain: vmdk.Grain, what: str) -> Exception:
    return refusal("disk-bad-grain", f"the VMDK's grain at byte {grain.offset} {what}; export it again")
