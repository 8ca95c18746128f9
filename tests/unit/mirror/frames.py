"""Packets as facts, and the frames that carry them."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

MACS = bytes.fromhex("020000000002 020000000001")
WITH_PORTS = (6, 17, 132)


@dataclass(frozen=True)
class Packet:
    """What filters can ask for. ``protocol`` None: no IP. ``ports`` None: it has none."""

    direction: Literal["ingress", "egress"] = "ingress"
    family: int = 4
    protocol: int = 6
    source: str = "10.1.0.1"
    destination: str = "10.1.0.2"
    ports: tuple[int, int] | None = None
    arp: bool = False

    def frame(self) -> bytes:
        """Return the packet as bytes."""
        if self.arp:
            return (
                MACS + bytes.fromhex("0806 0001 0800 0604 0001 020000000001 c0a80101 000000000000 c0a80102") + bytes(18)
            )
        if not self.family:
            return MACS + b"\x88\xcc" + bytes(46)
        payload = b"" if self.ports is None else struct.pack(">HH", *self.ports)
        payload += bytes(20 - len(payload))
        if self.ports and self.protocol == 6:
            payload = payload[:12] + b"\x50\x02" + payload[14:]
        if self.ports and self.protocol == 17:
            payload = payload[:4] + struct.pack(">H", len(payload)) + payload[6:]
        source, destination = ip_address(self.source).packed, ip_address(self.destination).packed
        if self.family == 4:
            # What has no ports though its protocol has is a later fragment.
            offset = 100 if self.ports is None and self.protocol in WITH_PORTS else 0
            head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 7, offset, 64, self.protocol, 0)
            return MACS + b"\x08\x00" + head + source + destination + payload
        head = struct.pack(">IHBB", 0x60000000, len(payload), self.protocol, 64)
        return MACS + b"\x86\xdd" + head + source + destination + payload


ADDRESSES = {
    4: ("10.1.0.1", "10.1.0.2", "10.1.9.1", "203.0.113.7", "203.0.113.200"),
    6: ("2001:db8::1", "2001:db8::2", "2001:db8:0:9::1", "fd00::7"),
}
NETS = ("10.1.0.0/24", "10.0.0.0/8", "203.0.113.128/25", "0.0.0.0/0", "2001:db8::/64", "2001:db8::/32", "::/0")
PORTS = (22, 53, 80, 443, 5000)


def packet(dice: random.Random) -> Packet:
    """Return any packet, of those that differ for some filter of the same words."""
    direction: Literal["ingress", "egress"] = dice.choice(("ingress", "egress"))
    kind = dice.randrange(10)
    if kind < 2:
        return Packet(direction=direction, family=0, arp=kind == 0)
    family = dice.choice((4, 4, 6))
    protocol = dice.choice((6, 6, 17, 17, 132, 1, 58, 47))
    has_ports = protocol in WITH_PORTS and (family == 6 or dice.random() < 0.9)
    return Packet(
        direction=direction,
        family=family,
        protocol=protocol,
        source=dice.choice(ADDRESSES[family]),
        destination=dice.choice(ADDRESSES[family]),
        ports=(dice.choice((*PORTS, 5001)), dice.choice((*PORTS, 79))) if has_ports else None,
    )


def write_pcap(file: Path, frames: Iterable[bytes]) -> None:
    """Write frames as a capture file. Source: pcap-savefile(5)."""
    content = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1)
    for number, frame in enumerate(frames):
        content += struct.pack("<IIII", number, 0, len(frame), len(frame)) + frame
    file.write_bytes(content)
