"""The role decapsulator between two NICs: what comes from tunnels goes to sniffers, to each its own, and is counted."""

from __future__ import annotations

import json
import time
import uuid

from tests.contract.mirror_node.rig import MACS, SOURCE, Node, document, inner, key_of, session, texts, until

from pileus.node.mirror import SESSIONS_MAX
from pileus.node.mirror.wire import Header, own_header
from pileus.node.serve import STATUS_BYTES_MAX


def test_packets_come_out_under_their_sessions_label_and_are_counted(node: Node) -> None:
    keys = {"one": key_of(1), "two": key_of(2)}
    said = node.apply(document({id: session(key) for id, key in keys.items()}))
    assert (said["path"], said["waiting"], said["failed"]) == (node.path, [], {}), said["mode"]
    sent = []
    for number in range(20):
        for id, key in keys.items():
            frame = inner(f"{id} {number}".encode(), 60 + 60 * number)
            node.send(own_header(key, SOURCE, number, truncated=number == 3), frame)
            sent.append((key, frame))
    assert sorted(node.received(len(sent))) == sorted(sent)
    lengths = sum(60 + 60 * number for number in range(20))
    expected = {id: [f"{key:015x}", 20, lengths, 0, 19, 1, 20, 0] for id, key in keys.items()}
    assert until("the counts", lambda: node.status()["sessions"] == expected)
    assert node.status() == node.status(), "nothing is told while nothing happens"


def test_what_is_nobodys_is_dropped_and_counted_by_reason(node: Node) -> None:
    key = key_of(1)
    node.apply(document({"one": session(key)}))
    before = node.status()["refused"]
    node.send(own_header(key_of(1, 0x777), SOURCE, 0), inner(b"another key"))
    node.send(own_header(key_of(9), SOURCE, 0), inner(b"an unknown slot"))
    node.send(own_header(key, "10.98.0.9", 0), inner(b"another source"))
    node.send(own_header(key, SOURCE, 0, leg=2), inner(b"the second leg"))
    node.send_raw(bytes(12) + b"\x08\x06" + bytes(46))
    node.send(own_header(key, SOURCE, 0), inner(b"mine"))
    assert node.received(1) == [(key, inner(b"mine"))]
    expected = {"unknown-session": 3, "wrong-leg": 1, "not-ipv4": 1}

    def counted() -> bool:
        now = node.status()["refused"]
        return {reason: now.get(reason, 0) - before.get(reason, 0) for reason in expected} == expected

    until("the reasons", counted)


def test_a_new_key_is_a_new_session_and_a_removed_one_is_gone(node: Node) -> None:
    old, new = key_of(1), key_of(1, 0x222222222)
    node.apply(document({"one": session(old), "two": session(key_of(2))}))
    for number in range(5):
        node.send(own_header(old, SOURCE, number), inner(b"old"))
    node.received(5)
    said = node.apply(document({"one": session(new)}))
    assert said["sessions"] == {"one": [f"{new:015x}", 0, 0, 0, 0, 0, 0, 0]}
    node.send(own_header(old, SOURCE, 5), inner(b"late"))
    node.send(own_header(key_of(2), SOURCE, 0), inner(b"removed"))
    node.send(own_header(new, SOURCE, 0), inner(b"new"))
    assert node.received(1) == [(new, inner(b"new"))]
    # A document that says the same changes nothing, also no count.
    until("the count", lambda: node.status()["sessions"]["one"][1] == 1)
    assert node.apply(document({"one": session(new)}))["sessions"]["one"][1] == 1


def test_sessions_from_other_switches_have_no_key_but_a_source_and_an_id(node: Node) -> None:
    keys = {"ii": key_of(3), "iii": key_of(4)}
    foreign = {
        "ii": {"source": "192.0.2.1", "erspan": 77, "type": 2, "slot": 3},
        "iii": {"source": "192.0.2.1", "erspan": 77, "type": 3, "slot": 4},
    }
    sessions = {id: session(key, source="192.0.2.1") for id, key in keys.items()}
    said = node.apply(document(sessions, foreign=foreign))
    assert said["failed"] == {}
    node.send(Header(source="192.0.2.2", erspan=2, session=77, sequence=1), inner(b"another source"))
    node.send(Header(source="192.0.2.1", erspan=2, session=78, sequence=1), inner(b"another id"))
    node.send(Header(source="192.0.2.1", erspan=2, session=77, sequence=41), inner(b"two"))
    node.send(Header(source="192.0.2.1", erspan=3, session=77, sequence=51), inner(b"three"))
    assert node.received(2) == [(keys["ii"], inner(b"two")), (keys["iii"], inner(b"three"))]
    until("first and highest", lambda: [node.status()["sessions"][id][3:5] for id in keys] == [[41, 41], [51, 51]])


def test_a_session_ends_at_its_time_without_anybody_saying_so(node: Node) -> None:
    key = key_of(1)
    node.apply(document({"one": session(key)}))
    node.send(own_header(key, SOURCE, 0), inner(b"in time"))
    assert node.received(1) == [(key, inner(b"in time"))]
    ends_at = time.time() + 0.5
    node.apply(document({"one": session(key, ends_at=ends_at)}))
    refused = node.status()["refused"].get("unknown-session", 0)

    def is_over() -> bool:
        node.send(own_header(key, SOURCE, 1), inner(b"more"))
        return bool(node.status()["refused"].get("unknown-session", 0) > refused)

    until("the end", is_over)
    assert time.time() >= ends_at
    counted = node.status()["sessions"]["one"]
    node.send(own_header(key, SOURCE, 2), inner(b"more"))
    assert node.status()["sessions"]["one"] == counted
    # A later end of the same session opens it again.
    node.apply(document({"one": session(key, ends_at=time.time() + 1000)}))
    node.send(own_header(key, SOURCE, 3), inner(b"again"))
    until("the packet", lambda: node.received(1) == [(key, inner(b"again"))])


def test_nics_may_come_later_and_a_refused_document_changes_nothing(node: Node) -> None:
    key = key_of(1)
    wanted = document({"one": session(key)})
    early = {**wanted, "links": {"tunnel": wanted["links"]["tunnel"], "sniffers": {"mac": "02:50:00:00:0d:99"}}}
    said = node.apply(early)
    assert said["waiting"] == ["link sniffers: no NIC has the MAC 02:50:00:00:0d:99"]
    assert node.apply(wanted)["waiting"] == []
    bad = document({"one": session(key), "two": session(key_of(1, 0x5))})
    assert "cannot be told apart" in node.apply(bad)["refused"]
    node.send(own_header(key, SOURCE, 0), inner(b"still"))
    assert node.received(1) == [(key, inner(b"still"))]


def test_as_many_sessions_as_there_may_be(node: Node) -> None:
    sessions = {
        str(uuid.UUID(int=number)): session(key_of(number), "store" if number % 2 else "sniffers", ends_at=2e9)
        for number in range(SESSIONS_MAX)
    }
    began = time.monotonic()
    said = node.apply(document(sessions))
    print(f"{len(sessions)} sessions in {time.monotonic() - began:.2f} s")
    assert (said["failed"], len(said["sessions"])) == ({}, SESSIONS_MAX)
    for number in (0, 1, SESSIONS_MAX - 2, SESSIONS_MAX - 1):
        node.send(own_header(key_of(number), SOURCE, 0), inner(b"%d" % number))
    assert node.received(2) == [(key_of(number), inner(b"%d" % number)) for number in (0, SESSIONS_MAX - 2)]
    last = str(uuid.UUID(int=SESSIONS_MAX - 1))
    until("the kept one", lambda: node.status()["sessions"][last][1] == 1)
    packets, _ = node.capture(last)
    assert texts(packets) == [b"%d" % (SESSIONS_MAX - 1)]
    counts = [(1 << 32) - 1, 10**14, *[(1 << 32) - 1] * 5]
    said["sessions"] = {id: [counted[0], *counts] for id, counted in said["sessions"].items()}
    assert len(json.dumps(said)) <= STATUS_BYTES_MAX


def test_the_nics_say_nothing_and_the_ip_stack_answers_nobody(node: Node) -> None:
    node.apply(document({"one": session(key_of(1))}))
    own = bytes.fromhex(MACS["tunnel"].replace(":", ""))
    node.send_raw(own + b"\x02" * 6 + b"\x08\x06" + bytes.fromhex("0001080006040001") + bytes(38))
    ping = bytes.fromhex("4500001c00000000400100000a6200010a6200020800f7ff00000000")
    node.send_raw(own + b"\x02" * 6 + b"\x08\x00" + ping + bytes(18))
    # The sniffers' side is a diode.
    node.sniffer.send(bytes.fromhex(MACS["sniffers"].replace(":", "")) + b"\x02" * 6 + b"\x08\x00" + ping)
    node.send(own_header(key_of(1), SOURCE, 0), inner(b"last"))
    assert node.received(1) == [(key_of(1), inner(b"last"))]
    assert node.said_by_itself() == []


def test_a_role_that_was_killed_does_it_all_again_and_goes_on_counting(node: Node) -> None:
    keys = {"sniffed": key_of(1), "kept": key_of(2)}
    wanted = document({"sniffed": session(keys["sniffed"]), "kept": session(keys["kept"], "store")})
    node.apply(wanted)
    for number in range(5):
        for key in keys.values():
            node.send(own_header(key, SOURCE, number, truncated=number == 2), inner(b"before"))
    node.received(5)

    def counts(received: int) -> list[list[int]]:
        entries = node.status()["sessions"].values()
        return [entry[1:] for entry in entries] if all(entry[1] == received for entry in entries) else []

    assert until("the counts", lambda: counts(5)) == [[5, 500, 0, 4, 1, 5, 0]] * 2
    node.kill()
    node.start()
    said = node.apply(wanted)
    assert (said["path"], said["failed"]) == (node.path, {})
    for key in keys.values():
        node.send(own_header(key, SOURCE, 7), inner(b"after"))
    assert node.received(1) == [(keys["sniffed"], inner(b"after"))]
    assert until("the counts", lambda: counts(6)) == [[6, 600, 0, 7, 1, 6, 0]] * 2
    packets, statistics = node.capture("kept")
    assert texts(packets) == [b"after"]
    assert (statistics.received, statistics.lost, statistics.missed, statistics.delivered) == (6, 2, 5, 1)
    # With another key it is another session.
    node.kill()
    node.start()
    said = node.apply(document({"kept": session(key_of(2, 0x99), "store")}))
    assert said["sessions"]["kept"][1:] == [0] * 7
