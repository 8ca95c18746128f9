"""Packets as lines: what they say, that tcpdump says the same, and that no bytes are too bad."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest
from tests.unit.mirror.frames import MACS, packet, write_pcap

from pileus.cli.packets import line, told

SEED = int(os.environ.get("PILEUS_SEED", "0")) or random.SystemRandom().randrange(1 << 32)


def ipv4(protocol: int, payload: bytes, *, fragment: int = 0, ends: str = "10.1.0.1 10.1.0.2") -> bytes:
    source, destination = (ip_address(text).packed for text in ends.split())
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 7, fragment, 64, protocol, 0)
    return MACS + b"\x08\x00" + head + source + destination + payload


def ipv6(protocol: int, payload: bytes, *, ends: str = "2001:db8::1 2001:db8::2") -> bytes:
    source, destination = (ip_address(text).packed for text in ends.split())
    return (
        MACS
        + b"\x86\xdd"
        + struct.pack(">IHBB", 0x60000000, len(payload), protocol, 64)
        + source
        + destination
        + payload
    )


def tcp(ports: tuple[int, int], flags: int, content: bytes = b"", *, seq: int = 1000, ack: int = 7) -> bytes:
    return struct.pack(">HHIIBBHHH", *ports, seq, ack, 0x50, flags, 512, 0, 0) + content


def udp(ports: tuple[int, int], content: bytes) -> bytes:
    return struct.pack(">HHHH", *ports, 8 + len(content), 0) + content


def name(text: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in text.split(".")) + b"\0"


QUERY = struct.pack(">HHHHHH", 4660, 0x0100, 1, 0, 0, 0) + name("example.com") + struct.pack(">HH", 1, 1)
ANSWER = (
    struct.pack(">HHHHHH", 4660, 0x8180, 1, 2, 0, 0) + name("example.com") + struct.pack(">HH", 1, 1)
    + struct.pack(">HHHIH", 0xC00C, 5, 1, 60, 6) + b"\x03www\xc0\x0c"
    + struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 4) + bytes([203, 0, 113, 7])
)  # fmt: skip
NOT_THERE = struct.pack(">HHHHHH", 1, 0x8183, 1, 0, 1, 0) + name("no.example") + struct.pack(">HH", 28, 1)
HOSTILE = struct.pack(">HHHHHH", 1, 0, 1, 0, 0, 0) + b"\x07a\x1b[2J\x07\n\x04\xff\\ .\0" + struct.pack(">HH", 1, 1)
LOOP = struct.pack(">HHHHHH", 1, 0, 1, 0, 0, 0) + b"\x01a\xc0\x0c" + struct.pack(">HH", 1, 1)
DISCOVER = (
    struct.pack(">BBBBIHH", 1, 1, 6, 0, 99, 0, 0) + bytes(16) + bytes.fromhex("020000000001") + bytes(10 + 64 + 128)
    + bytes.fromhex("63825363 350101 3204 0a010005") + b"\x0c\x05we\x1bb\n\xff"
)  # fmt: skip
PORT_UNREACHABLE = struct.pack(">BBHI", 3, 3, 0, 0) + ipv4(17, udp((5000, 53), b""))[14:]
ARP_REQUEST = MACS + bytes.fromhex("0806 0001 0800 0604 0001 020000000001 0a010001 000000000000 0a010002") + bytes(18)
SOLICITATION = struct.pack(">BBHI", 135, 0, 0, 0) + ip_address("2001:db8::2").packed


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (ipv4(6, tcp((50000, 443), 0x02)), "IP 10.1.0.1.50000 > 10.1.0.2.443: Flags [S], seq 1000, win 512, length 0"),
        (ipv4(6, tcp((443, 50000), 0x18, b"hello")),
         "IP 10.1.0.1.443 > 10.1.0.2.50000: Flags [P.], seq 1000:1005, ack 7, win 512, length 5"),
        (ipv4(6, tcp((443, 50000), 0x18, b"hello", seq=0xFFFFFFFE)),
         "IP 10.1.0.1.443 > 10.1.0.2.50000: Flags [P.], seq 4294967294:3, ack 7, win 512, length 5"),
        (ipv6(6, tcp((443, 50000), 0x10)),
         "IP6 2001:db8::1.443 > 2001:db8::2.50000: Flags [.], ack 7, win 512, length 0"),
        (ipv6(0, b"\x06\0" + bytes(6) + tcp((1, 2), 0x04)),
         "IP6 2001:db8::1.1 > 2001:db8::2.2: Flags [R], seq 1000, win 512, length 0"),
        (ipv4(17, udp((5000, 6000), b"x" * 9)), "IP 10.1.0.1.5000 > 10.1.0.2.6000: UDP, length 9"),
        (ipv4(17, udp((5000, 53), QUERY)), "IP 10.1.0.1.5000 > 10.1.0.2.53: 4660+ A? example.com. (29)"),
        (ipv4(17, udp((53, 5000), ANSWER)),
         "IP 10.1.0.1.53 > 10.1.0.2.5000: 4660 A? example.com. 2/0/0 CNAME www.example.com., A 203.0.113.7 (63)"),
        (ipv4(17, udp((53, 5000), NOT_THERE)),
         "IP 10.1.0.1.53 > 10.1.0.2.5000: 1 NXDomain AAAA? no.example. 0/1/0 (28)"),
        (ipv4(17, udp((5000, 53), HOSTILE)),
         r"IP 10.1.0.1.5000 > 10.1.0.2.53: 1 A? a\027[2J\007\010.\255\092\032.. (30)"),
        (ipv4(17, udp((5000, 53), LOOP)), "IP 10.1.0.1.5000 > 10.1.0.2.53: 1 A? a.a.a.a.<loop> (20)"),
        (ipv4(17, udp((68, 67), DISCOVER), ends="0.0.0.0 255.255.255.255"),
         r"IP 0.0.0.0.68 > 255.255.255.255.67: DHCP Request, Discover, from 02:00:00:00:00:01 (we\027b\010), "
         "asks for 10.1.0.5, length 257"),
        (ipv4(1, struct.pack(">BBHHH", 8, 0, 0, 5, 1) + bytes(56)),
         "IP 10.1.0.1 > 10.1.0.2: ICMP echo request, id 5, seq 1, length 64"),
        (ipv4(1, PORT_UNREACHABLE), "IP 10.1.0.1 > 10.1.0.2: ICMP 10.1.0.2 udp port 53 unreachable, length 36"),
        (ipv6(58, SOLICITATION),
         "IP6 2001:db8::1 > 2001:db8::2: ICMP6, neighbor solicitation, who has 2001:db8::2, length 24"),
        (ARP_REQUEST, "ARP, Request who-has 10.1.0.2 tell 10.1.0.1, length 46"),
        (ipv4(17, bytes(64), fragment=100), "IP 10.1.0.1 > 10.1.0.2: udp, fragment at 800, length 64"),
        (ipv4(47, bytes(8)), "IP 10.1.0.1 > 10.1.0.2: GREv0, length 8"),
        (ipv4(200, bytes(8)), "IP 10.1.0.1 > 10.1.0.2: ip-proto-200, length 8"),
        (MACS + b"\x81\x00\x20\x05" + ARP_REQUEST[12:], "vlan 5, ARP, Request who-has 10.1.0.2 tell 10.1.0.1, length 46"),
        (MACS + b"\x88\xcc" + bytes(46), "02:00:00:00:00:01 > 02:00:00:00:00:02, ethertype 0x88cc, length 60"),
        (MACS + b"\x00\x2e" + bytes(46), "02:00:00:00:00:01 > 02:00:00:00:00:02, 802.3, length 60"),
        (b"", "[malformed]"),
        (ipv4(6, b"\0\x50"), "IP 10.1.0.1 > 10.1.0.2: tcp [malformed]"),
    ],
)  # fmt: skip
def test_a_packet_is_told_on_one_line(frame: bytes, text: str) -> None:
    assert told(frame, len(frame)) == text


def test_what_was_cut_is_told_as_far_as_it_is_there() -> None:
    frame = ipv4(6, tcp((50000, 443), 0x18, bytes(1000)))
    assert told(frame[:64], len(frame)) == (
        "IP 10.1.0.1.50000 > 10.1.0.2.443: Flags [P.], seq 1000:2000, ack 7, win 512, length 1000 [cut]"
    )
    assert told(frame[:40], len(frame)) == "IP 10.1.0.1.50000 > 10.1.0.2.443: [cut]"
    assert told(frame[:8], len(frame)) == "[cut]"


def test_the_time_is_local_and_the_side_is_the_vms(monkeypatch: pytest.MonkeyPatch) -> None:
    at_ns = 1_700_000_000_123_456_789
    assert line(at_ns, ARP_REQUEST, 60, 1)[8:23] == ".123456 In  ARP"
    assert line(at_ns, ARP_REQUEST, 60, 2)[8:23] == ".123456 Out ARP"
    assert line(2**63 * 10**9, ARP_REQUEST, 60, 7).startswith("--:--:--.000000 ?   ARP")


def corpus(dice: random.Random) -> list[bytes]:
    """Return frames of every kind that both programs tell alike."""
    frames = [
        ipv4(17, udp((5000, 6000), b"x" * 9)), ipv4(17, udp((5000, 53), QUERY)), ARP_REQUEST, ipv6(58, SOLICITATION),
        ipv4(1, struct.pack(">BBHHH", 0, 0, 0, 5, 1) + bytes(56)), ipv4(1, PORT_UNREACHABLE),
        ipv6(58, struct.pack(">BBHHH", 128, 0, 0, 5, 1) + bytes(56)),
    ]  # fmt: skip
    for _ in range(100):
        content = bytes(dice.choice((0, 0, 1, 700)))
        seq, ack = (dice.randrange(1 << 32) for _ in range(2))
        # Ports that tcpdump has no printer for.
        segment = tcp((dice.randrange(40000, 41000), 55555), dice.randrange(256) & ~0x20, content, seq=seq, ack=ack)
        frames.append(dice.choice((ipv4, ipv6))(6, segment))
        frames.append(dice.choice((ipv4, ipv6))(17, udp((40123, dice.randrange(50000, 51000)), content)))
    return frames


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed")
def test_tcpdump_says_the_same(tmp_path: Path) -> None:
    print(f"PILEUS_SEED={SEED}")
    frames = corpus(random.Random(SEED))
    file = tmp_path / "frames.pcap"
    write_pcap(file, frames)
    done = subprocess.run(
        ["tcpdump", "-nn", "-S", "-t", "-r", file], capture_output=True, text=True, timeout=20, check=True
    )
    assert [told(frame, len(frame)) for frame in frames] == done.stdout.splitlines()


def test_whatever_bytes_come_the_line_is_printable_and_nothing_is_raised() -> None:
    print(f"PILEUS_SEED={SEED}")
    dice = random.Random(SEED)
    good = [
        *corpus(dice)[:40], *(packet(dice).frame() for _ in range(40)),
        *(ipv4(17, udp((53, 53), content)) for content in (ANSWER, NOT_THERE, HOSTILE, LOOP)),
        ipv4(17, udp((68, 67), DISCOVER)), ipv6(44, b"\x11\0\0\x01\0\0\0\x05" + udp((53, 53), ANSWER)),
    ]  # fmt: skip
    for _ in range(20_000):
        frame = bytearray(dice.choice(good))
        for _ in range(dice.randrange(6)):
            frame[dice.randrange(len(frame))] = dice.randrange(256)
        if dice.random() < 0.5:
            del frame[dice.randrange(len(frame)) :]
        text = line(dice.randrange(1 << 64), bytes(frame), dice.choice((0, len(frame), 1 << 32)), dice.randrange(4))
        assert text.isascii(), frame.hex()
        assert text.isprintable(), frame.hex()
    for _ in range(5_000):
        frame = bytearray(dice.randbytes(dice.randrange(200)))
        frame[12:14] = dice.choice((b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00", b"\0\0"))
        assert line(0, bytes(frame), len(frame), 0).isprintable()
