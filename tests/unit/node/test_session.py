"""Messages and streams of one session: order, limits, and that no stream delays a message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.node.session import (
    MESSAGE_BYTES_MAX,
    REASON_BYTES_MAX,
    STREAMS_MAX,
    WINDOW_BYTES,
    Accepted,
    Arrived,
    Asked,
    Closed,
    Drained,
    Event,
    Finished,
    Message,
    Ponged,
    Session,
)
from pileus.node.wire import Signal

KEY = bytes(32)


def carry(source: Session, target: Session) -> list[Event]:
    """Carry all that ``source`` has to send, and return what ``target`` saw."""
    events: list[Event] = []
    while data := source.outgoing(1 << 16):
        events += target.receive(data)
    return events


def opened(message_bytes_max: int = MESSAGE_BYTES_MAX) -> tuple[Session, Session]:
    host, node = Session("host", KEY, message_bytes_max), Session("node", KEY)
    host.start()
    carry(host, node)
    assert carry(node, host) == [Signal.OPENED]
    assert carry(host, node) == [Signal.OPENED]
    return host, node


def connected(host: Session, node: Session) -> int:
    stream = host.ask(b"where")
    assert carry(host, node) == [Asked(stream, b"where")]
    node.accept(stream)
    assert carry(node, host) == [Accepted(stream)]
    return stream


@given(st.lists(st.integers(0, 30_000).map(bytes), max_size=8))
def test_messages_of_any_length_arrive_whole_and_in_order(messages: list[bytes]) -> None:
    host, node = opened()
    for message in messages:
        host.send(message)
    assert carry(host, node) == [Message(message) for message in messages]


def test_a_message_of_the_greatest_length_arrives() -> None:
    host, node = opened()
    host.send(bytes(MESSAGE_BYTES_MAX))
    assert carry(host, node) == [Message(bytes(MESSAGE_BYTES_MAX))]
    with pytest.raises(ValueError, match="too much"):
        host.send(bytes(MESSAGE_BYTES_MAX + 1))


def test_a_message_longer_than_the_receiver_takes_ends_the_session() -> None:
    host, node = opened(message_bytes_max=10_000)
    node.send(bytes(10_001))
    assert carry(node, host) == [Signal.LOST]
    assert "too long" in host.wire.reason


def test_a_message_goes_before_what_streams_have_queued() -> None:
    host, node = opened()
    stream = connected(host, node)
    host.write(stream, bytes(WINDOW_BYTES))
    first = host.outgoing(8192)
    host.send(b"the configuration")
    assert Message(b"the configuration") not in node.receive(first)
    assert node.receive(host.outgoing(1)) == [Message(b"the configuration")]


def test_streams_take_turns() -> None:
    host, node = opened()
    streams = [connected(host, node) for _ in range(3)]
    for stream in streams:
        host.write(stream, bytes(20_000))
    seen = [event.stream for event in node.receive(host.outgoing(12_000)) if isinstance(event, Arrived)]
    assert sorted(seen[:3]) == streams


def test_a_stream_sends_no_more_than_was_granted() -> None:
    host, node = opened()
    stream = connected(host, node)
    node.write(stream, bytes(WINDOW_BYTES + 1000))
    assert sum(len(event.body) for event in carry(node, host) if isinstance(event, Arrived)) == WINDOW_BYTES
    assert node.unsent(stream) == 1000
    host.grant(stream, WINDOW_BYTES // 2)
    assert carry(host, node) == [Drained(stream)]
    assert sum(len(event.body) for event in carry(node, host) if isinstance(event, Arrived)) == 1000


def test_a_stream_is_finished_and_closed_after_its_bytes() -> None:
    host, node = opened()
    stream = connected(host, node)
    node.write(stream, b"last words")
    node.finish(stream)
    assert carry(node, host) == [Arrived(stream, b"last words"), Finished(stream)]
    host.write(stream, b"answer")
    host.close(stream)
    assert carry(host, node) == [Arrived(stream, b"answer"), Closed(stream, "")]
    node.write(stream, b"nobody reads this")
    assert carry(node, host) == []


def test_a_stream_that_cannot_be_says_why() -> None:
    host, node = opened()
    stream = host.ask(b"where")
    carry(host, node)
    node.refuse(stream, "connection refused" + "!" * 2000)
    [event] = carry(node, host)
    assert isinstance(event, Closed)
    assert event.reason.startswith("connection refused")
    assert len(event.reason) == REASON_BYTES_MAX


def test_streams_are_limited() -> None:
    host, _ = opened()
    for _ in range(STREAMS_MAX):
        host.ask(b"")
    with pytest.raises(ValueError, match="at most"):
        host.ask(b"")


def hostile(node: Session, payload: bytes) -> bytes:
    """Return a frame that a node with the right key may seal, whatever is in it."""
    return node.wire.seal(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x00",
        b"\xff1234",
        b"\x05\x00",
        b"\x03\x00\x00\x00\x01please",
        b"\x05\x00\x00\x00\x01" + bytes(4000),
        b"\x06\x00\x00\x00\x01\xff\xff\xff\xff",
        b"\x06\x00\x00\x00\x01\xff",
    ],
)
def test_what_a_node_may_not_send_ends_the_session(payload: bytes) -> None:
    host, node = opened()
    connected(host, node)
    data = b"".join(hostile(node, payload) for _ in range(1 + WINDOW_BYTES // 4000))
    assert host.receive(data)[-1] == Signal.LOST
    assert not host.open
    assert host.outgoing(1000) == b""
    host.start()
    carry(host, node)
    carry(node, host)
    assert host.open


def test_frames_of_a_stream_that_is_closed_are_ignored_and_counted() -> None:
    host, node = opened()
    host.take_noise()
    assert host.receive(hostile(node, b"\x05\x00\x00\x00\x09abc")) == []
    assert host.take_noise() == 8


def test_a_ping_that_was_foreseen_is_answered_in_one_step_and_its_answer_taken_in_one() -> None:
    host, node = opened()
    for number in range(3):
        node.foresee()
        host.ping(number)
        pong = node.wire.take_foreseen(host.outgoing(100))
        assert pong
        host.foresee()
        assert host.wire.take_foreseen(pong) == b""
        assert host.ponged() == number
    host.send(b"after")
    assert carry(host, node) == [Message(b"after")]


def test_pings_among_other_frames_are_answered_too() -> None:
    host, node = opened()
    node.foresee()
    host.ping(7)
    host.send(b"before")
    host.ping(8)
    data = host.outgoing(1000)
    host.foresee()
    assert node.wire.take_foreseen(data) is None
    assert node.receive(data) == [Message(b"before")]
    assert carry(node, host) == [Ponged(7), Ponged(8)]
    assert node.open


@pytest.mark.parametrize("at", [0, 3, 5, -1])
def test_a_ping_that_is_not_the_next_frame_ends_the_session(at: int) -> None:
    host, node = opened()
    node.foresee()
    host.ping(1)
    frame = bytearray(host.outgoing(100))
    frame[at] ^= 1
    assert node.wire.take_foreseen(bytes(frame)) is None
    node.receive(bytes(frame) + bytes(5000))
    assert not node.open


def test_a_ping_again_or_in_parts_is_not_foreseen() -> None:
    host, node = opened()
    node.foresee()
    host.ping(1)
    frame = host.outgoing(100)
    assert node.receive(frame[:9]) == []
    assert node.wire.take_foreseen(frame[9:]) is None
    assert node.wire.take_foreseen(frame) is None
    assert node.receive(frame[9:]) == []
    assert carry(node, host) == [Ponged(1)]
    assert node.wire.take_foreseen(frame) is None
    node.foresee()
    assert node.wire.take_foreseen(frame) is None
    assert node.receive(frame) == [Signal.LOST]


def test_what_was_foreseen_is_void_after_any_other_frame_and_in_another_session() -> None:
    host, node = opened()
    node.foresee()
    node.send(b"a report")
    assert carry(node, host) == [Message(b"a report")]
    host.ping(1)
    ping = host.outgoing(100)
    assert node.wire.take_foreseen(ping) is None
    node.foresee()
    node.drop("no more")
    assert node.wire.take_foreseen(ping) is None
    host.start()
    carry(host, node)
    carry(node, host)
    carry(host, node)
    assert node.open
    assert node.wire.take_foreseen(ping) is None


def test_while_nothing_is_asked_nothing_is_foreseen() -> None:
    host, node = opened()
    host.foresee()
    pong = hostile(node, b"\x0a")
    assert host.wire.take_foreseen(pong) is None
    assert host.receive(pong) == [Ponged(0)]


def test_a_node_does_not_ping() -> None:
    host, node = opened()
    node.ping(1)
    frame = node.outgoing(100)
    assert host.wire.take_foreseen(frame) is None
    assert host.receive(frame) == [Signal.LOST]


def test_a_lost_session_leaves_nothing_for_the_next() -> None:
    host, node = opened()
    connected(host, node)
    host.send(bytes(100_000))
    node.receive(host.outgoing(8192))
    host.start()
    assert carry(host, node) == [Signal.LOST]
    assert carry(node, host) == [Signal.OPENED]
    assert carry(host, node) == [Signal.OPENED]
    host.send(b"new")
    assert carry(host, node) == [Message(b"new")]
