"""Packets as lines for people, nearly as ``tcpdump -nS`` prints them.

Whatever bytes come: nothing is raised, and nothing of a packet can steer a terminal. Pure, but for the time zone.
Source: the formats of RFC 791, 8200, 9293, 768, 792, 4443, 826, 1035 and 2131; layout after tcpdump 4.99.
"""

from __future__ import annotations

import functools
import socket
import struct
import time
from collections.abc import Callable

IPV4, IPV6, ARP, VLAN, QINQ = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8
ETHERTYPE_MIN = 0x0600
"""Below, the field is a length (IEEE 802.3)."""
TAGS_MAX = 3
EXTENSIONS_MAX = 8
EXTENSIONS = (0, 43, 60)
"""Hop-by-hop, routing, destination options; they have their length in one place. Source: RFC 8200 4."""
FRAGMENT = 44
TCP, UDP, SCTP, ICMP, ICMP6 = 6, 17, 132, 1, 58
NAMES = {2: "igmp", 4: "ipip", 41: "ip6", 47: "GREv0", 50: "ESP", 51: "AH", 89: "OSPF", 103: "PIM", 112: "VRRP"}
DNS_PORTS = frozenset((53, 5353, 5355))
DHCP_PORTS = frozenset((67, 68))
ANSWERS_MAX = 4
LABELS_MAX = 64
"""Of a name: more than 255 bytes can hold with pointers that lead nowhere."""

SIDES = ("?  ", "In ", "Out")
"""By the direction in a capture, as the VM sees it: not known, to it, from it."""

Parts = list[str]


def line(at_ns: int, frame: bytes, original: int, direction: int) -> str:
    """Return a packet as one line of printable ASCII.

    ``at_ns``: Unix nanoseconds. ``original``: bytes that it had before it was cut. ``direction``: 1 to the VM, 2 from it.
    """
    seconds, rest = divmod(at_ns, 1_000_000_000)
    clock, side = _clock(seconds), SIDES[direction if 0 < direction < 3 else 0]
    return f"{clock}.{rest // 1000:06d} {side} {told(frame, original)}"


def told(frame: bytes, original: int) -> str:
    """Return what a frame is. ``[cut]``: less was captured than it had; ``[malformed]``: it ends too early by itself."""
    parts: Parts = []
    is_cut = len(frame) < original
    try:
        _ethernet(frame, max(original, len(frame)), parts)
    except (IndexError, struct.error):
        return f"{''.join(parts).rstrip()} {'[cut]' if is_cut else '[malformed]'}".lstrip()
    return f"{''.join(parts)} [cut]" if is_cut else "".join(parts)


@functools.lru_cache(maxsize=8)
def _clock(seconds: int) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(seconds))
    except (OverflowError, OSError, ValueError):
        return "--:--:--"


def _ethernet(frame: bytes, original: int, parts: Parts) -> None:
    (kind,) = _H.unpack_from(frame, 12)
    at = 14
    for _ in range(TAGS_MAX):
        if kind not in (VLAN, QINQ):
            break
        tag, kind = _HH.unpack_from(frame, at)
        parts.append(f"vlan {tag & 0xFFF}, ")
        at += 4
    if kind == IPV4:
        _ipv4(frame, at, parts)
    elif kind == IPV6:
        _ipv6(frame, at, parts)
    elif kind == ARP:
        _arp(frame, at, original, parts)
    else:
        ends = f"{_mac(frame[6:12])} > {_mac(frame[:6])}"
        what = f"ethertype 0x{kind:04x}" if kind >= ETHERTYPE_MIN else "802.3"
        parts.append(f"{ends}, {what}, length {original}")


# Internet Protocol


def _ipv4(frame: bytes, at: int, parts: Parts) -> None:
    first, _, total, _, fragment, _, protocol, _ = _IPV4.unpack_from(frame, at)
    source, destination = _ipv4_text(frame[at + 12 : at + 16]), _ipv4_text(frame[at + 16 : at + 20])
    parts.append("IP ")
    head = (first & 15) * 4
    if first >> 4 != 4 or head < 20 or (total and total < head):
        parts.append(f"{source} > {destination}: bad header")
        return
    behind = at + head
    # A packet that is not cut into segments yet says 0, or the length of all of them.
    length = total - head if total else len(frame) - behind
    offset = (fragment & 0x1FFF) * 8
    if offset:
        parts.append(f"{source} > {destination}: {_protocol(protocol)}, fragment at {offset}, length {length}")
        return
    _inside(frame, behind, length, protocol, (source, destination), parts)
    if fragment & 0x2000:
        parts.append(", more fragments")


def _ipv6(frame: bytes, at: int, parts: Parts) -> None:
    first, length, protocol = _IPV6.unpack_from(frame, at)
    source, destination = _ipv6_text(frame[at + 8 : at + 24]), _ipv6_text(frame[at + 24 : at + 40])
    parts.append("IP6 ")
    if first >> 28 != 6:
        parts.append(f"{source} > {destination}: bad header")
        return
    behind = at + 40
    for _ in range(EXTENSIONS_MAX):
        if protocol == FRAGMENT:
            protocol, _, fragment, _ = _FRAGMENT.unpack_from(frame, behind)
            behind, length = behind + 8, length - 8
            if fragment & 0xFFF8:
                parts.append(
                    f"{source} > {destination}: {_protocol(protocol)}, fragment at {fragment & 0xFFF8}, length {length}"
                )
                return
        elif protocol in EXTENSIONS:
            size = frame[behind + 1] * 8 + 8
            protocol, behind, length = frame[behind], behind + size, length - size
        else:
            break
    _inside(frame, behind, max(0, length), protocol, (source, destination), parts)


def _inside(frame: bytes, at: int, length: int, protocol: int, ends: tuple[str, str], parts: Parts) -> None:
    """Tell what an IP packet carries: ``length`` bytes from ``at``, of which some may be cut off."""
    source, destination = ends
    if protocol in (TCP, UDP, SCTP):
        parts.append(f"{source} > {destination}: {_protocol(protocol)} ")
        ports = _HH.unpack_from(frame, at)
        parts[-1] = f"{source}.{ports[0]} > {destination}.{ports[1]}: "
        if protocol == TCP:
            _tcp(frame, at, length, parts)
        elif protocol == UDP:
            _udp(frame, at, length, ports, parts)
        else:
            parts.append(f"sctp, length {length}")
        return
    parts.append(f"{source} > {destination}: ")
    tell = _TELLS.get(protocol)
    if tell is not None:
        tell(frame, at, length, parts)
    else:
        parts.append(f"{_protocol(protocol)}, length {length}")


def _protocol(number: int) -> str:
    return {TCP: "tcp", UDP: "udp", SCTP: "sctp", ICMP: "ICMP", ICMP6: "ICMP6"}.get(number) or NAMES.get(
        number, f"ip-proto-{number}"
    )


def _tcp(frame: bytes, at: int, length: int, parts: Parts) -> None:
    _, _, seq, ack, offset, flags, window, _, urgent = _TCP.unpack_from(frame, at)
    head = (offset >> 4) * 4
    if not 20 <= head <= length:
        parts.append(f"Flags [{_FLAGS[flags]}], bad header")
        return
    payload = length - head
    said = f"Flags [{_FLAGS[flags]}]"
    if payload:
        said += f", seq {seq}:{(seq + payload) & 0xFFFFFFFF}"
    elif flags & 7:
        said += f", seq {seq}"
    if flags & 16:
        said += f", ack {ack}"
    urge = f", urg {urgent}" if flags & 32 else ""
    parts.append(f"{said}, win {window}{urge}, length {payload}")


def _udp(frame: bytes, at: int, length: int, ports: tuple[int, int], parts: Parts) -> None:
    payload = max(0, length - 8)
    if not DNS_PORTS.isdisjoint(ports):
        _dns(frame[at + 8 : at + 8 + payload], payload, parts)
    elif not DHCP_PORTS.isdisjoint(ports):
        _dhcp(frame[at + 8 : at + 8 + payload], payload, parts)
    else:
        parts.append(f"UDP, length {payload}")


# control messages


def _icmp(frame: bytes, at: int, length: int, parts: Parts) -> None:
    parts.append("ICMP ")
    kind, code, _, first, second = _ICMP.unpack_from(frame, at)
    if kind in (0, 8):
        text = f"echo {'request' if kind else 'reply'}, id {first}, seq {second}"
    elif kind == 3:
        text = _unreachable(frame, at + 8, code)
        text += f" (mtu {second})" if code == 4 and second else ""
    elif kind == 5:
        text = f"redirect to {_ipv4_text(frame[at + 4 : at + 8])}"
    elif kind == 11:
        text = "time exceeded in-transit" if code == 0 else "ip reassembly time exceeded"
    else:
        text = f"type-{kind}, code {code}"
    parts.append(f"{text}, length {length}")


def _unreachable(frame: bytes, at: int, code: int) -> str:
    """Return what could not be reached, by the packet that is quoted. Source: RFC 792."""
    whom = _ipv4_text(frame[at + 16 : at + 20])
    if code == 3 and len(frame) >= at + 24:
        (port,) = _H.unpack_from(frame, at + (frame[at] & 15) * 4 + 2)
        return f"{whom} {_protocol(frame[at + 9])} port {port} unreachable"
    words = {
        0: "net {} unreachable", 1: "host {} unreachable", 2: "{} protocol unreachable", 3: "{} port unreachable",
        4: "{} unreachable - need to frag", 9: "net {} unreachable - admin prohibited",
        10: "host {} unreachable - admin prohibited", 13: "host {} unreachable - admin prohibited filter",
    }  # fmt: skip
    return words.get(code, f"{{}} unreachable - code {code}").format(whom)


def _icmp6(frame: bytes, at: int, length: int, parts: Parts) -> None:
    parts.append("ICMP6, ")
    kind, code, _, first, second = _ICMP.unpack_from(frame, at)
    if kind in (128, 129):
        text = f"echo {'request' if kind == 128 else 'reply'}, id {first}, seq {second}"
    elif kind in (135, 136):
        words = "neighbor solicitation, who has" if kind == 135 else "neighbor advertisement, tgt is"
        text = f"{words} {_ipv6_text(frame[at + 8 : at + 24])}"
    elif kind == 2:
        text = f"packet too big, mtu {first << 16 | second}"
    else:
        text = _ICMP6_WORDS.get(kind, f"type-{kind}, code {code}")
    parts.append(f"{text}, length {length}")


_ICMP6_WORDS = {
    1: "destination unreachable", 3: "time exceeded", 4: "parameter problem", 130: "multicast listener query",
    131: "multicast listener report", 132: "multicast listener done", 133: "router solicitation",
    134: "router advertisement", 137: "redirect", 143: "multicast listener report v2",
}  # fmt: skip


def _arp(frame: bytes, at: int, original: int, parts: Parts) -> None:
    parts.append("ARP, ")
    hardware, protocol, hardware_bytes, address_bytes, operation = _ARP.unpack_from(frame, at)
    length = original - at
    if (hardware, protocol, hardware_bytes, address_bytes) != (1, IPV4, 6, 4):
        parts.append(f"hardware {hardware}, protocol 0x{protocol:04x}, operation {operation}, length {length}")
        return
    sender, its = _mac(frame[at + 8 : at + 14]), _ipv4_text(frame[at + 14 : at + 18])
    sought = _ipv4_text(frame[at + 24 : at + 28])
    if operation == 1:
        parts.append(f"Request who-has {sought} tell {its}, length {length}")
    elif operation == 2:
        parts.append(f"Reply {its} is-at {sender}, length {length}")
    else:
        parts.append(f"operation {operation} from {its} ({sender}), length {length}")


# names and addresses that are asked for


def _dns(message: bytes, length: int, parts: Parts) -> None:
    """Tell questions and the first answers. Source: RFC 1035 4."""
    parts.append("DNS ")
    number, flags, questions, *counts = _DNS.unpack_from(message)
    is_answer = bool(flags & 0x8000)
    mark = ("+" if flags & 0x0100 else "") if not is_answer else "*" if flags & 0x0400 else ""
    code = flags & 15
    error = f" {_DNS_CODES.get(code, f'code {code}')}" if is_answer and code else ""
    parts[-1] = f"{number}{mark}{error}"
    at = 12
    for _ in range(min(questions, ANSWERS_MAX)):
        name, at = _name(message, at)
        kind, _ = _HH.unpack_from(message, at)
        parts.append(f" {_dns_type(kind)}? {name}")
        at += 4
    if is_answer:
        parts.append(f" {counts[0]}/{counts[1]}/{counts[2]}")
        for place in range(min(counts[0], ANSWERS_MAX)):
            text, at = _record(message, at)
            parts.append(f"{',' if place else ''} {text}")
    parts.append(f" ({length})")


def _record(message: bytes, at: int) -> tuple[str, int]:
    """Return an answer's type and content, and where it ends."""
    _, at = _name(message, at)
    kind, _, _, length = _RECORD.unpack_from(message, at)
    at += 10
    content = message[at : at + length]
    if kind == 1 and len(content) == 4:
        text = _ipv4_text(content)
    elif kind == 28 and len(content) == 16:
        text = _ipv6_text(content)
    elif kind in (2, 5, 12):
        text = _name(message, at)[0]
    else:
        text = f"[{length}]"
    return f"{_dns_type(kind)} {text}", at + length


def _name(message: bytes, at: int) -> tuple[str, int]:
    """Return a name with a dot at its end, and where it ends. Source: RFC 1035 4.1.4."""
    labels: list[str] = []
    end = 0
    for _ in range(LABELS_MAX):
        size = message[at]
        if size >= 0xC0:
            end = end or at + 2
            at = (size & 0x3F) << 8 | message[at + 1]
        elif size:
            labels.append(_text(message[at + 1 : at + 1 + size]))
            at += size + 1
        else:
            end = end or at + 1
            return f"{'.'.join(labels)}.", end
    return f"{'.'.join(labels[:4])}.<loop>", end or at


def _dns_type(number: int) -> str:
    return _DNS_TYPES.get(number, f"Type{number}")


_DNS_TYPES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 35: "NAPTR",
    43: "DS", 46: "RRSIG", 48: "DNSKEY", 64: "SVCB", 65: "HTTPS", 255: "ANY",
}  # fmt: skip
_DNS_CODES = {1: "FormErr", 2: "ServFail", 3: "NXDomain", 4: "NotImp", 5: "Refused"}


def _dhcp(message: bytes, length: int, parts: Parts) -> None:
    """Tell the kind of message, whom it is for, and the address. Source: RFC 2131 2, RFC 2132 9.6."""
    parts.append("DHCP ")
    operation = message[0]
    parts.append("Request" if operation == 1 else "Reply" if operation == 2 else f"operation {operation}")
    yours, client = _ipv4_text(message[16:20]), _mac(message[28:34])
    options = _dhcp_options(message)
    kind = options.get(53, b"")
    word = _DHCP_KINDS.get(kind[0], f"type {kind[0]}") if kind else "BOOTP"
    name = f" ({_text(options[12])})" if options.get(12) else ""
    given = f", gives {yours}" if yours != "0.0.0.0" else ""  # noqa: S104  # the address that says none
    wanted = f", asks for {_ipv4_text(options[50])}" if len(options.get(50, b"")) == 4 else ""
    parts.append(f", {word}, {'to' if operation == 2 else 'from'} {client}{name}{given}{wanted}, length {length}")


def _dhcp_options(message: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 240
    while message[236:240] == b"\x63\x82\x53\x63" and at + 1 < len(message) and message[at] != 255:
        if message[at] == 0:
            at += 1
            continue
        size = message[at + 1]
        found.setdefault(message[at], message[at + 2 : at + 2 + size])
        at += 2 + size
    return found


_DHCP_KINDS = {
    1: "Discover", 2: "Offer", 3: "Request", 4: "Decline", 5: "ACK", 6: "NACK", 7: "Release", 8: "Inform",
}  # fmt: skip


# texts


@functools.lru_cache(maxsize=8192)
def _ipv4_text(packed: bytes) -> str:
    first, second, third, fourth = _BBBB.unpack(packed)
    return f"{first}.{second}.{third}.{fourth}"


@functools.lru_cache(maxsize=8192)
def _ipv6_text(packed: bytes) -> str:
    if len(packed) != 16:
        raise struct.error
    return socket.inet_ntop(socket.AF_INET6, packed)


def _mac(packed: bytes) -> str:
    if len(packed) != 6:
        raise struct.error
    return packed.hex(":")


def _text(content: bytes) -> str:
    """Return bytes as printable ASCII; others as in zone files (RFC 1035 5.1)."""
    text = content.decode("latin-1")
    if text.isascii() and text.isprintable() and " " not in text and "\\" not in text:
        return text
    return "".join(chr(byte) if 32 < byte < 127 and byte != 92 else f"\\{byte:03d}" for byte in content)


def _flags(bits: int) -> str:
    """Return TCP flags as tcpdump writes them."""
    return "".join(word for place, word in enumerate("FSRP.UEW") if bits >> place & 1) or "none"


_FLAGS = tuple(_flags(bits) for bits in range(256))
_H, _HH = struct.Struct(">H"), struct.Struct(">HH")
_BBBB = struct.Struct(">BBBB")
_IPV4 = struct.Struct(">BBHHHBBH8x")
_IPV6 = struct.Struct(">IHB33x")
_FRAGMENT = struct.Struct(">BBHI")
_TCP = struct.Struct(">HHIIBBHHH")
_ICMP = struct.Struct(">BBHHH")
_ARP = struct.Struct(">HHBBH20x")
_DNS = struct.Struct(">HHHHHH")
_RECORD = struct.Struct(">HHIH")
_TELLS: dict[int, Callable[[bytes, int, int, Parts], None]] = {ICMP: _icmp, ICMP6: _icmp6}
