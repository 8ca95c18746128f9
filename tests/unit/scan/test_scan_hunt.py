"""What is found at the edges of windows, holes and parts, and what too many findings do."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from pileus.scan.clamd import STREAM_BYTES_MAX
from pileus.scan.disks import Span, Unreadable, both, joined
from pileus.scan.engines import Session, Sighting, Stopped, Yara
from pileus.scan.hunt import EDGE_BYTES, FINDINGS_PER_RULE_MAX, OVERLAP_BYTES, WINDOW_BYTES, Hunt, windows
from pileus.scan.partitions import parts
from pileus.scan.report import FINDINGS_MAX, Finding
from pileus.scan.rules import compile_rules

NEEDLE = b"a needle, of which there is but one"
RULE = f'rule needle {{ strings: $a = "{NEEDLE.decode()}" condition: $a }}'


class Written:
    """A disk in memory: pieces at offsets, holes between them."""

    def __init__(self, size_bytes: int, pieces: dict[int, bytes]) -> None:
        self.size_bytes = size_bytes
        self.pieces = pieces

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield where the pieces are."""
        yield from ((offset, offset + len(piece)) for offset, piece in sorted(self.pieces.items()))

    def read(self, offset: int, length: int) -> bytes:
        """Return that many bytes."""
        content = bytearray(length)
        for start, piece in self.pieces.items():
            low, high = max(start, offset), min(start + len(piece), offset + length)
            if low < high:
                content[low - offset : high - offset] = piece[low - start : high - start]
        return bytes(content)


def hunted(disk: Written, rules: str = RULE, until: float = 1e9) -> list[Finding]:
    heard: list[Finding] = []
    Hunt(Yara(compile_rules(rules)), heard.append, lambda: 0.0, until).bytes_of(disk)
    return heard


STEP = WINDOW_BYTES - OVERLAP_BYTES
EDGES = [0, 1, WINDOW_BYTES, STEP, STEP + WINDOW_BYTES, 2 * STEP]


@pytest.mark.parametrize("shift", [-len(NEEDLE), -1, 0, 1, -len(NEEDLE) + 1])
def test_what_lies_over_the_edge_of_a_window_is_found_once(shift: int) -> None:
    places = sorted({max(0, edge + shift) for edge in EDGES})
    content = bytearray(b"\x01" * (2 * WINDOW_BYTES + STEP))
    for place in places:
        content[place : place + len(NEEDLE)] = NEEDLE
    kept = [place for place in places if content[place : place + len(NEEDLE)] == NEEDLE]
    found = hunted(Written(len(content), {0: bytes(content)}))
    assert [one.offset for one in found] == kept
    assert all((one.rule, one.pattern, one.length) == ("needle", "$a", len(NEEDLE)) for one in found)


def test_holes_are_skipped_and_seen_as_zeros() -> None:
    far = 2**40
    disk = Written(2**41, {4096: b"x" * 4092 + b"MARK", far: NEEDLE})
    rules = RULE + " rule zeros { strings: $a = { 4D 41 52 4B 00 00 00 00 } condition: $a }"
    assert [(one.rule, one.offset) for one in hunted(disk, rules)] == [("zeros", 8188), ("needle", far)]
    assert sum(len(window.content) for window in windows(disk)) == 4096 + len(NEEDLE) + 2 * EDGE_BYTES


def test_a_rule_must_match_something_in_bytes_that_are_no_file() -> None:
    rules = 'rule absent { strings: $a = "nowhere" condition: not $a } rule small { condition: filesize < 900MB }'
    assert hunted(Written(4096, {0: b"x" * 4096}), rules) == []


def test_a_noisy_rule_hides_no_other() -> None:
    noisy = "\n".join(f'rule noisy{number} {{ strings: $a = "zz" condition: $a }}' for number in range(20))
    heard: list[Finding] = []
    hunt = Hunt(Yara(compile_rules(noisy + RULE)), heard.append, lambda: 0.0, 1e9)
    gap = b"\0" * 100_000
    for _ in range(FINDINGS_PER_RULE_MAX // 16 + 4):
        hunt.bytes_of(Written(4096, {0: b"zz " * 1000}))
    hunt.bytes_of(Written(200_000, {0: gap + NEEDLE}))
    assert len(heard) <= FINDINGS_MAX
    assert heard[-1].rule == "needle"
    assert hunt.left_out > 0


def test_a_scan_that_has_no_time_left_says_so() -> None:
    with pytest.raises(Stopped) as stopped:
        hunted(Written(4096, {0: NEEDLE}), until=0.0)
    assert stopped.value.reason == "TimedOut"


def test_ranges_are_joined_in_order() -> None:
    assert list(joined([(0, 5), (7, 9), (8, 20), (40, 50)], 3)) == [(0, 20), (40, 50)]
    assert list(both([(0, 5), (20, 30)], [(4, 8), (40, 41)])) == [(0, 8), (20, 30), (40, 41)]
    assert list(joined([], 3)) == []


def entry(kind: int, start: int, count: int) -> bytes:
    return struct.pack("<B3xB3xII", 0, kind, start, count)


def table(*entries: bytes) -> bytes:
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def test_partitions_of_an_mbr_are_found_with_logical_ones() -> None:
    disk = Written(
        100 * 512 * 1024,
        {
            0: table(entry(0x83, 2048, 2048), entry(0x0F, 8192, 90_000)),
            8192 * 512: table(entry(0x83, 63, 1000), entry(5, 20_000, 1)),
            28_192 * 512: table(entry(0x83, 63, 2000)),
        },
    )
    found = [(part.number, part.start // 512, part.size_bytes // 512) for part in parts(disk)]
    assert found == [(1, 2048, 2048), (5, 8255, 1000), (6, 28_255, 2000)]


def test_a_loop_of_partition_tables_has_an_end() -> None:
    loop = table(entry(0x83, 1, 5), entry(5, 0, 1))
    disk = Written(10**8, {0: table(entry(5, 100, 9)), 100 * 512: loop})
    assert [part.number for part in parts(disk)] == [5]
    lying = Written(4096, {0: table(entry(0x83, 2**32 - 1, 2**32 - 1), entry(0x83, 1, 2**32 - 1))})
    assert [(part.start, part.size_bytes) for part in parts(lying)] == [(512, 3584)]


def test_a_part_ends_where_it_ends() -> None:
    disk = Written(100, {0: bytes(range(100))})
    part = Span(disk, 10, 20)
    assert part.read(15, 10) == bytes(range(25, 30)) + bytes(5)
    assert part.read(50, 3) == bytes(3)


def test_what_cannot_be_read_is_heard_of() -> None:
    class Broken(Written):
        def read(self, offset: int, length: int) -> bytes:
            raise Unreadable("ReadFailed", "broken")

    with pytest.raises(Unreadable):
        hunted(Broken(4096, {0: NEEDLE}))


class Picky(Session):
    """A daemon that hangs up when it is shown more than it takes, as clamd does."""

    def look(self, content: bytes, left_s: float) -> list[Sighting]:
        """Return where the needle is. Raises: Stopped."""
        if len(content) > STREAM_BYTES_MAX:
            raise Stopped("TooLarge", "size limit exceeded")
        at = content.find(NEEDLE)
        return [Sighting("needle", "", at, len(NEEDLE))] if at >= 0 else []


@pytest.mark.parametrize("size_bytes", [STREAM_BYTES_MAX, STREAM_BYTES_MAX + 1, 30 * 2**20])
def test_no_file_is_larger_than_what_a_daemon_takes_at_once(size_bytes: int) -> None:
    heard: list[Finding] = []
    with socket.socket(socket.AF_UNIX) as unused:
        hunt = Hunt(Picky(unused), heard.append, lambda: 0.0, 1e9)
        content = b"\x01" * (size_bytes - len(NEEDLE)) + NEEDLE
        hunt.file(Written(size_bytes, {0: content}), "/boot/initrd.img", 1)
    assert [(one.path, one.offset) for one in heard] == [("/boot/initrd.img", size_bytes - len(NEEDLE))]
