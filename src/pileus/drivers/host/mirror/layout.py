"""What the mirror's programs share: maps and their values, marks, places in kernel structures. Knows no host.

Numbers in values are in the host's order, addresses and headers in network order. Helper numbers and offsets: Linux,
include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

from msgspec import Struct

from pileus.node.ebpf import kernel
from pileus.node.ebpf.assembler import R0, R1, R2, R10, Program
from pileus.node.mirror import KEY_BITS, wire

FORMAT = "1"
"""Of maps and their values: what programs of another one left behind is not adopted, and goes with the last leg."""

SLOTS = 4096
"""Legs of one host."""

COUNTERS = 8
COUNTS_BYTES = 8 * COUNTERS
SEEN, MATCHED, SAMPLED, LIMITED, FAILED, SENT, SENT_BYTES, TRUNCATED = range(0, COUNTS_BYTES, 8)
ARRIVED, DROPPED, DELIVERED, DELIVERED_BYTES, RELAYED = range(0, 40, 8)
"""Places of counters in a slot: of a source, and of a relay or delivery."""

REFUSALS = ("malformed", "unknown-key", "wrong-source", "unknown-copy", "unknown-label")
"""Why the bus or a relay drops a frame that belongs to no leg."""

MARK_COPY = 0x80000000
MARK_EGRESS = 0x40000000
MARK_TICKET = 0x3FFFFFFF
"""A copy between select and bus: its direction, and the ticket of its session."""

MARK_RESOLVE, MARK_DIRECT, MARK_DELIVERED = 1, 2, 3
"""Goes out by the underlay's bridge, which asks for MACs; goes out by the tunnel's device; into a tap, never to be mirrored."""

HEADER = -wire.OVERHEAD_BYTES - 4
"""Where on the stack a tunnel header is laid out: its words of 4 bytes are aligned."""

ETHERTYPE, IP_VERSION, IP_LENGTH, IP_FRAGMENT, IP_PROTOCOL, IP_CHECKSUM = 12, 14, 16, 20, 23, 24
IP_SOURCE, IP_DESTINATION, GRE, SEQUENCE, ERSPAN, FLAGS, TIMESTAMP, SUBHEADER = 26, 30, 34, 38, 42, 44, 46, 54
ERSPAN_FLAGS = 53
"""Places in the tunnel header."""

TRUNCATED_BIT, EGRESS_BIT = 0x04, 0x08
"""In the bytes at FLAGS and ERSPAN_FLAGS."""

OUTGOING = struct.Struct("<I2x62sIIII")
OUT_SLOT, OUT_HEADER, OUT_CHECKSUM, OUT_LONGEST, OUT_REMOTE, OUT_DEVICE = 0, 6, 68, 72, 76, 80
"""How frames of a source or relay go out: its slot, the header but for length, checksum, number and time, the sum of that
header, the most bytes of a frame, whether to another host, and (relay) the device they must come from."""

ARRIVAL = struct.Struct("<I4sII")
IN_DEVICE, IN_SOURCE, IN_SLOT, IN_LEG = 0, 4, 8, 12
"""Where frames with a sub-header go: the tap, the only source, the slot, the leg."""

WAY = struct.Struct("<6x12s6xQ")
WAY_MACS, WAY_TIME = 6, 24
WAYS = 4096
"""The MACs by which a host was reached last, and when (ns)."""

MAP_LOOKUP, MAP_UPDATE, KTIME, PRANDOM, STORE_BYTES, CLONE_REDIRECT = 1, 2, 5, 7, 9, 13
VLAN_POP, REDIRECT, LOAD_BYTES, CHANGE_TAIL, PULL_HEADERS, CHANGE_HEAD = 19, 23, 26, 38, 39, 43
ADJUST_HEAD, ADJUST_ROOM, ADJUST_TAIL, REDIRECT_NEIGH = 44, 50, 65, 152
"""Helpers."""

SKB_LEN, SKB_MARK, SKB_VLAN_PRESENT, SKB_VLAN_TCI, SKB_VLAN_PROTO = 0, 8, 20, 24, 28
SKB_START, SKB_END, SKB_GSO_SEGMENTS, SKB_GSO_SIZE = 76, 80, 164, 176
XDP_START, XDP_END, XDP_INGRESS = 0, 4, 12
"""Places in ``struct __sk_buff`` and ``struct xdp_md``."""

TCX_NEXT, TCX_DROP = -1, 2
"""Verdicts: go on, drop. A redirection's is what the helper returned."""


LRU_HASH = 9
"""A kind of map that forgets the oldest when it is full."""


class Maps(Struct, frozen=True, kw_only=True):
    """File descriptors of the maps of one host."""

    counts: int
    sequences: int
    rates: int
    outgoing: int
    labels: int
    arrivals: int
    ways: int
    refusals: int


SHAPES: dict[str, tuple[int, int, int, int]] = {
    "counts": (kernel.PERCPU_ARRAY, 4, COUNTS_BYTES, SLOTS),
    "sequences": (kernel.ARRAY, 4, 8, SLOTS),
    "rates": (kernel.ARRAY, 4, 8, SLOTS),
    "outgoing": (kernel.HASH, 4, OUTGOING.size, SLOTS),
    "labels": (kernel.HASH, 8, OUTGOING.size, SLOTS),
    "arrivals": (kernel.HASH, 8, ARRIVAL.size, SLOTS),
    "ways": (LRU_HASH, 4, WAY.size, WAYS),
    "refusals": (kernel.PERCPU_ARRAY, 4, 8, len(REFUSALS)),
}
"""Kind, bytes of key and value, entries. Hashes: their values are replaced whole, so no program meets half of one.

``outgoing`` is by ticket, ``labels`` by what a decapsulator puts before a frame, ``arrivals`` by sub-header, ``ways`` by
address.
"""


def outgoing_value(key: int, ends: tuple[str, str], slot: int, longest: int, *, leg: int, device: int = 0) -> bytes:
    """Return a value of ``outgoing`` or ``labels``; ``ends``: source and destination, both "" on the same host."""
    source, destination = (each or "0.0.0.0" for each in ends)  # noqa: S104
    example = wire.own_header(key, source, 0, leg=leg)
    header = wire.encapsulate(
        wire.Header(source=source, destination=destination, session=example.session, leg=leg, key=key), b""
    )
    header = header[:IP_LENGTH] + bytes(2) + header[IP_LENGTH + 2 : IP_CHECKSUM] + bytes(2) + header[IP_CHECKSUM + 2 :]
    total = sum(struct.unpack_from(">10H", header, IP_VERSION))
    return OUTGOING.pack(slot, header, total, longest, int(bool(ends[1])), device)


def arrival_value(device: int, source: str, slot: int, leg: int) -> bytes:
    """Return a value of ``arrivals``; ``source`` "": the same host."""
    return ARRIVAL.pack(device, IPv4Address(source or "0.0.0.0").packed, slot, leg)  # noqa: S104


def subheader(key: int, leg: int) -> bytes:
    """Return a key of ``arrivals``."""
    return (leg << KEY_BITS | key).to_bytes(8, "big")


def network32(address: str) -> int:
    """Return an IPv4 address as a program of this host reads it from a frame."""
    return int(struct.unpack("=I", IPv4Address(address or "0.0.0.0").packed)[0])  # noqa: S104


def network16(number: int) -> int:
    """Return a number of two bytes as a program of this host reads it from a frame."""
    return int(struct.unpack("=H", struct.pack(">H", number))[0])


def look_up(program: Program, fd: int, place: int, *, otherwise: str) -> None:
    """Let R0 be the value of the key that lies on the stack at ``place``."""
    program.mov(R2, R10)
    program.alu_imm("add", R2, place)
    program.map(R1, fd)
    program.call(MAP_LOOKUP)
    program.jump_imm("eq", R0, 0, otherwise)


def increase(program: Program, counts: int, place: int) -> None:
    """Add 1 to a counter of this CPU; R1 is lost."""
    program.load(R1, counts, place, 8)
    program.alu_imm("add", R1, 1)
    program.store(counts, place, R1, 8)


def fold_checksum(program: Program, total: int) -> None:
    """Turn a sum of 16-bit words into the checksum as it is stored; R2 is lost."""
    for _ in range(2):
        program.mov(R2, total)
        program.alu_imm("rsh", R2, 16)
        program.alu_imm("and", total, 0xFFFF)
        program.alu("add", total, R2)
    program.alu_imm("xor", total, 0xFFFF)
    program.swap(total, 16)


def count_refusal(program: Program, maps: Maps, why: str, *, go_to: str) -> None:
    """Emit the label ``why`` that counts a refusal and goes on; R0-R5 and 4 bytes of stack are lost."""
    program.label(why)
    program.store_imm(R10, -4, REFUSALS.index(why), 4)
    look_up(program, maps.refusals, -4, otherwise=go_to)
    increase(program, R0, 0)
    program.goto(go_to)
