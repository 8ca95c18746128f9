"""What is kept of a session: the ring, the sender's clock, and captures that say how complete they are."""

from __future__ import annotations

import random

from pileus.node.mirror import pcapng
from pileus.node.mirror.pcapng import Packet, Reader, Statistics
from pileus.node.mirror.sessions import Counts
from pileus.node.mirror.store import LATE_NS, Capture, Copy, Ring, SenderClock, Session

UNIT_NS = 100
PERIOD_NS = UNIT_NS << 32
START_NS = 1_793_000_000_000_000_000
S = 1_000_000_000


def copy(sequence: int, frame: bytes = b"x" * 60, at_ns: int = 0, truncated: bool = False) -> Copy:
    return Copy(sequence, at_ns // UNIT_NS & 0xFFFFFFFF, UNIT_NS, pcapng.INBOUND, truncated, frame)


def read_all(ring: Ring) -> tuple[bytes, int]:
    place, found = ring.start(), b""
    while piece := ring.read(place):
        found += piece
    return found, place.missed


def read(data: bytes) -> list[pcapng.Block]:
    reader = Reader()
    found = reader.feed(data)
    reader.finish()
    return found


def test_the_ring_holds_whole_packets_and_the_oldest_go() -> None:
    ring = Ring(4000)
    blocks = [bytes([number]) * 100 for number in range(200)]
    for block in blocks:
        ring.add(block)
        assert ring.size <= 4000
    data, missed = read_all(ring)
    assert data == b"".join(blocks[missed:])
    assert (missed, ring.held, ring.count) == (200 - len(data) // 100, len(data) // 100, 200)
    assert len(data) > 4000 - 1100
    ring.resize(1000)
    assert ring.size <= 1000
    assert read_all(ring)[0] == b"".join(blocks)[-ring.size :]


def test_readers_lose_only_what_went_while_they_were_slow() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(50):
        ring = Ring(chance.randrange(100, 5000))
        places = [ring.start(), ring.end(), ring.start()]
        got: list[list[int]] = [[], [], []]
        for number in range(300):
            ring.add(number.to_bytes(4, "big") * chance.randrange(1, 20))
            for reader, place in enumerate(places):
                if chance.random() < (0.9, 0.1, 0.01)[reader]:
                    before = place.number + 0
                    missed = place.missed
                    data = ring.read(place)
                    first = before + place.missed - missed
                    numbers = list(dict.fromkeys(data[at : at + 4] for at in range(0, len(data), 4)))
                    assert [int.from_bytes(each, "big") for each in numbers] == list(range(first, place.number))
                    got[reader] += range(first, place.number)
        for place, found in zip(places, got, strict=True):
            assert place.number == len(found) + place.missed
            assert found == sorted(set(found))


def test_a_reader_of_what_comes_does_not_get_what_was() -> None:
    ring = Ring(10_000)
    ring.add(b"old!")
    place = ring.end()
    assert ring.read(place) == b""
    ring.add(b"new!")
    assert (ring.read(place), ring.read(place), place.missed) == (b"new!", b"", 0)


def test_stamps_that_wrap_become_the_time_of_the_copy() -> None:
    clock, began = SenderClock(), 77 * PERIOD_NS - 3 * S
    for seconds in (0, 1, 2, 4, 100, 600, 1000, 5000):
        sent = began + seconds * S
        at = clock.at_ns(sent // UNIT_NS & 0xFFFFFFFF, UNIT_NS, START_NS + seconds * S + 1000)
        assert at == START_NS + seconds * S + 1000
    # What waited longer on its way than the first packet has the time at which it was sent.
    sent = began + 5001 * S
    late = clock.at_ns(sent // UNIT_NS & 0xFFFFFFFF, UNIT_NS, START_NS + 5001 * S + LATE_NS // 2)
    assert late == START_NS + 5001 * S + 1000


def test_no_packet_was_copied_after_it_arrived_and_clocks_that_were_set_are_compared_anew() -> None:
    clock = SenderClock()
    assert clock.at_ns(1_000_000, UNIT_NS, START_NS) == START_NS
    assert clock.at_ns(3_000_000, UNIT_NS, START_NS + 1000) == START_NS + 1000
    assert clock.at_ns(3_000_010, UNIT_NS, START_NS + 2000) == START_NS + 2000
    assert clock.at_ns(3_000_020, UNIT_NS, START_NS + 60 * S) == START_NS + 60 * S
    assert clock.at_ns(5, 0, START_NS) == START_NS


def test_a_capture_is_read_and_says_that_it_is_whole() -> None:
    session = Session("web", 1 << 20)
    for number in range(10):
        session.take(copy(number, at_ns=number * 1000), START_NS + number * 1000)
    path = Counts(received=10, highest=9)
    capture = Capture(session, path, START_NS, from_start=True)
    data = capture.head() + capture.read() + pcapng.statistics(capture.statistics(path, START_NS + S))
    blocks = read(data)
    assert [each.at_ns for each in blocks if isinstance(each, Packet)] == [START_NS + n * 1000 for n in range(10)]
    said = blocks[-1]
    assert isinstance(said, Statistics)
    assert (said.received, said.lost, said.missed, said.delivered) == (10, 0, 0, 10)
    assert said.comment == "10 of 10 packets that were sent to it; 0 lost on the way, 0 not kept"


def test_what_is_missing_is_said_by_where_it_went() -> None:
    session = Session("web", 3000)
    taken = [number for number in range(100) if number % 10]
    for number in taken[:-5]:
        session.take(copy(number), START_NS)
    session.dropped = 5  # the last ones
    path = Counts(received=90, highest=99)
    capture = Capture(session, path, START_NS, from_start=True)
    while capture.read():
        pass
    said = capture.statistics(path, START_NS)
    assert (said.received, said.lost) == (90, 10)
    assert said.delivered == session.ring.held
    assert said.missed == 90 - session.ring.held


def test_a_capture_of_what_comes_counts_what_comes() -> None:
    session = Session("web", 1 << 20)
    for number in (0, 1, 5):
        session.take(copy(number), START_NS)
    capture = Capture(session, Counts(), START_NS, from_start=False)
    for number in (6, 8):
        session.take(copy(number), START_NS)
    capture.read()
    said = capture.statistics(Counts(), START_NS)
    assert (said.received, said.lost, said.missed, said.delivered) == (2, 1, 0, 2)


def test_what_waits_in_the_queue_is_neither_lost_nor_received() -> None:
    session = Session("web", 1 << 20)
    for number in range(4):
        session.take(copy(number), START_NS)
    assert session.numbers(Counts(received=9, highest=20)) == (4, 0, 0)
    assert Session("web", 1 << 20).numbers(Counts(received=9, highest=20)) == (0, 0, 0)


def test_a_foreign_session_begins_with_the_number_that_it_has() -> None:
    session = Session("switch", 1 << 20, is_foreign=True)
    for number in (1000, 1001, 1003):
        session.take(copy(number), START_NS)
    assert session.numbers(Counts()) == (3, 1, 0)


def test_a_cut_packet_is_told_with_the_length_that_it_had() -> None:
    session = Session("web", 1 << 20)
    frame = bytes(12) + b"\x08\x00\x45\x00" + (1400).to_bytes(2, "big") + bytes(46)
    session.take(copy(0, frame, truncated=True), START_NS)
    session.take(copy(1, frame), START_NS)
    capture = Capture(session, Counts(), START_NS, from_start=True)
    packets = [each for each in read(capture.head() + capture.read()) if isinstance(each, Packet)]
    assert [(len(each.data), each.original) for each in packets] == [(64, 1414), (64, 64)]
    assert next(session.flows.changed()).bytes == [1478, 0]
