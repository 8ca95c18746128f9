"""Who talked to whom: flow records made from frames, both directions of a conversation in one. Pure.

A frame's flow is its protocol, addresses and ports; without ports (ICMP, fragments but the first) the addresses, without
IP the ethertype and the MACs. ``a`` is who began, as far as the first frame tells. The number of records is bounded: the
one that was idle longest goes, and is counted.
"""

from __future__ import annotations

import socket
import struct
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

FLOWS_MAX = 4096
"""Of one session."""

FLOW_BYTES = 1050
"""Of memory that a record takes, measured with Python 3.11."""

IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806
_TAGS = (0x8100, 0x88A8)
_TAGS_MAX = 2
_TCP = 6
_WITH_PORTS = {6: "tcp", 17: "udp", 132: "sctp"}
_NAMES = {**_WITH_PORTS, 1: "icmp", 58: "icmp6", 2: "igmp", 47: "gre", 50: "esp"}
_SYN_ACK = 0x12
_FRAGMENT_OFFSET = 0x1FFF
_PLAIN_IPV4 = b"\x08\x00\x45"


class Ends(NamedTuple):
    """A frame's flow, as seen by that frame; addresses packed (IP, or MAC)."""

    family: int
    """Ethertype."""
    protocol: int
    """IP protocol number; 0 without IP."""
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    is_answer: bool = False
    """It can only be an answer: a TCP segment with SYN and ACK."""


Key = tuple[int, int, bytes, int, bytes, int]


class Flow:
    """What is known of one conversation; numbers are of ``a`` to ``b``, and back. ``mark``: when it had its last frame."""

    __slots__ = ("bytes", "ends", "first_ns", "key", "last_ns", "mark", "packets", "shorts")

    def __init__(self, ends: Ends, key: Key, at_ns: int) -> None:
        self.ends, self.key = ends, key
        self.first_ns = self.last_ns = at_ns
        self.mark = 0
        self.packets = [0, 0]
        self.bytes = [0, 0]
        self.shorts: list[bytes] = []
        """Under which it is found without looking at the whole frame."""

    def told(self) -> dict[str, Any]:
        """Return the record as it is told to readers: JSON."""
        ends = self.ends
        return {
            "protocol": protocol_name(ends), "a": _text(ends.family, ends.source), "a_port": ends.source_port,
            "b": _text(ends.family, ends.destination), "b_port": ends.destination_port,
            "first": self.first_ns / 1e9, "last": self.last_ns / 1e9, "packets": self.packets, "bytes": self.bytes,
        }  # fmt: skip


class Flows:
    """The flows of one session. ``gone``: records, packets and bytes that had to go. ``mark`` grows with every frame."""

    def __init__(self, limit: int = FLOWS_MAX) -> None:
        self.gone = [0, 0, 0]
        self.mark = 0
        self._limit = limit
        self._flows: OrderedDict[Key, Flow] = OrderedDict()
        self._shorts: dict[bytes, tuple[Flow, int]] = {}

    def __len__(self) -> int:
        return len(self._flows)

    def resize(self, limit: int) -> None:
        """Have at most so many from now on."""
        self._limit = limit
        while len(self._flows) > limit:
            self._forget_one()

    def add(self, frame: bytes, at_ns: int, original: int) -> None:
        """Count a frame that had ``original`` bytes."""
        short = _short(frame)
        found = self._shorts.get(short)
        flow, side = found if found is not None else self._find(frame, short, at_ns)
        self.mark += 1
        flow.mark = self.mark
        self._flows.move_to_end(flow.key)
        flow.packets[side] += 1
        flow.bytes[side] += original
        # Frames of several CPUs may arrive out of order.
        if at_ns > flow.last_ns:
            flow.last_ns = at_ns
        elif at_ns < flow.first_ns:
            flow.first_ns = at_ns

    def changed(self, since: int = 0) -> Iterator[Flow]:
        """Yield the flows that had a frame after the mark ``since``, the latest first."""
        for flow in reversed(self._flows.values()):
            if flow.mark <= since:
                return
            yield flow

    def _find(self, frame: bytes, short: bytes, at_ns: int) -> tuple[Flow, int]:
        """Return the frame's flow, and its direction there: 0 from ``a`` to ``b``."""
        ends = ends_of(frame)
        one, other = (ends.source, ends.source_port), (ends.destination, ends.destination_port)
        key = (ends.family, ends.protocol, *one, *other) if one <= other else (ends.family, ends.protocol, *other, *one)
        flow = self._flows.get(key) or self._begin(ends, key, at_ns)
        found = (flow, 0 if (flow.ends.source, flow.ends.source_port) == one else 1)
        if short:
            self._shorts[short] = found
            flow.shorts.append(short)
        return found

    def _begin(self, ends: Ends, key: Key, at_ns: int) -> Flow:
        if len(self._flows) >= self._limit:
            self._forget_one()
        if ends.is_answer:
            ends = ends._replace(
                source=ends.destination, source_port=ends.destination_port,
                destination=ends.source, destination_port=ends.source_port,
            )  # fmt: skip
        flow = self._flows[key] = Flow(ends, key, at_ns)
        return flow

    def _forget_one(self) -> None:
        _, oldest = self._flows.popitem(last=False)
        for short in oldest.shorts:
            del self._shorts[short]
        self.gone = [self.gone[0] + 1, self.gone[1] + sum(oldest.packets), self.gone[2] + sum(oldest.bytes)]


def _short(frame: bytes) -> bytes:
    """Return protocol, addresses and ports of an IPv4 frame without options that has ports; else nothing."""
    if (
        frame[12:15] == _PLAIN_IPV4
        and len(frame) >= 38
        and frame[23] in _WITH_PORTS
        and not (frame[20] & 31 or frame[21])
    ):
        return frame[23:24] + frame[26:38]
    return b""


def ends_of(frame: bytes) -> Ends:
    """Return whose frame it is; whatever is cut off or no IP is told by what is there."""
    family, at = network_part(frame)
    if family == IPV4 and len(frame) >= at + 20 and frame[at] >> 4 == 4:
        offset = struct.unpack_from("!H", frame, at + 6)[0] & _FRAGMENT_OFFSET
        behind = at + (frame[at] & 15) * 4 if offset == 0 else len(frame)
        return _with_ports(frame, family, frame[at + 9], (frame[at + 12 : at + 16], frame[at + 16 : at + 20]), behind)
    if family == IPV6 and len(frame) >= at + 40 and frame[at] >> 4 == 6:
        return _with_ports(frame, family, frame[at + 6], (frame[at + 8 : at + 24], frame[at + 24 : at + 40]), at + 40)
    return Ends(family if family not in (IPV4, IPV6) else 0, 0, frame[6:12], 0, frame[:6], 0)


def network_part(frame: bytes) -> tuple[int, int]:
    """Return the ethertype behind VLAN tags, and where what it speaks of begins; (0, length) when that is cut off."""
    at = 12
    for _ in range(_TAGS_MAX + 1):
        if len(frame) < at + 2:
            return 0, len(frame)
        family = int.from_bytes(frame[at : at + 2], "big")
        if family not in _TAGS:
            return family, at + 2
        at += 4
    return 0, len(frame)


def original_bytes(frame: bytes) -> int:
    """Return how many bytes a cut frame had, as its IP header says; its own length when that says nothing."""
    family, at = network_part(frame)
    length = len(frame)
    if family == IPV4 and length >= at + 4:
        return max(length, at + int.from_bytes(frame[at + 2 : at + 4], "big"))
    if family == IPV6 and length >= at + 6:
        return max(length, at + 40 + int.from_bytes(frame[at + 4 : at + 6], "big"))
    return length


def protocol_name(ends: Ends) -> str:
    """Return ``tcp``, ``udp``, …, an IP protocol number, ``arp``, or an ethertype in hexadecimal."""
    if ends.family in (IPV4, IPV6):
        return _NAMES.get(ends.protocol, str(ends.protocol))
    return "arp" if ends.family == ARP else f"0x{ends.family:04x}"


def _with_ports(frame: bytes, family: int, protocol: int, between: tuple[bytes, bytes], at: int) -> Ends:
    if protocol not in _WITH_PORTS or len(frame) < at + 4:
        return Ends(family, protocol, between[0], 0, between[1], 0)
    source, destination = struct.unpack_from("!HH", frame, at)
    is_answer = protocol == _TCP and len(frame) >= at + 14 and frame[at + 13] & _SYN_ACK == _SYN_ACK
    return Ends(family, protocol, between[0], source, between[1], destination, is_answer)


def _text(family: int, address: bytes) -> str:
    if family == IPV4:
        return socket.inet_ntop(socket.AF_INET, address)
    if family == IPV6:
        return socket.inet_ntop(socket.AF_INET6, address)
    return address.hex(":")
