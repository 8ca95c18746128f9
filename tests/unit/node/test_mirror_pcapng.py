"""Captures: what is written is read again, other tools read it too, and no bytes break the reader."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pileus.node.mirror import pcapng
from pileus.node.mirror.pcapng import INBOUND, OUTBOUND, Damaged, Interface, Packet, Reader, Statistics

AT_NS = 1_793_000_000_123_456_789
STATISTICS = Statistics(AT_NS + 5, AT_NS, received=7, lost=3, missed=5, delivered=2, comment="2 of 10 packets")
FRAMES = [
    bytes.fromhex("525400000001525400000002080045000030000000004011f96a0a0000010a000002") + b"\x00\x35" * 2 + bytes(n)
    for n in range(24, 33)
]


def capture() -> bytes:
    packets = [
        pcapng.packet(AT_NS + number, frame, 1500 if number == 0 else 0, OUTBOUND if number % 2 else INBOUND)
        for number, frame in enumerate(FRAMES)
    ]
    head = pcapng.section("pileus test") + pcapng.interface("web", "session 1", 64)
    return head + b"".join(packets) + pcapng.statistics(STATISTICS)


def expected() -> list[pcapng.Block]:
    found: list[pcapng.Block] = [Interface("web", "session 1", 64)]
    for number, frame in enumerate(FRAMES):
        original = 1500 if number == 0 else len(frame)
        found.append(Packet(AT_NS + number, frame, original, OUTBOUND if number % 2 else INBOUND))
    return [*found, STATISTICS]


def test_what_is_written_is_read_in_pieces_of_any_length() -> None:
    data = capture()
    for step in (1, 3, 7, 64, len(data)):
        reader = Reader()
        found = [block for at in range(0, len(data), step) for block in reader.feed(data[at : at + step])]
        reader.finish()
        assert found == expected()


def test_a_capture_that_is_cut_anywhere_gives_what_was_whole_and_says_that_it_was_cut() -> None:
    data, whole = capture(), set()
    for end in range(len(data)):
        reader = Reader()
        found = reader.feed(data[:end])
        assert found == expected()[: len(found)]
        try:
            reader.finish()
            whole.add(end)
        except Damaged:
            pass
    assert len(whole) == len(expected())  # after the section, and after each block but the last


def test_any_bytes_are_read_or_refused_and_nothing_else() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance, data = random.Random(seed), capture()
    refused = 0
    for _ in range(3000):
        bad = bytearray(data[: chance.randrange(28, len(data))])
        for _ in range(chance.randrange(1, 4)):
            bad[chance.randrange(len(bad))] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        reader = Reader()
        try:
            for at in range(0, len(bad), 100):
                reader.feed(bytes(bad[at : at + 100]))
        except Damaged:
            refused += 1
    assert refused > 100
    for length in range(100):
        reader = Reader()
        try:
            reader.feed(chance.randbytes(length))
        except Damaged:
            continue
        assert length < 12


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"\xd4\xc3\xb2\xa1" + bytes(20), "does not begin"),
        (b"\x0a\x0d\x0d\x0a" + bytes(24), "no byte order"),
        (pcapng.section("") + struct.pack("<II", 6, 1 << 30) + bytes(8), "1073741824 bytes"),
        (pcapng.section("") + pcapng.packet(0, b"x" * 60, 60, 0), "interface 0"),
        (pcapng.section("") + struct.pack("<III", 7, 13, 0), "13 bytes"),
        (pcapng.section("") + struct.pack("<III", 7, 12, 16), "two lengths"),
        (pcapng.section("") + struct.pack("<IIII", 1, 16, 1, 16), "too short"),
    ],
)
def test_the_refusal_says_what_is_wrong(bad: bytes, words: str) -> None:
    with pytest.raises(Damaged, match=words):
        Reader().feed(bad)


def test_other_byte_orders_units_and_unknown_blocks_are_read() -> None:
    def block(kind: int, body: bytes) -> bytes:
        total = 12 + len(body)
        return struct.pack(">II", kind, total) + body + struct.pack(">I", total)

    data = block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1))
    data += block(0x0BAD, b"none")
    data += block(1, struct.pack(">HHI", 1, 0, 0))
    data += block(
        1, struct.pack(">HHI", 1, 0, 0) + struct.pack(">HHB3x", 9, 1, 0x80 | 10) + struct.pack(">HHq", 14, 8, 5)
    )
    data += block(6, struct.pack(">IIIII", 0, 0, 1_500_000, 4, 4) + b"abcd")
    data += block(6, struct.pack(">IIIII", 1, 0, 1536, 3, 9) + b"abc\0")
    packets = [each for each in Reader().feed(data) if isinstance(each, Packet)]
    assert packets == [
        Packet(1_500_000_000, b"abcd", 4),
        Packet(6_500_000_000, b"abc", 9, interface=1),
    ]


def test_other_tools_read_the_capture(tmp_path: Path) -> None:
    if shutil.which("tshark") is None or shutil.which("capinfos") is None:
        pytest.skip("needs tshark and capinfos (packages tshark, wireshark-common)")
    file = tmp_path / "capture.pcapng"
    file.write_bytes(capture())
    fields = ["frame.time_epoch", "frame.cap_len", "frame.len", "frame.packet_flags_direction", "frame.interface_name"]
    argv = ["tshark", "-n", "-r", str(file), "-T", "fields", *(word for name in fields for word in ("-e", name))]
    shown = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    packets = [each for each in expected() if isinstance(each, Packet)]
    assert len(shown) == len(packets)
    for line, packet in zip(shown, packets, strict=True):
        time, cut, length, direction, name = line.split("\t")
        assert time == f"{packet.at_ns // 10**9}.{packet.at_ns % 10**9:09}"
        assert (int(cut), int(length), name) == (len(packet.data), packet.original, "web")
        assert int(direction, 0) == packet.direction
    told = subprocess.run(["capinfos", str(file)], check=True, capture_output=True, text=True, timeout=60).stdout
    assert "nanoseconds" in told
    assert "Number of stat entries = 1" in told
