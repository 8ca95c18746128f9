"""The decapsulator's document, what it asks of memory, and the frames that are kept: parts without sockets."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from pileus.node.mirror import SESSIONS_MAX, wire
from pileus.node.mirror.flows import FLOW_BYTES
from pileus.node.mirror.model import Foreign, read
from pileus.node.mirror.noted import Noted, key_text
from pileus.node.mirror.packets import owner, read_kept
from pileus.node.mirror.pcapng import INBOUND, OUTBOUND
from pileus.node.mirror.sessions import Counts
from pileus.node.mirror.shelves import STORE_SHARE, rooms
from pileus.node.mirror.sockets import foreign_tests, key_tests
from pileus.node.mirror.store import Copy
from pileus.node.mirror.wire import Arrived, Header, encapsulate
from pileus.node.role import RoleRefused

MACS = {"tunnel": {"mac": "02:50:00:00:00:01"}, "sniffers": {"mac": "02:50:00:00:00:02"}}
SOURCE = "10.98.0.1"
KEY = 0x123456789AB << 16 >> 8 | 7


def session(slot: int = 7, **more: Any) -> dict[str, Any]:
    return {"key": f"{0x1234 << 16 | slot:015x}", "source": SOURCE, "to": "sniffers", "name": "web", **more}


def foreign(**more: Any) -> dict[str, Any]:
    return {"source": SOURCE, "erspan": 5, "type": 2, "slot": 7, **more}


def test_a_document_is_read() -> None:
    config = read({
        "links": MACS,
        "sessions": {"a": session(8, to="store", store_mib=16, ends_at=1.5), "b": session()},
        "foreign": {"b": foreign()},
    })  # fmt: skip
    kept, other = config.sessions["a"], config.sessions["b"]
    assert (kept.slot, kept.key, kept.store_bytes, kept.ends_at) == (8, 0x12340008, 16 << 20, 1.5)
    assert (other.slot, other.to, other.foreign, other.ends_at) == (7, "sniffers", Foreign(5, 2), 0.0)
    assert read({}).sessions == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sessions": {"a": session(key="12")}}, "key"),
        ({"sessions": {"a": session(key="4" + "0" * 14)}}, "key"),
        ({"sessions": {"a": session(source="tunnel")}}, "source"),
        ({"sessions": {"a": session(to="nowhere")}}, "to is"),
        ({"sessions": {"a": session(to="store")}}, "store_mib"),
        ({"sessions": {"a": session(to="store", store_mib=0)}}, "store_mib"),
        ({"sessions": {"a": session(name="a\nb")}}, "name"),
        ({"sessions": {"a": session(ends_at="soon")}}, "ends_at"),
        ({"sessions": {"a": session(ends_at=float("nan"))}}, "ends_at"),
        ({"sessions": {"a": []}}, "no object"),
        ({"sessions": {"a b": session()}}, "no id"),
        ({"sessions": {"a": session(), "b": session()}}, "told apart"),
        ({"sessions": {f"s{n}": session(n) for n in range(SESSIONS_MAX + 1)}}, "more than"),
        ({"foreign": {"a": foreign()}}, "no session"),
        ({"sessions": {"a": session()}, "foreign": {"a": foreign(slot=8)}}, "another"),
        ({"sessions": {"a": session()}, "foreign": {"a": foreign(type=1)}}, "type"),
        ({"sessions": {"a": session()}, "foreign": {"a": foreign(erspan=1024)}}, "erspan"),
        (
            {"sessions": {"a": session(), "b": session(8)}, "foreign": {"a": foreign(), "b": foreign(slot=8)}},
            "told apart",
        ),
        ({"links": {"third": {"mac": "02:50:00:00:00:01"}}}, "link 'third'"),
        ({"links": {"tunnel": {"mac": "eth0"}}}, "mac"),
        ({"rules": {}}, "section 'rules'"),
    ],
)
def test_a_document_that_cannot_be_is_refused_with_the_place(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RoleRefused) as refused:
        read({"links": MACS, **change})
    assert words in refused.value.message


def test_stores_that_ask_for_too_much_share_what_there_is() -> None:
    memory = 200 << 20
    both = rooms({"a": 10 << 20, "b": 20 << 20}, memory)
    assert [room.store_bytes >> 20 for room in both.values()] == [10, 20]
    tight = rooms({"a": 40 << 20, "b": 90 << 20}, memory)
    assert [room.store_bytes >> 20 for room in tight.values()] == [30, 30]


def test_who_asks_for_little_gets_it_whatever_others_ask_for() -> None:
    greedy = {f"g{number}": 64 << 20 for number in range(8)}
    given = rooms({"big": 500 << 20, **greedy, "small": 4 << 20, "usual": 8 << 20}, 400 << 20)
    assert (given["small"].store_bytes, given["usual"].store_bytes) == (4 << 20, 8 << 20)
    assert {given[id].store_bytes for id in ("big", *greedy)} == {12 << 20}


def test_nobody_asks_for_room() -> None:
    memory = 200 << 20
    assert rooms({}, memory) == {}


def test_many_sessions_do_not_take_more_than_the_machine_has() -> None:
    memory = 200 << 20
    for count in (1, 10, SESSIONS_MAX):
        given = rooms({f"s{number}": 64 << 20 for number in range(count)}, memory).values()
        assert sum(room.store_bytes for room in given) <= memory * STORE_SHARE
        assert sum(room.flows * FLOW_BYTES for room in given) <= memory * 0.07
        assert sum(room.queue_bytes for room in given) <= memory * 0.15


def test_counts_go_on_after_a_restart_of_the_same_session_only(tmp_path: Path) -> None:
    file = tmp_path / "run" / "counts"
    wanted = read({"sessions": {"a": session()}}).sessions["a"]
    entry = [key_text(wanted.key), 5, 500, 1, 9, 2, 4, 3]
    Noted(file).write({"a": entry})
    again = Noted(file)
    assert again.counts(wanted, Counts()) == Counts(5, 500, 1, 9, 2, 4)
    assert again.counts(wanted, Counts(1, 60, 12, 12, 1, 1)) == Counts(6, 560, 1, 12, 3, 5)
    assert again.dropped(wanted) == 3
    assert again.counts(wanted._replace(key=wanted.key + (1 << 16)), Counts()) == Counts()
    again.forget("a")
    assert again.counts(wanted, Counts()) == Counts()
    for bad in ("", "[]", "{", '{"a": [1]}'):
        file.write_text(bad)
        assert Noted(file).counts(wanted, Counts()) == Counts()


def frames() -> list[bytes]:
    """Return frames as the data path lets them through to be kept."""
    headers = [
        Header(source=SOURCE, key=KEY, leg=1, sequence=9, session=5, timestamp=77, truncated=True),
        Header(source=SOURCE, key=KEY, leg=1, sequence=1 << 31, direction="egress", granularity=0),
        Header(source=SOURCE, sequence=4, session=5, granularity=2, timestamp=1),
        Header(source=SOURCE, erspan=2, sequence=4, session=5, truncated=True),
        Header(source=SOURCE, erspan=2, sequence=0xFFFFFFFF, session=6),
    ]
    made = [
        encapsulate(header, random.Random(1).randbytes(length)) for header in headers for length in (14, 15, 60, 1500)
    ]
    return [frame[:12] + wire.ETHERTYPE_LABEL.to_bytes(2, "big") + frame[14:] for frame in made]


def copy_of(found: Arrived) -> Copy:
    header = found.header
    if header.erspan == 2:
        return Copy(header.sequence, 0, 0, 0, header.truncated, found.frame)
    unit_ns = {0: 100_000, 1: 100}.get(header.granularity, 0)
    direction = OUTBOUND if header.direction == "egress" else INBOUND
    return Copy(header.sequence, header.timestamp, unit_ns, direction, header.truncated, found.frame)


def test_kept_frames_are_read_as_the_parser_reads_them() -> None:
    for frame in frames():
        found = wire.parse(frame, ethertype=wire.ETHERTYPE_LABEL)
        assert isinstance(found, Arrived)
        assert read_kept(frame) == copy_of(found)
        header = found.header
        foreign = (bytes([10, 98, 0, 1]), header.session, header.erspan)
        assert owner(frame) == (header.key if header.leg else foreign)
    for length in range(100):
        assert (read_kept(bytes(length)) is None) == (length < 64)


def takes(tests: list[tuple[int, int, int, int]], frame: bytes) -> bool:
    """Do what the kernel does with the tests."""
    sizes = {0x20: 4, 0x28: 2, 0x30: 1}
    return all(
        len(frame) >= at + sizes[load] and int.from_bytes(frame[at : at + sizes[load]], "big") & mask == value
        for load, at, mask, value in tests
    )


def test_a_queue_takes_the_frames_of_its_session_only() -> None:
    source = bytes([10, 98, 0, 1])
    mine = [takes(key_tests(source, KEY), frame) for frame in frames()]
    assert mine == [True] * 8 + [False] * 12
    second = [takes(foreign_tests(source, 5, 2), frame) for frame in frames()]
    assert second == [False] * 12 + [True] * 4 + [False] * 4
    third = [takes(foreign_tests(source, 5, 3), frame) for frame in frames()]
    assert third == [False] * 8 + [True] * 4 + [False] * 8
    for tests in (
        key_tests(source, KEY + (1 << 16)),
        key_tests(bytes([10, 98, 0, 2]), KEY),
        foreign_tests(source, 7, 2),
    ):
        assert not any(takes(tests, frame) for frame in frames())
