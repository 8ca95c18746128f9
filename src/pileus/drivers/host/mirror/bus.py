"""The programs of the bus: copies get their tunnel header and go to their host; what arrives goes into its tap, counted.

Nearly every copy gets its header as it enters the pair of devices, and never passes it. Those that the kernel has joined, or
took a tag from, come out at the other end cut, and get it there.

R6 is the packet, R7 what is known of it, R8 the leg's value, R9 the leg's counters of this CPU.
"""

from __future__ import annotations

from msgspec import Struct

from pileus.drivers.host.mirror.layout import (
    ADJUST_ROOM,
    ARRIVED,
    CHANGE_HEAD,
    CHANGE_TAIL,
    CLONE_REDIRECT,
    DELIVERED,
    DELIVERED_BYTES,
    DROPPED,
    EGRESS_BIT,
    ERSPAN,
    ERSPAN_FLAGS,
    ETHERTYPE,
    FAILED,
    FLAGS,
    GRE,
    HEADER,
    IN_DEVICE,
    IN_LEG,
    IN_SLOT,
    IN_SOURCE,
    IP_CHECKSUM,
    IP_DESTINATION,
    IP_FRAGMENT,
    IP_LENGTH,
    IP_PROTOCOL,
    IP_SOURCE,
    IP_VERSION,
    KTIME,
    LOAD_BYTES,
    MARK_COPY,
    MARK_DELIVERED,
    MARK_DIRECT,
    MARK_EGRESS,
    MARK_RESOLVE,
    MARK_TICKET,
    OUT_CHECKSUM,
    OUT_HEADER,
    OUT_LONGEST,
    OUT_REMOTE,
    OUT_SLOT,
    REDIRECT,
    REDIRECT_NEIGH,
    SENT,
    SENT_BYTES,
    SEQUENCE,
    SKB_GSO_SIZE,
    SKB_LEN,
    SKB_MARK,
    SKB_VLAN_PRESENT,
    SKB_VLAN_PROTO,
    SKB_VLAN_TCI,
    STORE_BYTES,
    SUBHEADER,
    TCX_DROP,
    TCX_NEXT,
    TIMESTAMP,
    TRUNCATED,
    TRUNCATED_BIT,
    VLAN_POP,
    WAY_MACS,
    WAY_TIME,
    Maps,
    count_refusal,
    fold_checksum,
    increase,
    look_up,
    network16,
    network32,
)
from pileus.node.ebpf.assembler import R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, Program
from pileus.node.mirror.wire import (
    ETHERTYPE_IPV4,
    FIRST_LEG,
    GRE_ERSPAN_3,
    GRE_PROTOCOL,
    GRE_SEQUENCE,
    OVERHEAD_BYTES,
)

WAY_AGE_MAX_NS = 5_000_000_000
WAY_ASKED_EACH = 1024
"""One copy in so many, or after so long, goes by the underlay's bridge, which asks again for the MACs."""

ETHERNET_BYTES, VLAN_TAG_BYTES = 14, 4
STRIPPED_BYTES_MIN = 34
"""The kernel strips no packet to less; a shorter one is padded before and cut after."""

ROOM_AFTER_MAC = 1

NOWHERE = 0x7FFFFFFF
"""The number of no device: who is sent there goes without being counted as dropped."""

CUT, WAY_KNOWN = 1, 2
"""In R7, of a copy, beside MARK_EGRESS."""

KEY, NUMBER, TIME, SPARE = HEADER - 6, HEADER - 14, HEADER - 22, HEADER - 46
"""Places on the stack: keys of maps, the sequence number, the time (ns), and 16 bytes for what is moved."""


class Wiring(Struct, frozen=True, kw_only=True):
    """The devices that the bus knows, by number, and this host's tunnel address ("": it has none)."""

    copies: int
    tunnel: int = 0
    underlay: int = 0
    own: str = ""


def bus(wiring: Wiring, maps: Maps) -> bytes:
    """Return the program at the pair's far end."""
    program = Program()
    program.mov(R6, R1)
    program.load(R7, R6, SKB_MARK, 4)
    program.mov_imm(R1, MARK_COPY)
    program.jump32("set", R7, R1, "copy")
    program.jump32_imm("eq", R7, MARK_RESOLVE, "resolve")
    _arrive(program, wiring, maps)
    _find_arrival(program, maps)
    _deliver(program)
    _forward(program, wiring, maps)
    _find_session(program, maps)
    _restore_tag(program)
    _copy(program, wiring, maps)
    program.label("failed")
    increase(program, R9, FAILED)
    program.goto("drop")
    _exits(program, maps, ("malformed", "unknown-key", "wrong-source", "unknown-copy"))
    program.mov_imm(R0, TCX_DROP)
    program.exit()
    return program.code()


def shortcut(wiring: Wiring, maps: Maps) -> bytes:
    """Return the program where copies enter the pair.

    A packet that it drops is counted as failed by who sent it; one that it has done with must go without being dropped.
    """
    program = Program()
    program.mov(R6, R1)
    program.load(R7, R6, SKB_MARK, 4)
    program.mov_imm(R1, MARK_COPY)
    program.jump32("set", R7, R1, "marked")
    program.label("on")
    program.mov_imm(R0, TCX_NEXT)
    program.exit()
    program.label("marked")
    for place in (SKB_GSO_SIZE, SKB_VLAN_PRESENT):
        program.load(R1, R6, place, 4)
        program.jump_imm("ne", R1, 0, "on")
    _find_session(program, maps)
    _copy(program, wiring, maps)
    _find_arrival(program, maps)
    _deliver(program)
    program.label("direct")
    _mark(program, MARK_DIRECT)
    _redirect(program, wiring.tunnel)
    program.label("failed")
    program.mov_imm(R0, TCX_DROP)
    program.exit()
    _exits(program, maps, ("unknown-key", "wrong-source", "unknown-copy"))
    _redirect(program, NOWHERE)
    return program.code()


def _find_session(program: Program, maps: Maps) -> None:
    """A copy from select: find its session by its ticket."""
    program.label("copy")
    program.mov(R1, R7)
    program.alu_imm("and", R1, MARK_TICKET)
    program.store(R10, KEY, R1, 4)
    program.alu_imm("and", R7, MARK_EGRESS)
    look_up(program, maps.outgoing, KEY, otherwise="unknown-copy")
    program.mov(R8, R0)
    program.load(R1, R8, OUT_SLOT, 4)
    program.store(R10, KEY, R1, 4)
    look_up(program, maps.counts, KEY, otherwise="drop")
    program.mov(R9, R0)


def _copy(program: Program, wiring: Wiring, maps: Maps) -> None:
    """Cut the copy, put the header before it, send it."""
    _cut(program)
    _call(program, CHANGE_HEAD, OVERHEAD_BYTES, 0)
    program.jump_imm("ne", R0, 0, "failed")
    _lay_out(program)
    _number(program, maps)
    program.load(R1, R8, OUT_REMOTE, 4)
    program.jump_imm("eq", R1, 0, "write")
    _find_way(program, maps, otherwise="write")
    program.alu_imm("or", R7, WAY_KNOWN)
    program.label("write")
    _store(program, HEADER, OVERHEAD_BYTES)
    program.jump_imm("ne", R0, 0, "failed")
    _count_sent(program)
    _send_copy(program, wiring)


def _send_copy(program: Program, wiring: Wiring) -> None:
    program.load(R1, R8, OUT_REMOTE, 4)
    program.jump_imm("eq", R1, 0, "arrived")
    program.jump_imm("set", R7, WAY_KNOWN, "direct")
    # Only as it comes in again does the kernel take it for IPv4, whatever it carries.
    _mark(program, MARK_RESOLVE)
    _redirect(program, wiring.copies)


def _restore_tag(program: Program) -> None:
    """Put the VLAN tag that the kernel has taken out back where it was."""
    program.load(R1, R6, SKB_VLAN_PRESENT, 4)
    program.jump_imm("eq", R1, 0, "untagged")
    program.load(R1, R6, SKB_VLAN_PROTO, 4)
    program.store(R10, SPARE + 12, R1, 2)
    program.load(R1, R6, SKB_VLAN_TCI, 4)
    program.swap(R1, 16)
    program.store(R10, SPARE + 14, R1, 2)
    _call(program, VLAN_POP)
    program.jump_imm("ne", R0, 0, "failed")
    program.load(R1, R6, SKB_VLAN_PRESENT, 4)
    program.jump_imm("ne", R1, 0, "failed")
    _call(program, CHANGE_HEAD, VLAN_TAG_BYTES, 0)
    program.jump_imm("ne", R0, 0, "failed")
    _load(program, VLAN_TAG_BYTES, SPARE, ETHERTYPE, otherwise="failed")
    _store(program, SPARE, ETHERTYPE + VLAN_TAG_BYTES)
    program.label("untagged")


def _cut(program: Program) -> None:
    program.load(R1, R6, SKB_LEN, 4)
    program.load(R2, R8, OUT_LONGEST, 4)
    program.jump("le", R1, R2, "whole")
    program.mov(R1, R6)
    program.mov_imm(R3, 0)
    program.call(CHANGE_TAIL)
    program.jump_imm("ne", R0, 0, "failed")
    program.alu_imm("or", R7, CUT)
    increase(program, R9, TRUNCATED)
    program.label("whole")


def _lay_out(program: Program) -> None:
    """Lay the header out on the stack, but for its number and MACs."""
    for place, size in ((0, 2), *((at, 8) for at in range(2, 58, 8)), (58, 4)):
        program.load(R1, R8, OUT_HEADER + place, size)
        program.store(R10, HEADER + place, R1, size)
    program.load(R1, R6, SKB_LEN, 4)
    program.alu_imm("sub", R1, ETHERNET_BYTES)
    program.load(R3, R8, OUT_CHECKSUM, 4)
    program.alu("add", R3, R1)
    program.swap(R1, 16)
    program.store(R10, HEADER + IP_LENGTH, R1, 2)
    fold_checksum(program, R3)
    program.store(R10, HEADER + IP_CHECKSUM, R3, 2)
    _set_bit(program, CUT, FLAGS, TRUNCATED_BIT, "uncut")
    _set_bit(program, MARK_EGRESS, ERSPAN_FLAGS, EGRESS_BIT, "ingress")
    program.call(KTIME)
    program.store(R10, TIME, R0, 8)
    program.alu_imm("div", R0, 100)
    program.swap(R0, 32)
    program.store(R10, HEADER + TIMESTAMP, R0, 4)


def _set_bit(program: Program, known: int, place: int, bit: int, label: str) -> None:
    program.mov(R1, R7)
    program.alu_imm("and", R1, known)
    program.jump_imm("eq", R1, 0, label)
    program.load(R1, R10, HEADER + place, 1)
    program.alu_imm("or", R1, bit)
    program.store(R10, HEADER + place, R1, 1)
    program.label(label)


def _number(program: Program, maps: Maps) -> None:
    look_up(program, maps.sequences, KEY, otherwise="failed")
    program.mov_imm(R1, 1)
    program.fetch_add(R0, 0, R1, 8)
    program.swap(R1, 32)
    program.store(R10, HEADER + SEQUENCE, R1, 4)


def _find_way(program: Program, maps: Maps, *, otherwise: str) -> None:
    """Write the MACs of the way into the header; go elsewhere when it is not known, or is to be asked for again."""
    program.load(R1, R10, HEADER + SEQUENCE, 4)
    program.swap(R1, 32)
    program.alu_imm("and", R1, WAY_ASKED_EACH - 1)
    program.jump_imm("eq", R1, 0, otherwise)
    program.load(R1, R10, HEADER + IP_DESTINATION, 4)
    program.store(R10, KEY, R1, 4)
    look_up(program, maps.ways, KEY, otherwise=otherwise)
    program.load(R1, R0, WAY_TIME, 8)
    program.load_imm64(R2, WAY_AGE_MAX_NS)
    program.alu("add", R1, R2)
    program.load(R2, R10, TIME, 8)
    program.jump("lt", R1, R2, otherwise)
    for place, size in ((0, 2), (2, 8), (10, 2)):
        program.load(R1, R0, WAY_MACS + place, size)
        program.store(R10, HEADER + place, R1, size)


def _count_sent(program: Program) -> None:
    increase(program, R9, SENT)
    program.load(R1, R6, SKB_LEN, 4)
    program.alu_imm("sub", R1, OVERHEAD_BYTES)
    program.load(R2, R9, SENT_BYTES, 8)
    program.alu("add", R2, R1)
    program.store(R9, SENT_BYTES, R2, 8)


def _arrive(program: Program, wiring: Wiring, maps: Maps) -> None:
    """A frame from the gate or a relay: for this host it goes into the tap of its key, for another one on."""
    _load(program, 0, HEADER, OVERHEAD_BYTES, otherwise="malformed")
    for place, size, value in (
        (ETHERTYPE, 2, network16(ETHERTYPE_IPV4)),
        (IP_VERSION, 1, 0x45),
        (IP_PROTOCOL, 1, GRE_PROTOCOL),
        (GRE, 4, network16(GRE_SEQUENCE) | network16(GRE_ERSPAN_3) << 16),
    ):
        program.load(R1, R10, HEADER + place, size)
        program.jump32_imm("ne", R1, value, "malformed")
    program.load(R1, R10, HEADER + IP_FRAGMENT, 2)
    program.jump_imm("set", R1, network16(0x3FFF), "malformed")
    program.load(R1, R10, HEADER + ERSPAN, 1)
    program.alu_imm("rsh", R1, 4)
    program.jump_imm("ne", R1, 2, "malformed")
    program.load(R1, R10, HEADER + ERSPAN_FLAGS, 1)
    program.alu_imm("and", R1, 1)
    program.jump_imm("eq", R1, 0, "malformed")
    program.load(R1, R10, HEADER + IP_DESTINATION, 4)
    program.jump32_imm("eq", R1, 0, "arrived")
    program.jump32_imm("ne", R1, network32(wiring.own), "forward")


def _find_arrival(program: Program, maps: Maps) -> None:
    program.label("arrived")
    for place in (0, 4):
        program.load(R1, R10, HEADER + SUBHEADER + place, 4)
        program.store(R10, KEY + place, R1, 4)
    look_up(program, maps.arrivals, KEY, otherwise="unknown-key")
    program.mov(R8, R0)
    program.load(R1, R8, IN_SOURCE, 4)
    program.load(R2, R10, HEADER + IP_SOURCE, 4)
    program.jump32("ne", R1, R2, "wrong-source")
    program.load(R1, R8, IN_SLOT, 4)
    program.store(R10, KEY, R1, 4)
    look_up(program, maps.counts, KEY, otherwise="drop")
    program.mov(R9, R0)
    increase(program, R9, ARRIVED)


def _deliver(program: Program) -> None:
    """Put the frame into its tap: for a decapsulator with its header, for a sniffer as it was."""
    program.load(R1, R8, IN_LEG, 4)
    program.jump_imm("ne", R1, FIRST_LEG, "strip")
    # The NIC of a VM takes no frame to another MAC than its own, but a broadcast.
    program.store_imm(R10, SPARE, -1, 8)
    _store(program, SPARE, 6)
    program.goto("put")
    program.label("strip")
    _strip(program)
    program.label("put")
    _mark(program, MARK_DELIVERED)
    program.load(R7, R6, SKB_LEN, 4)
    program.mov(R1, R6)
    program.load(R2, R8, IN_DEVICE, 4)
    program.mov_imm(R3, 0)
    # A clone, and not a redirection, because it tells whether the tap took it.
    program.call(CLONE_REDIRECT)
    program.jump_imm("ne", R0, 0, "dropped")
    increase(program, R9, DELIVERED)
    program.load(R1, R9, DELIVERED_BYTES, 8)
    program.alu("add", R1, R7)
    program.store(R9, DELIVERED_BYTES, R1, 8)
    program.goto("drop")


def _strip(program: Program) -> None:
    """Take the header away, by taking away what follows its MACs and writing the frame's own over them."""
    _load(program, OVERHEAD_BYTES, SPARE, ETHERNET_BYTES, otherwise="dropped")
    program.load(R7, R6, SKB_LEN, 4)
    program.jump_imm("ge", R7, OVERHEAD_BYTES + STRIPPED_BYTES_MIN, "long enough")
    _call(program, CHANGE_TAIL, OVERHEAD_BYTES + STRIPPED_BYTES_MIN, 0)
    program.jump_imm("ne", R0, 0, "dropped")
    program.label("long enough")
    _call(program, ADJUST_ROOM, -OVERHEAD_BYTES, ROOM_AFTER_MAC, 0)
    program.jump_imm("ne", R0, 0, "dropped")
    _store(program, SPARE, ETHERNET_BYTES)
    program.jump_imm("ne", R0, 0, "dropped")
    program.jump_imm("ge", R7, OVERHEAD_BYTES + STRIPPED_BYTES_MIN, "put")
    program.alu_imm("sub", R7, OVERHEAD_BYTES)
    program.mov(R1, R6)
    program.mov(R2, R7)
    program.mov_imm(R3, 0)
    program.call(CHANGE_TAIL)
    program.jump_imm("ne", R0, 0, "dropped")


def _forward(program: Program, wiring: Wiring, maps: Maps) -> None:
    """A frame of a relay for another host; its header is on the stack."""
    program.label("forward")
    program.call(KTIME)
    program.store(R10, TIME, R0, 8)
    _find_way(program, maps, otherwise="resolve")
    _store(program, HEADER, ETHERTYPE)
    program.jump32_imm("ne", R0, 0, "drop")
    program.label("direct")
    _mark(program, MARK_DIRECT)
    _redirect(program, wiring.tunnel)
    program.label("resolve")
    _mark(program, 0)
    program.mov_imm(R1, wiring.underlay)
    program.mov_imm(R2, 0)
    program.mov_imm(R3, 0)
    program.mov_imm(R4, 0)
    program.call(REDIRECT_NEIGH)
    program.exit()


def _exits(program: Program, maps: Maps, refusals: tuple[str, ...]) -> None:
    """What ends here; what follows is the verdict."""
    program.label("dropped")
    increase(program, R9, DROPPED)
    program.goto("drop")
    for why in refusals:
        count_refusal(program, maps, why, go_to="drop")
    program.label("drop")


def _call(program: Program, function: int, *arguments: int) -> None:
    """Call a helper with the packet and these numbers."""
    program.mov(R1, R6)
    for register, argument in zip((R2, R3, R4), arguments, strict=False):
        program.mov_imm(register, argument)
    program.call(function)


def _load(program: Program, place: int, stack: int, size: int, *, otherwise: str) -> None:
    """Copy bytes of the packet onto the stack."""
    program.mov(R1, R6)
    program.mov_imm(R2, place)
    program.mov(R3, R10)
    program.alu_imm("add", R3, stack)
    program.mov_imm(R4, size)
    program.call(LOAD_BYTES)
    program.jump_imm("ne", R0, 0, otherwise)


def _store(program: Program, stack: int, size: int) -> None:
    """Write bytes of the stack over the packet's beginning."""
    program.mov(R1, R6)
    program.mov_imm(R2, 0)
    program.mov(R3, R10)
    program.alu_imm("add", R3, stack)
    program.mov_imm(R4, size)
    program.mov_imm(R5, 0)
    program.call(STORE_BYTES)


def _mark(program: Program, mark: int) -> None:
    program.mov_imm(R1, mark)
    program.store(R6, SKB_MARK, R1, 4)


def _redirect(program: Program, device: int) -> None:
    program.mov_imm(R1, device)
    program.mov_imm(R2, 0)
    program.call(REDIRECT)
    program.exit()
