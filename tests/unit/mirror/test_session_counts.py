"""Counts of a session over legs, keys and boots that end: nothing is counted twice, nothing is forgotten."""

from __future__ import annotations

from msgspec.structs import replace

from pileus.mirror.leg.types import LegAssigned
from pileus.mirror.session.plan import (
    Live,
    counted,
    followed,
    followed_legs,
    read_at_decapsulator,
    read_counts,
    released,
    settled,
)
from pileus.mirror.session.types import AtDecapsulator, SessionObserved

SOURCE = LegAssigned(host="h", role="source", session="s", key="k1")
NEXT = replace(SOURCE, key="k2")
AT = AtDecapsulator(key="k1", boot_id="b1", received=8, received_bytes=800, highest=9)


def source(sent: int, leg: LegAssigned = SOURCE) -> Live:
    """Return a source that sent so much of what it saw."""
    counts = {"seen": 2 * sent, "matched": sent, "sampled": sent, "sent": sent, "sent_bytes": 100 * sent}
    return Live(id=leg.key, leg=leg, counts=counts)


def test_what_is_missing_among_the_numbers_is_lost() -> None:
    found = counted({}, [source(12)], AT)
    assert (found.seen, found.sent, found.received, found.lost) == (24, 12, 8, 2)


def test_at_the_end_all_that_did_not_come_is_lost() -> None:
    closed = released({}, source(12), SessionObserved(state="running", at_decapsulator=AT))
    assert counted(closed, [], AT).lost == 2
    found = counted(settled(closed, AT), [], AtDecapsulator())
    assert (found.sent, found.received, found.lost) == (12, 8, 4)


def test_another_key_begins_with_number_0_and_the_counts_go_on() -> None:
    now = AtDecapsulator(key="k2", boot_id="b2", received=1, received_bytes=100, highest=0)
    at, closed = followed(AT, now, {})
    assert at == now
    assert counted(closed, [source(12), source(1, NEXT)], at).lost == 2, "the source of before is not gone yet"
    closed = released(closed, source(12), SessionObserved(state="running", at_decapsulator=at))
    found = counted(closed, [source(1, NEXT)], at)
    assert (found.sent, found.received, found.received_bytes, found.lost) == (13, 9, 900, 4)


def test_another_boot_of_the_decapsulator_counts_from_0_and_knows_no_numbers() -> None:
    at, closed = followed(AT, AtDecapsulator(key="k1", boot_id="b2"), {})
    assert (counted(closed, [source(12)], at).received, counted(closed, [source(12)], at).lost) == (8, 2)
    at, closed = followed(at, AtDecapsulator(key="k1", boot_id="b2", received=1, received_bytes=50, highest=12), closed)
    found = counted(closed, [source(13)], at)
    assert (found.received, found.received_bytes, found.lost) == (9, 850, 4)


def test_a_leg_that_was_made_anew_goes_on_from_what_it_had_counted() -> None:
    at_legs, closed = followed_legs({}, [source(12)], {})
    assert closed == {}
    at_legs, closed = followed_legs(at_legs, [source(3)], closed)
    assert counted(closed, [source(3)], AT).sent == 15
    observed = SessionObserved(state="running", at_decapsulator=AT, at_legs=at_legs)
    assert counted(released(closed, source(1), observed), [], AT).sent == 16, "again, and not looked at since"


def test_what_came_was_sent_even_if_its_host_did_not_say_so_yet() -> None:
    found = counted({}, [source(3)], AT)
    assert (found.seen, found.matched, found.sampled, found.sent, found.sent_bytes) == (10, 10, 10, 10, 800)


def test_counts_of_a_host_are_read_as_numbers_only() -> None:
    assert read_counts(None) == {}
    assert read_counts((1.0, '{"seen": 3, "sent": "many"}')) == {"seen": 3}


def test_before_a_packet_came_none_is_missing() -> None:
    """A node's numbers are 0 then, and a sequence number 0 would mean a packet."""
    nothing = read_at_decapsulator(["a" * 15, 0, 0, 0, 0, 0, 0, 0], "a" * 15, "boot")
    assert nothing is not None
    counts = counted({}, [], nothing)
    assert (counts.lost, counts.sent, counts.matched, counts.seen) == (0, 0, 0, 0)
