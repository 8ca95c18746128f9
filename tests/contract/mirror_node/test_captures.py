"""Sessions that are kept in the appliance: captures and flows, exact, whoever reads how slowly."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.contract.mirror_node.rig import (
    LIMIT_S,
    SOURCE,
    Node,
    document,
    inner,
    key_of,
    read_all,
    read_capture,
    session,
    texts,
    until,
    waiting_bytes,
)  # fmt: skip

from pileus.node.mirror import TOO_MANY_OF_SESSION, captures
from pileus.node.mirror.captures import SESSION_READERS_MAX
from pileus.node.mirror.pcapng import INBOUND, OUTBOUND, Block, Packet, Reader, Statistics
from pileus.node.mirror.sessions import Counts
from pileus.node.mirror.store import Copy, Session
from pileus.node.mirror.wire import Header

KEY = key_of(5)


def header(sequence: int, key: int = KEY, **more: Any) -> Header:
    stamp = time.monotonic_ns() // 100 & 0xFFFFFFFF
    return Header(
        source=SOURCE, key=key, leg=1, session=key & 0x3FF, sequence=sequence, timestamp=stamp, **more
    )  # fmt: skip


def kept(node: Node, id: str, count: int) -> None:
    """Wait until the session has so many packets."""
    until(f"{count} packets", lambda: node.status()["sessions"][id][1] == count)


def there_is_room(node: Node, sent: int) -> None:
    """Wait until what was sent has been taken, so that no queue overflows."""
    until("room", lambda: node.status()["sessions"]["one"][1] >= sent - 100)


def test_a_capture_has_every_packet_and_says_so(node: Node) -> None:
    node.apply(document({"one": session(KEY, "store"), "other": session(key_of(6), "store")}))
    began = time.time_ns()
    sent = [inner(f"number {number}".encode(), 80 + number) for number in range(50)]
    for number, frame in enumerate(sent):
        node.send(header(number, direction="egress" if number % 2 else "ingress"), frame)
        node.send(header(number, key_of(6)), inner(b"somebody else's"))
    kept(node, "one", 50)
    packets, said = node.capture("one")
    assert [packet.data for packet in packets] == sent
    assert [packet.direction for packet in packets] == [OUTBOUND if n % 2 else INBOUND for n in range(50)]
    times = [packet.at_ns for packet in packets]
    assert times == sorted(times)
    assert began <= times[0] <= times[-1] <= time.time_ns()
    assert (said.received, said.lost, said.missed, said.delivered) == (50, 0, 0, 50)
    assert node.status()["sessions"]["one"][6:] == [50, 0]


def test_what_was_lost_on_the_way_is_counted_by_sequence(node: Node) -> None:
    node.apply(document({"one": session(KEY, "store")}))
    for number in (3, 4, 9, 8):
        node.send(header(number), inner(b"x"))
    kept(node, "one", 4)
    packets, said = node.capture("one")
    assert (len(packets), said.received, said.lost) == (4, 4, 6)
    assert said.comment == "4 of 10 packets that were sent to it; 6 lost on the way, 0 not kept"


def test_a_cut_packet_says_how_long_it_was(node: Node) -> None:
    node.apply(document({"one": session(KEY, "store")}))
    node.send(header(0, truncated=True), inner(b"long", 1400)[:96])
    kept(node, "one", 1)
    ((packet,), _) = node.capture("one")
    assert (len(packet.data), packet.original) == (96, 1400)


def test_a_reader_that_follows_gets_each_packet_at_once_and_an_end_with_the_session(node: Node) -> None:
    node.apply(document({"one": session(KEY, "store")}))
    node.send(header(0), inner(b"before"))
    kept(node, "one", 1)
    with node.connect(session="one", want="packets", **{"from": "now"}, follow=True) as now:
        # "now" is when the reader's line was read, which the first bytes of its answer tell.
        assert now.recv(1, socket.MSG_PEEK)
        with node.connect(session="one", want="packets", follow=True) as start:
            reader = Reader()
            found: list[Block] = []
            for number in range(1, 6):
                node.send(header(number), inner(b"live %d" % number))
                while not any(isinstance(each, Packet) and each.data.find(b"live %d" % number) > 0 for each in found):
                    found += reader.feed(start.recv(1 << 16))
            assert texts([each for each in found if isinstance(each, Packet)])[0] == b"before"
            # Its sending ends, its reading goes on.
            start.shutdown(socket.SHUT_WR)
            node.send(header(6), inner(b"last"))
            kept(node, "one", 7)
            node.apply(document())
            found += reader.feed(read_all(start))
            reader.finish()
        end = found[-1]
        assert isinstance(end, Statistics)
        assert (end.received, end.delivered, end.missed, end.lost) == (7, 7, 0, 0)
        blocks = read_capture(now)
    packets = [each for each in blocks if isinstance(each, Packet)]
    assert texts(packets) == [*(b"live %d" % number for number in range(1, 6)), b"last"]
    last = blocks[-1]
    assert isinstance(last, Statistics)
    assert (last.received, last.delivered, last.lost) == (6, 6, 0)


def test_a_new_key_never_shows_old_packets(node: Node) -> None:
    node.apply(document({"one": session(KEY, "store")}))
    new = key_of(5, 0x1234567)
    for number in range(30):
        node.send(header(number), inner(b"old"))
    node.apply(document({"one": session(new, "store")}))
    for number in range(30):
        node.send(header(30 + number), inner(b"old"))
        node.send(header(number, new), inner(b"new"))
    kept(node, "one", 30)
    packets, said = node.capture("one")
    assert set(texts(packets)) == {b"new"}
    assert (said.received, said.lost, said.delivered) == (30, 0, 30)


def test_a_slow_reader_loses_its_own_packets_only_and_knows_how_many(node: Node) -> None:
    node.apply(document({"one": session(KEY, "store")}))
    total = 4000  # of 1,400 bytes: several times what the ring and the connection hold
    slow = node.connect(session="one", follow=True)
    fast: list[Any] = []
    reading = node.connect(session="one", follow=True)
    thread = threading.Thread(target=lambda: fast.extend(read_capture(reading)))
    thread.start()
    for number in range(total):
        if number % 50 == 0:
            there_is_room(node, number)
        node.send(header(number), inner(b"%d" % number, 1400))
    kept(node, "one", total)
    until("the slow reader's pipe is full", lambda: waiting_bytes(slow) > 0)
    node.apply(document())
    thread.join()
    reading.close()
    numbers = [int(text) for text in texts([each for each in fast if isinstance(each, Packet)])]
    end = fast[-1]
    assert (end.received, end.lost, end.missed + end.delivered) == (total, 0, total)
    assert len(numbers) == end.delivered
    with slow:
        blocks = read_capture(slow)
    late = [int(text) for text in texts([each for each in blocks if isinstance(each, Packet)])]
    said = blocks[-1]
    assert isinstance(said, Statistics)
    assert said.missed > 0
    assert (len(late), said.received, said.lost) == (said.delivered, total, 0)
    assert late == sorted(set(late))
    assert late[-1] == total - 1
    assert len(numbers) > len(late)


def test_the_oldest_packets_go_when_the_store_is_full(node: Node) -> None:
    node.apply(document({"one": session(KEY, "store")}))
    total = 1500
    for number in range(total):
        if number % 50 == 0:
            there_is_room(node, number)
        node.send(header(number), inner(b"%d" % number, 1400))
    kept(node, "one", total)
    packets, said = node.capture("one")
    numbers = [int(text) for text in texts(packets)]
    assert numbers == list(range(total - len(numbers), total))
    assert (said.received, said.lost, said.missed, said.delivered) == (total, 0, total - len(numbers), len(numbers))
    assert 600 < len(numbers) < 750


def test_the_flows_agree_with_the_packets(node: Node) -> None:
    node.apply(document({"one": session(KEY, "store")}))
    for number in range(10):
        node.send(header(number), inner(b"ask", 100))
    node.send(header(10), bytes(12) + b"\x08\x06" + bytes(46))
    kept(node, "one", 11)
    *flows, end = node.flows("one")
    assert [(flow["protocol"], flow["packets"], flow["bytes"]) for flow in flows] == [
        ("arp", [1, 0], [60, 0]),
        ("udp", [10, 0], [1000, 0]),
    ]
    assert (flows[1]["a"], flows[1]["a_port"], flows[1]["b"], flows[1]["b_port"]) == ("10.0.0.1", 4000, "10.0.0.2", 53)
    gone = {"flows": 0, "packets": 0, "bytes": 0}
    assert end == {"flows": 2, "gone": gone, "received": 11, "lost": 0, "dropped": 0, "over": False}


def test_other_tools_read_the_capture_and_agree_with_the_flows(one_node: Node, tmp_path: Path) -> None:
    if shutil.which("tshark") is None or shutil.which("capinfos") is None:
        pytest.skip("needs tshark and capinfos (packages tshark, wireshark-common)")
    one_node.apply(document({"shown": session(key_of(9), "store")}))
    for number in range(40):
        cut = number % 4 == 0
        one_node.send(header(number, key_of(9), truncated=cut), inner(b"x", 100 + number)[: 90 if cut else None])
    kept(one_node, "shown", 40)
    file = tmp_path / "capture.pcapng"
    with one_node.connect(session="shown") as reading:
        file.write_bytes(read_all(reading))
    fields = [
        "-T",
        "fields",
        "-e",
        "frame.len",
        "-e",
        "ip.src",
        "-e",
        "udp.srcport",
        "-e",
        "ip.dst",
        "-e",
        "udp.dstport",
    ]
    argv = ["tshark", "-n", "-r", str(file), *fields]
    lines = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    (flow, _) = one_node.flows("shown")
    assert {tuple(line.split("\t")[1:]) for line in lines} == {("10.0.0.1", "4000", "10.0.0.2", "53")}
    assert (flow["packets"], flow["bytes"]) == ([len(lines), 0], [sum(int(line.split("\t")[0]) for line in lines), 0])
    assert (flow["a"], flow["a_port"], flow["b"], flow["b_port"]) == ("10.0.0.1", 4000, "10.0.0.2", 53)


def test_flows_are_followed(node: Node) -> None:
    node.apply(document({"one": session(KEY, "store")}))
    with node.connect(session="one", want="flows", follow=True) as reading:
        lines = reading.makefile("rb")
        assert json.loads(lines.readline())["flows"] == 0
        node.send(header(0), inner(b"x"))
        assert json.loads(lines.readline())["packets"] == [1, 0]
        assert json.loads(lines.readline())["flows"] == 1
        node.send(header(1), inner(b"x"))
        assert json.loads(lines.readline())["packets"] == [2, 0]
        node.apply(document())
        rest = [json.loads(line) for line in lines]
    assert rest[-1]["over"] is True


def test_a_session_whose_time_is_over_can_still_be_read(node: Node) -> None:
    node.apply(document({"one": session(KEY, "store")}))
    node.send(header(0), inner(b"in time"))
    kept(node, "one", 1)
    with node.connect(session="one", follow=True) as reading:
        node.apply(document({"one": session(KEY, "store", ends_at=time.time() + 0.3)}))
        blocks = read_capture(reading)
    assert texts([each for each in blocks if isinstance(each, Packet)]) == [b"in time"]
    node.send(header(1), inner(b"late"))
    packets, said = node.capture("one")
    assert (texts(packets), said.received) == ([b"in time"], 1)
    node.apply(document())
    with node.connect(session="one") as reading:
        assert json.loads(read_all(reading)) == {"error": "no session with this id is kept here"}


@pytest.mark.parametrize(
    "line",
    [
        b"\n", b"{}\n", b"[]\n", b"[" * 4000 + b"\n", b"\xff\n", b"x" * 10_000, b'{"session": "one", "want": "all"}\n',
        b'{"session": "one", "from": "yesterday"}\n', b'{"session": "one", "follow": 1}\n',
        b'{"session": {"one": 1}}\n',
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(one_node: Node, line: bytes) -> None:
    one_node.apply(document({"one": session(KEY, "store")}))
    with one_node.connect_raw() as reading:
        reading.sendall(line)
        assert "error" in json.loads(read_all(reading))


def test_one_session_cannot_take_the_places_of_all_readers(one_node: Node) -> None:
    one_node.apply(document({"many": session(KEY, "store"), "other": session(key_of(6), "store")}))
    with contextlib.ExitStack() as readers:

        def one() -> socket.socket:
            made = readers.enter_context(one_node.connect(session="many", follow=True))
            made.settimeout(LIMIT_S)
            return made

        following = [one() for _ in range(SESSION_READERS_MAX)]
        assert all(reading.recv(4) for reading in following)
        refusal = json.loads(read_all(one()))
        assert refusal["code"] == TOO_MANY_OF_SESSION
        assert "error" not in one_node.flows("other")[-1]
        following[0].close()
        until("a place is free", lambda: readers.enter_context(one_node.connect(session="many")).recv(2) != b'{"')


def test_a_reader_that_takes_nothing_is_ended_and_one_that_has_all_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "STALL_S", 0.6)
    made = captures.Captures()
    kept = captures.Kept(Session("big", 32 << 20), Counts)
    for number in range(12_000):
        kept.session.take(Copy(number, 0, 100, INBOUND, False, bytes(1400)), 0)
    quiet = captures.Kept(Session("quiet", 1 << 20), Counts)
    made.call(lambda: made.kept.update(big=kept, quiet=quiet))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made.listen(port=port)
    try:
        with (
            socket.create_connection(("127.0.0.1", port)) as has_all,
            socket.create_connection(("127.0.0.1", port)) as slow,
        ):
            has_all.sendall(b'{"session": "quiet", "follow": true}\n')
            slow.sendall(b'{"session": "big", "follow": true}\n')
            until("the slow one is ended", lambda: made.call(lambda: len(made._readers)) == 1)
            made.call(lambda: quiet.session.take(Copy(0, 0, 100, INBOUND, False, b"x" * 60), 0))
            until("the other one still reads", lambda: b"x" * 60 in has_all.recv(1 << 16))
    finally:
        made.close()


def test_sessions_to_sniffers_are_not_kept(node: Node) -> None:
    node.apply(document({"one": session(KEY)}))
    with node.connect(session="one") as reading:
        assert "error" in json.loads(read_all(reading))
