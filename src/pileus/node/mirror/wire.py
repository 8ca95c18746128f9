"""The tunnel header of mirrored packets in Python, written and read strictly: oracle of the programs, parser of the slow path.

Ethernet, IPv4 without options, GRE with a sequence number, ERSPAN type II, or III with or without platform sub-header
(docs/decisions/0016-mirror.md). Source: RFC 2784, RFC 2890, draft-foschiano-erspan-03.
The checks come in the order of REASONS, and the XDP program makes them in the same one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from socket import inet_ntoa
from typing import Literal

from pileus.node.mirror import KEY_BITS, SLOT_BITS

REASONS = (
    "short", "not-ipv4", "options", "fragment", "not-gre", "bad-gre", "bad-version", "wrong-leg", "unknown-session",
)  # fmt: skip
"""Why a frame is refused. ``short``: less than its own headers say. ``not-gre``: another protocol over IPv4. ``bad-gre``: other
flags than the sequence number, or no ERSPAN. ``unknown-session``: nobody's key, or somebody's from another source."""

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_LABEL = 0x88B6
"""After a label; and of frames that are kept, instead of the IPv4 that they came with. Source: IEEE 802, local experimental."""

FIRST_LEG, SECOND_LEG = 1, 2
KEY_MAX = (1 << KEY_BITS) - 1
SLOT_MASK = (1 << SLOT_BITS) - 1

OVERHEAD_BYTES = 62
"""Of the headers in front of a frame of a session of Pileus."""

LABEL_BYTES = 14
FRAME_BYTES_MIN = 14
"""Of a mirrored frame: its own Ethernet header."""

GRE_PROTOCOL = 47
GRE_SEQUENCE, GRE_ERSPAN_1_2, GRE_ERSPAN_3 = 0x1000, 0x88BE, 0x22EB
_ETHERNET = struct.Struct(">6s6sH")
_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_GRE = struct.Struct(">HHI")
_COMMON = struct.Struct(">HH")
_TYPE_3 = struct.Struct(">HHIHH")
_LABEL = struct.Struct(">QIH")
_OVER_IPV4 = 34
_AFTER_GRE = 42
_NEEDED_BYTES = 50
"""The least that any of the types has before its frame, but type I, which needs as much with the frame's own header."""

_DO_NOT_FRAGMENT, _FRAGMENT_MASK = 0x4000, 0x3FFF
_TIME_TO_LIVE = 64
_TRUNCATED = 1 << 10
_SESSION_MASK = 0x3FF


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the tunnel header of one frame says.

    ``source``, ``destination``: IPv4 addresses of the tunnel. ``erspan``: the type. ``session``: the session ID of 10 bits;
    with a sub-header it repeats the slot. ``timestamp``: 32 bits in units of ``granularity`` (0: 100 us, 1: 100 ns).
    ``truncated``: the T bit. ``leg``: 0 without sub-header, then ``key`` is 0 too.
    """

    source: str
    destination: str = "0.0.0.0"  # noqa: S104
    erspan: Literal[1, 2, 3] = 3
    sequence: int = 0
    session: int = 0
    vlan: int = 0
    cos: int = 0
    truncated: bool = False
    timestamp: int = 0
    granularity: int = 1
    direction: Literal["ingress", "egress"] = "ingress"
    leg: int = 0
    key: int = 0

    @property
    def overhead_bytes(self) -> int:
        """Return how many bytes stand before the frame."""
        if self.erspan == 3:
            return OVERHEAD_BYTES if self.leg else 54
        return 50 if self.erspan == 2 else 38


@dataclass(frozen=True, slots=True)
class Arrived:
    """A mirrored frame, as it was when it was copied but for what was cut off."""

    header: Header
    frame: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """``reason``: one of REASONS."""

    reason: str


def own_header(key: int, source: str, sequence: int, *, leg: int = FIRST_LEG, truncated: bool = False) -> Header:
    """Return the header of a frame of one of Pileus's own sessions."""
    session = key & _SESSION_MASK
    return Header(source=source, sequence=sequence, key=key, leg=leg, session=session, truncated=truncated)


def encapsulate(header: Header, frame: bytes, *, to_mac: bytes = bytes(6), from_mac: bytes = bytes(6)) -> bytes:
    """Return the frame in its tunnel header; the IPv4 checksum is right, and fragments are forbidden."""
    packet = _gre(header) + _erspan(header) + frame
    head = _IPV4.pack(
        *(0x45, 0, _IPV4.size + len(packet), 0, _DO_NOT_FRAGMENT, _TIME_TO_LIVE, GRE_PROTOCOL, 0),
        *(IPv4Address(header.source).packed, IPv4Address(header.destination).packed),
    )
    head = head[:10] + _checksum(head) + head[12:]
    return _ETHERNET.pack(to_mac, from_mac, ETHERTYPE_IPV4) + head + packet


def parse(
    frame: bytes, *, accept: tuple[int, ...] = (2, 3), leg: int = FIRST_LEG, ethertype: int = ETHERTYPE_IPV4
) -> Arrived | Refused:
    """Return what the frame carries, or why it is refused; nothing is raised, whatever it holds.

    ``accept``: the types. ``leg``: the one that a sub-header must have, 1 or 2. ``ethertype``: ETHERTYPE_LABEL for frames
    that the data path kept. What follows the length in the IPv4 header is padding, and left out; the checksum is not looked at.
    """
    if len(frame) < _OVER_IPV4:
        return Refused("short")
    first, _, length, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(frame, 14)
    if frame[12] << 8 | frame[13] != ethertype or first >> 4 != 4:
        return Refused("not-ipv4")
    if first & 0xF != 5:
        return Refused("options")
    if fragment & _FRAGMENT_MASK:
        return Refused("fragment")
    if protocol != GRE_PROTOCOL:
        return Refused("not-gre")
    end = 14 + length
    if not _NEEDED_BYTES <= end <= len(frame):
        return Refused("short")
    return _within_gre(frame[:end], accept, leg, (inet_ntoa(source), inet_ntoa(destination)))


def label(key: int) -> bytes:
    """Return what stands before a frame between a decapsulator and its host."""
    return _LABEL.pack(key & KEY_MAX, 0, ETHERTYPE_LABEL)


def read_label(frame: bytes) -> tuple[int, bytes] | None:
    """Return key and frame of what a decapsulator gave back; None: that is no labelled frame."""
    if len(frame) < LABEL_BYTES + FRAME_BYTES_MIN:
        return None
    key, zero, ethertype = _LABEL.unpack_from(frame)
    if zero or ethertype != ETHERTYPE_LABEL or key > KEY_MAX:
        return None
    return key, frame[LABEL_BYTES:]


def _within_gre(frame: bytes, accept: tuple[int, ...], leg: int, ends: tuple[str, str]) -> Arrived | Refused:
    flags, protocol, sequence = _GRE.unpack_from(frame, _OVER_IPV4)
    if (flags, protocol) == (0, GRE_ERSPAN_1_2) and 1 in accept:
        return _arrived(Header(source=ends[0], destination=ends[1], erspan=1), frame)
    if flags != GRE_SEQUENCE or protocol not in (GRE_ERSPAN_1_2, GRE_ERSPAN_3):
        return Refused("bad-gre")
    erspan: Literal[2, 3] = 2 if protocol == GRE_ERSPAN_1_2 else 3
    version = frame[_AFTER_GRE] >> 4
    if version != erspan - 1 or erspan not in accept:
        return Refused("bad-version")
    if erspan == 2:
        return _arrived(_type_2(frame, sequence, ends), frame)
    return _type_3(frame, sequence, leg, ends)


def _type_2(frame: bytes, sequence: int, ends: tuple[str, str]) -> Header:
    vlan, word = _COMMON.unpack_from(frame, _AFTER_GRE)
    return Header(
        source=ends[0], destination=ends[1], erspan=2, sequence=sequence, vlan=vlan & 0xFFF, cos=word >> 13,
        truncated=bool(word & _TRUNCATED), session=word & _SESSION_MASK,
    )  # fmt: skip


def _type_3(frame: bytes, sequence: int, leg: int, ends: tuple[str, str]) -> Arrived | Refused:
    if len(frame) < _AFTER_GRE + _TYPE_3.size + FRAME_BYTES_MIN:
        return Refused("short")
    vlan, word, timestamp, _, flags = _TYPE_3.unpack_from(frame, _AFTER_GRE)
    key = 0
    if flags & 1:
        if len(frame) < OVERHEAD_BYTES + FRAME_BYTES_MIN:
            return Refused("short")
        key = int.from_bytes(frame[OVERHEAD_BYTES - 8 : OVERHEAD_BYTES], "big")
        if key >> KEY_BITS != leg:
            return Refused("wrong-leg")
    header = Header(
        source=ends[0], destination=ends[1], sequence=sequence, vlan=vlan & 0xFFF, cos=word >> 13,
        truncated=bool(word & _TRUNCATED), session=word & _SESSION_MASK, timestamp=timestamp, granularity=flags >> 1 & 3,
        direction="egress" if flags & 8 else "ingress", leg=key >> KEY_BITS, key=key & KEY_MAX,
    )  # fmt: skip
    return _arrived(header, frame)


def _arrived(header: Header, frame: bytes) -> Arrived | Refused:
    if len(frame) < header.overhead_bytes + FRAME_BYTES_MIN:
        return Refused("short")
    return Arrived(header, frame[header.overhead_bytes :])


def _gre(header: Header) -> bytes:
    if header.erspan == 1:
        return struct.pack(">HH", 0, GRE_ERSPAN_1_2)
    protocol = GRE_ERSPAN_1_2 if header.erspan == 2 else GRE_ERSPAN_3
    return _GRE.pack(GRE_SEQUENCE, protocol, header.sequence & 0xFFFFFFFF)


def _erspan(header: Header) -> bytes:
    if header.erspan == 1:
        return b""
    first = header.erspan - 1 << 12 | header.vlan & 0xFFF
    second = (header.cos & 7) << 13 | (_TRUNCATED if header.truncated else 0) | header.session & _SESSION_MASK
    if header.erspan == 2:
        return _COMMON.pack(first, second) + bytes(4)
    flags = (header.direction == "egress") << 3 | (header.granularity & 3) << 1 | (header.leg != 0)
    head = _TYPE_3.pack(first, second, header.timestamp & 0xFFFFFFFF, 0, flags)
    return head + (header.leg << KEY_BITS | header.key & KEY_MAX).to_bytes(8, "big") if header.leg else head


def _checksum(head: bytes) -> bytes:
    """Return the checksum of a header whose checksum is 0. Source: RFC 1071."""
    total = sum(int.from_bytes(head[at : at + 2], "big") for at in range(0, len(head), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")
