"""Writes captures as pcapng, and reads them again piece by piece, whatever bytes come. Pure.

Source: draft-ietf-opsawg-pcapng. Written are one section, one interface per session with times in nanoseconds, enhanced
packets with their direction, and interface statistics that say how complete the capture is. Read is every pcapng of
Ethernet, of either byte order; blocks and options that are not known are passed over, as the format asks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

BLOCK_BYTES_MAX = 1 << 20
"""A longer block is refused: a packet has at most 64 KiB, and somebody else's capture must not take all memory."""

ETHERNET = 1
INBOUND, OUTBOUND = 1, 2
"""As the VM sees it: what it receives, what it sends. 0: not known."""

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_MAGIC = 0x1A2B3C4D
_END, _COMMENT = 0, 1
_APPLICATION = 4
_NAME, _DESCRIPTION, _RESOLUTION, _OFFSET = 2, 3, 9, 14
_FLAGS, _DROP_COUNT = 2, 4
_START, _STOP, _RECEIVED, _DROPPED, _OS_DROPPED, _DELIVERED = 2, 3, 4, 5, 7, 8
_NANOSECONDS = 1_000_000_000
_EXPONENT_MAX = 63

_HEAD = struct.Struct("<IIIIIII")
_PACKET_TAIL = struct.Struct("<HHIHHI")
_PACKET_FIXED = _HEAD.size + _PACKET_TAIL.size


class Damaged(Exception):
    """These bytes are no pcapng; says what is wrong and at which byte of the stream the block begins."""


class Interface(NamedTuple):
    """What packets are of."""

    name: str = ""
    description: str = ""
    snap: int = 0
    link: int = ETHERNET
    resolution: int = _NANOSECONDS
    """Units of time stamps per second."""
    offset_s: int = 0


class Packet(NamedTuple):
    """A packet and when it was copied (Unix nanoseconds)."""

    at_ns: int
    data: bytes
    original: int
    """Bytes that it had before it was cut."""
    direction: int = 0
    dropped: int = 0
    """Packets that are missing just before it, as far as the writer says."""
    interface: int = 0


class Statistics(NamedTuple):
    """How complete the capture is."""

    at_ns: int
    start_ns: int = 0
    received: int = 0
    """Packets that arrived at the decapsulator (isb_ifrecv)."""
    lost: int = 0
    """On the way there, by sequence numbers (isb_ifdrop)."""
    missed: int = 0
    """Arrived, but are not in this capture: gone from the store before it was read, or no room to keep them (isb_osdrop)."""
    delivered: int = 0
    """In this capture (isb_usrdeliv)."""
    comment: str = ""
    interface: int = 0


Block = Interface | Packet | Statistics


def section(application: str) -> bytes:
    """Return the block that a capture begins with; its length is not known."""
    options = _option(_APPLICATION, application.encode()[:1000]) + _option(_END, b"")
    return _block(_SECTION, struct.pack("<IHHq", _MAGIC, 1, 0, -1) + options)


def interface(name: str, description: str = "", snap: int = 0) -> bytes:
    """Return the block of an interface; ``snap`` 0: packets are not cut."""
    options = _option(_NAME, name.encode()[:1000]) + _option(_DESCRIPTION, description.encode()[:1000])
    options += _option(_RESOLUTION, b"\x09") + _option(_END, b"")
    return _block(_INTERFACE, struct.pack("<HHI", ETHERNET, 0, snap) + options)


def packet(at_ns: int, data: bytes, original: int, direction: int) -> bytes:
    """Return the block of a packet of the first interface."""
    length = len(data)
    padding = -length % 4
    total = _PACKET_FIXED + length + padding
    head = _HEAD.pack(_PACKET, total, 0, at_ns >> 32 & 0xFFFFFFFF, at_ns & 0xFFFFFFFF, length, max(original, length))
    return b"".join((head, data, bytes(padding), _PACKET_TAIL.pack(_FLAGS, 4, direction, _END, 0, total)))


def statistics(said: Statistics) -> bytes:
    """Return the block that says how complete the capture is; the last one is of the whole capture."""
    options = _option(_COMMENT, said.comment.encode()[:1000]) if said.comment else b""
    options += _option(_START, _moment(said.start_ns)) + _option(_STOP, _moment(said.at_ns))
    numbers = {
        _RECEIVED: said.received, _DROPPED: said.lost, _OS_DROPPED: said.missed, _DELIVERED: said.delivered,
    }  # fmt: skip
    options += b"".join(_option(code, struct.pack("<Q", max(0, number))) for code, number in numbers.items())
    return _block(_STATISTICS, struct.pack("<I", said.interface) + _moment(said.at_ns) + options + _option(_END, b""))


class Reader:
    """Reads a capture from pieces of any length; ``interfaces`` are those of the section so far."""

    def __init__(self) -> None:
        self.interfaces: list[Interface] = []
        self._order = ""
        self._held = b""
        self._offset = 0

    def feed(self, piece: bytes) -> list[Block]:
        """Return what is whole with this piece. Raises: Damaged; nothing more can be read then."""
        return list(self.blocks(piece))

    def blocks(self, piece: bytes) -> Iterator[Block]:
        """Yield what ``feed`` returns, so that what comes before the damage is not lost. Raises: Damaged."""
        data = self._held + piece if self._held else piece
        at = 0
        try:
            while (total := self._length(data, at)) and at + total <= len(data):
                found = self._read(data[at : at + total])
                at += total
                self._offset += total
                if found is not None:
                    yield found
        finally:
            self._held = data[at:]

    def finish(self) -> None:
        """The stream has ended. Raises: Damaged when it ended within a block, or before there was one."""
        if self._held or not self._order:
            raise self._damaged("the capture ends in the middle")

    def _length(self, data: bytes, at: int) -> int:
        """Return the length of the block at ``at``; 0 while it cannot be told."""
        if len(data) - at < 12:
            return 0
        kind = data[at : at + 4]
        if kind == b"\x0a\x0d\x0d\x0a":
            self._order = _order(data[at + 8 : at + 12]) or self._wrong("it has no byte order")
        if not self._order:
            raise self._damaged("it does not begin as a capture does")
        (total,) = struct.unpack_from(f"{self._order}I", data, at + 4)
        if total % 4 or not 12 <= total <= BLOCK_BYTES_MAX:
            raise self._damaged(f"a block of {total} bytes cannot be")
        return int(total)

    def _read(self, block: bytes) -> Block | None:
        kind, total = struct.unpack_from(f"{self._order}II", block)
        if struct.unpack_from(f"{self._order}I", block, total - 4)[0] != total:
            raise self._damaged("the two lengths of a block differ")
        body = block[8:-4]
        try:
            if kind == _SECTION:
                self._section(body)
            if kind == _INTERFACE:
                return self._interface(body)
            if kind == _PACKET:
                return self._packet(body)
            return self._statistics(body) if kind == _STATISTICS else None
        except struct.error:
            raise self._damaged("a block is too short for what it is") from None

    def _section(self, body: bytes) -> None:
        _, major, _, _ = struct.unpack_from(f"{self._order}IHHq", body)
        if major != 1:
            raise self._damaged(f"version {major} of the format is not known")
        self.interfaces = []

    def _interface(self, body: bytes) -> Interface:
        link, _, snap = struct.unpack_from(f"{self._order}HHI", body)
        options = self._options(body, 8)
        resolution = options.get(_RESOLUTION, b"\x06")
        offset = self._number(options.get(_OFFSET, bytes(8)), "q")
        if len(resolution) != 1 or resolution[0] & 0x7F > _EXPONENT_MAX:
            raise self._damaged("an interface has times of a unit that cannot be")
        units = (2 if resolution[0] & 0x80 else 10) ** (resolution[0] & 0x7F)
        name, description = (options.get(code, b"").decode(errors="replace") for code in (_NAME, _DESCRIPTION))
        self.interfaces.append(Interface(name, description, snap, link, units, offset))
        return self.interfaces[-1]

    def _packet(self, body: bytes) -> Packet:
        number, high, low, length, original = struct.unpack_from(f"{self._order}IIIII", body)
        if 20 + length > len(body):
            raise self._damaged("a packet is longer than its block")
        options = self._options(body, 20 + length + -length % 4)
        flags = self._number(options.get(_FLAGS, bytes(4)), "I")
        dropped = self._number(options.get(_DROP_COUNT, bytes(8)), "Q")
        at_ns = self._time(number, high << 32 | low)
        return Packet(at_ns, body[20 : 20 + length], original, flags & 3, dropped, number)

    def _statistics(self, body: bytes) -> Statistics:
        number, high, low = struct.unpack_from(f"{self._order}III", body)
        options = self._options(body, 12)
        start = options.get(_START, bytes(8))
        start_high, start_low = self._number(start[:4], "I"), self._number(start[4:], "I")
        codes = (_RECEIVED, _DROPPED, _OS_DROPPED, _DELIVERED)
        received, lost, missed, delivered = (self._number(options.get(code, bytes(8)), "Q") for code in codes)
        return Statistics(
            self._time(number, high << 32 | low), self._time(number, start_high << 32 | start_low),
            received, lost, missed, delivered,
            comment=options.get(_COMMENT, b"").decode(errors="replace"), interface=number,
        )  # fmt: skip

    def _options(self, body: bytes, at: int) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        while at < len(body):
            code, length = struct.unpack_from(f"{self._order}HH", body, at)
            if code == _END:
                break
            if at + 4 + length > len(body):
                raise self._damaged("an option is longer than its block")
            found.setdefault(code, body[at + 4 : at + 4 + length])
            at += 4 + length + -length % 4
        return found

    def _number(self, value: bytes, form: str) -> int:
        if len(value) != struct.calcsize(f"={form}"):
            raise self._damaged("an option has a wrong length")
        return int(struct.unpack(f"{self._order}{form}", value)[0])

    def _time(self, number: int, units: int) -> int:
        if number >= len(self.interfaces):
            raise self._damaged(f"interface {number} was not told before")
        of = self.interfaces[number]
        return units * _NANOSECONDS // of.resolution + of.offset_s * _NANOSECONDS

    def _wrong(self, words: str) -> str:
        raise self._damaged(words)

    def _damaged(self, words: str) -> Damaged:
        return Damaged(f"{words} (at byte {self._offset})")


def _order(magic: bytes) -> str:
    return {_MAGIC.to_bytes(4, "little"): "<", _MAGIC.to_bytes(4, "big"): ">"}.get(magic, "")


def _moment(at_ns: int) -> bytes:
    return struct.pack("<II", at_ns >> 32 & 0xFFFFFFFF, at_ns & 0xFFFFFFFF)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    total = 12 + len(body) + -len(body) % 4
    return struct.pack("<II", kind, total) + body + bytes(-len(body) % 4) + struct.pack("<I", total)
