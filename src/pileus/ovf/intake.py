"""A stream that only goes forward, read in pieces of a wanted length; never holds more than a chunk and a piece."""

from __future__ import annotations

from collections.abc import Iterator

from pileus.ovf.faults import OvfFault, refusal


class Intake:
    """Pieces of what ``chunks`` yields. A piece within one chunk is copied once."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._at = 0
        self.position = 0
        """How many bytes were taken or skipped."""

    def take(self, length: int, *, least: int | None = None) -> bytes:
        """Return the next ``length`` bytes; at the end of the stream, ``least`` are enough.

        Raises: OvfFault (disk-truncated).
        """
        piece = self._chunk[self._at : self._at + length]
        self._at += len(piece)
        if len(piece) < length:
            pieces, missing = [piece], length - len(piece)
            while missing and self._next():
                piece = self._chunk[:missing]
                self._at = len(piece)
                pieces.append(piece)
                missing -= len(piece)
            piece = b"".join(pieces)
        if len(piece) < (length if least is None else least):
            raise self._truncated()
        self.position += len(piece)
        return piece

    def view(self, length: int) -> bytes | memoryview:
        """Return the next ``length`` bytes, not copied when they lie within a chunk. Raises: OvfFault (disk-truncated)."""
        if length > len(self._chunk) - self._at:
            return self.take(length)
        piece = memoryview(self._chunk)[self._at : self._at + length]
        self._at += length
        self.position += length
        return piece

    def skip(self, length: int) -> None:
        """Go on by ``length`` bytes. Raises: OvfFault (disk-truncated)."""
        self.position += length
        while length > len(self._chunk) - self._at:
            length -= len(self._chunk) - self._at
            if not self._next():
                raise self._truncated()
        self._at += length

    def ended(self) -> bool:
        """Whether nothing is left."""
        return self._at >= len(self._chunk) and not self._next()

    def rest(self) -> Iterator[bytes]:
        """Yield what is left, in chunks as they come."""
        while not self.ended():
            chunk = self._chunk[self._at :]
            self._at = len(self._chunk)
            self.position += len(chunk)
            yield chunk

    def drain(self) -> None:
        """Read to the end, so that whoever computes a digest sees everything."""
        while not self.ended():
            self.position += len(self._chunk) - self._at
            self._at = len(self._chunk)

    def _next(self) -> bool:
        """Go to the next chunk that is not empty; False at the end."""
        self._at = 0
        self._chunk = next((chunk for chunk in self._chunks if chunk), b"")
        return bool(self._chunk)

    def _truncated(self) -> OvfFault:
        return refusal("disk-truncated", f"the disk ends after {self.position} bytes, in the middle; send it again")
