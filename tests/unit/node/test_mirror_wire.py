"""The tunnel header: known bytes, what is read of it, and a refusal with a reason for everything else, whatever bytes come."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.node.mirror import wire
from pileus.node.mirror.wire import Arrived, Header, Refused

FRAME = bytes(range(60))
OWN = Header(
    source="10.9.0.1", destination="10.9.0.2", sequence=0x01020304, session=0x345, truncated=True, timestamp=0xA1B2C3D4,
    direction="egress", leg=1, key=0x2_12_3456_789A_1345,
)  # fmt: skip
PLAIN_3 = replace(OWN, leg=0, key=0, vlan=77, cos=5, granularity=0)
TYPE_2 = Header(source="192.0.2.7", destination="10.9.0.2", erspan=2, sequence=9, session=0x3FF, vlan=0xABC, cos=7)
TYPE_1 = Header(source="192.0.2.7", destination="10.9.0.2", erspan=1)
HEADERS = {"own": OWN, "III": PLAIN_3, "II": TYPE_2}
ANY = (1, 2, 3)

headers = st.one_of(
    st.builds(
        Header,
        source=st.ip_addresses(v=4).map(str), destination=st.ip_addresses(v=4).map(str), erspan=st.just(3),
        sequence=st.integers(0, 2**32 - 1), session=st.integers(0, 1023), vlan=st.integers(0, 4095), cos=st.integers(0, 7),
        truncated=st.booleans(), timestamp=st.integers(0, 2**32 - 1), granularity=st.integers(0, 3),
        direction=st.sampled_from(["ingress", "egress"]), leg=st.just(1), key=st.integers(0, wire.KEY_MAX),
    ),
    st.builds(Header, source=st.ip_addresses(v=4).map(str), erspan=st.just(2), sequence=st.integers(0, 2**32 - 1)),
)  # fmt: skip


def test_the_header_of_an_own_session_has_these_bytes() -> None:
    made = wire.encapsulate(OWN, FRAME, to_mac=b"\x02\0\0\0\0\x02", from_mac=b"\x02\0\0\0\0\x01")
    assert made[:14].hex(" ", 2) == "0200 0000 0002 0200 0000 0001 0800"
    assert made[14:34].hex(" ", 2) == "4500 006c 0000 4000 402f 264f 0a09 0001 0a09 0002"
    assert made[34:42].hex(" ", 2) == "1000 22eb 0102 0304"
    assert made[42:54].hex(" ", 2) == "2000 0745 a1b2 c3d4 0000 000b"
    assert made[54:62].hex(" ", 2) == "0612 3456 789a 1345"
    assert made[62:] == FRAME


def test_the_header_of_type_2_has_these_bytes() -> None:
    made = wire.encapsulate(TYPE_2, FRAME)
    assert made[34:50].hex(" ", 2) == "1000 88be 0000 0009 1abc e3ff 0000 0000"


def test_the_checksum_is_right() -> None:
    head = wire.encapsulate(OWN, FRAME)[14:34]
    total = sum(int.from_bytes(head[at : at + 2], "big") for at in range(0, 20, 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


@pytest.mark.parametrize("header", [*HEADERS.values(), TYPE_1], ids=[*HEADERS, "I"])
def test_what_was_written_is_read(header: Header) -> None:
    assert wire.parse(wire.encapsulate(header, FRAME), accept=ANY) == Arrived(header, FRAME)


@given(headers, st.binary(min_size=14, max_size=200), st.binary(max_size=20))
def test_every_header_comes_back_and_padding_is_left_out(header: Header, frame: bytes, padding: bytes) -> None:
    assert wire.parse(wire.encapsulate(header, frame) + padding) == Arrived(header, frame)


def test_type_1_is_taken_only_when_asked_for() -> None:
    assert wire.parse(wire.encapsulate(TYPE_1, FRAME)) == Refused("bad-gre")
    assert wire.parse(wire.encapsulate(TYPE_2, FRAME), accept=(3,)) == Refused("bad-version")


def test_a_kept_frame_is_read_by_its_other_ethertype() -> None:
    sent = wire.encapsulate(OWN, FRAME)
    kept = sent[:12] + wire.ETHERTYPE_LABEL.to_bytes(2, "big") + sent[14:]
    assert wire.parse(kept) == Refused("not-ipv4")
    assert wire.parse(kept, ethertype=wire.ETHERTYPE_LABEL) == Arrived(OWN, FRAME)


@pytest.mark.parametrize("header", [*HEADERS.values(), TYPE_1], ids=[*HEADERS, "I"])
def test_a_frame_that_lacks_its_end_is_short(header: Header) -> None:
    whole = wire.encapsulate(header, FRAME)
    assert {wire.parse(whole[:length], accept=ANY) for length in range(len(whole))} == {Refused("short")}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_mirrored_frame_has_an_ethernet_header(header: Header) -> None:
    assert wire.parse(wire.encapsulate(header, FRAME[:13])) == Refused("short")
    assert wire.parse(wire.encapsulate(header, FRAME[:14])) == Arrived(header, FRAME[:14])


CHANGES: list[tuple[str, int, bytes]] = [
    ("not-ipv4", 12, b"\x08\x06"), ("not-ipv4", 14, b"\x65"), ("options", 14, b"\x46"), ("options", 14, b"\x44"),
    ("fragment", 20, b"\x20\x00"), ("fragment", 20, b"\x00\x01"), ("not-gre", 23, b"\x11"),
    ("short", 16, b"\xff\xff"), ("short", 16, b"\x00\x23"), ("short", 16, b"\x00\x00"),
    ("bad-gre", 34, b"\x30\x00"), ("bad-gre", 34, b"\x10\x01"), ("bad-gre", 34, b"\x00\x00"), ("bad-gre", 36, b"\x08\x00"),
    ("bad-version", 42, b"\x10"), ("bad-version", 36, b"\x88\xbe"), ("wrong-leg", 54, b"\x0a"), ("wrong-leg", 54, b"\x02"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "at", "change"), CHANGES)
def test_a_wrong_field_has_its_reason(reason: str, at: int, change: bytes) -> None:
    sent = wire.encapsulate(OWN, FRAME)
    assert wire.parse(sent[:at] + change + sent[at + len(change) :]) == Refused(reason)


def test_do_not_fragment_is_no_fragment() -> None:
    sent = bytearray(wire.encapsulate(OWN, FRAME))
    sent[20] = 0
    assert wire.parse(bytes(sent)) == Arrived(OWN, FRAME)


def test_the_second_leg_is_taken_where_it_is_asked_for() -> None:
    sent = wire.encapsulate(replace(OWN, leg=2), FRAME)
    assert wire.parse(sent) == Refused("wrong-leg")
    assert wire.parse(sent, leg=wire.SECOND_LEG) == Arrived(replace(OWN, leg=2), FRAME)


@given(st.binary(max_size=120))
def test_no_bytes_raise(frame: bytes) -> None:
    found = wire.parse(frame, accept=ANY)
    assert isinstance(found, Refused)
    assert found.reason in wire.REASONS


@given(headers, st.integers(0, 75), st.binary(min_size=1, max_size=4))
def test_no_changed_header_raises(header: Header, at: int, change: bytes) -> None:
    sent = wire.encapsulate(header, FRAME)
    found = wire.parse((sent[:at] + change + sent[at + len(change) :])[: len(sent)], accept=ANY)
    if isinstance(found, Refused):
        assert found.reason in wire.REASONS
    else:
        assert len(found.frame) + found.header.overhead_bytes <= len(sent)


def test_a_label_says_the_key_and_nothing_else() -> None:
    assert wire.label(OWN.key).hex(" ", 2) == "0212 3456 789a 1345 0000 0000 88b6"
    assert wire.read_label(wire.label(OWN.key) + FRAME) == (OWN.key, FRAME)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        wire.label(1) + FRAME[:13],
        wire.label(1)[:12] + b"\x08\x00" + FRAME,
        b"\xff" + wire.label(1)[1:] + FRAME,
        wire.label(1)[:8] + b"\x01" + wire.label(1)[9:] + FRAME,
    ],
)
def test_what_is_no_label_is_not_read_as_one(frame: bytes) -> None:
    assert wire.read_label(frame) is None


def test_an_own_header_has_the_slots_low_bits_as_its_session() -> None:
    header = wire.own_header(0xABCDE << 16 | 0x0FFF, "10.9.0.1", 7)
    assert (header.session, header.leg, header.sequence, header.erspan) == (0x3FF, 1, 7, 3)
