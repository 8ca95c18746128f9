"""Frames of the backchannel: what opens a session, what keeps one, and what ends it."""

from __future__ import annotations

import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.node.wire import BODY_BYTES_MAX, MARK, PREAMBLE, Signal, Wire

KEY = bytes(range(32))


def exchange(host: Wire, node: Wire) -> list[tuple[str, Signal | bytes]]:
    """Carry replies to and fro until there are none, and return what both saw."""
    seen: list[tuple[str, Signal | bytes]] = []
    while True:
        to_node, to_host = bytes(host.take_replies()), bytes(node.take_replies())
        if not to_node and not to_host:
            return seen
        seen += [("node", one) for one in node.receive(to_node)]
        seen += [("host", one) for one in host.receive(to_host)]


def opened(key: bytes = KEY) -> tuple[Wire, Wire]:
    host, node = Wire("host", key), Wire("node", key)
    host.start()
    assert exchange(host, node) == [("host", Signal.OPENED), ("node", Signal.OPENED)]
    return host, node


def test_a_host_calls_and_both_prove_themselves() -> None:
    host, node = opened()
    assert node.receive(host.seal(b"to the node")) == [b"to the node"]
    assert host.receive(node.seal(b"to the host")) == [b"to the host"]


def test_a_node_greets_and_the_host_may_call_then() -> None:
    host, node = Wire("host", KEY), Wire("node", KEY)
    node.start()
    assert exchange(host, node) == [("host", Signal.GREETED)]
    host.start()
    assert exchange(host, node)[-1] == ("node", Signal.OPENED)


def test_a_node_with_another_machines_key_is_refused() -> None:
    host, node = Wire("host", KEY), Wire("node", secrets.token_bytes(32))
    host.start()
    assert exchange(host, node) == [("host", Signal.REFUSED)]
    assert not host.open
    assert not node.open


def test_a_host_without_the_key_is_refused_by_the_node() -> None:
    host, node = Wire("host", KEY), Wire("node", secrets.token_bytes(32))
    host.start()
    node.receive(bytes(host.take_replies()))
    proof = bytes(node.take_replies())
    thief = Wire("host", KEY)
    thief.start()
    assert thief.receive(proof) == [], "a proof about another's nonce says nothing"
    assert not node.open


@pytest.mark.parametrize("cut", [1, 4, 20, 100, 4000])
def test_half_a_frame_of_a_dead_agent_does_not_hide_the_next_ones_call(cut: int) -> None:
    host, node = opened()
    node.receive(host.seal(bytes(BODY_BYTES_MAX))[:cut])
    next_host = Wire("host", KEY)
    next_host.start()
    seen = exchange(next_host, node)
    assert ("node", Signal.LOST) in seen
    assert seen[-1] == ("node", Signal.OPENED)
    assert node.receive(next_host.seal(b"hello")) == [b"hello"]


@pytest.mark.parametrize("cut", [1, 4, 20, 100, 4000])
def test_a_node_that_boots_again_is_heard_at_once(cut: int) -> None:
    host, node = opened()
    assert host.receive(node.seal(bytes(BODY_BYTES_MAX))[:cut]) == []
    again = Wire("node", KEY)
    again.start()
    assert exchange(host, again) == [("host", Signal.LOST), ("host", Signal.GREETED)]
    host.start()
    assert exchange(host, again)[-1] == ("node", Signal.OPENED)


def test_what_a_dead_agent_left_unread_is_skipped() -> None:
    _, node = opened()
    left = b"".join(node.seal(MARK + bytes([5, 16, 0]) + secrets.token_bytes(4000)) for _ in range(50))
    next_host = Wire("host", KEY)
    next_host.start()
    node.receive(bytes(next_host.take_replies()))
    assert next_host.receive(left[77:] + bytes(node.take_replies())) == [Signal.OPENED]
    assert next_host.noise >= len(left) - 77


def test_a_replayed_frame_ends_the_session() -> None:
    host, node = opened()
    frame = host.seal(b"once")
    assert node.receive(frame) == [b"once"]
    assert node.receive(frame) == [Signal.LOST]


def test_frames_in_another_order_end_the_session() -> None:
    host, node = opened()
    first, second = host.seal(b"1"), host.seal(b"2")
    assert node.receive(second + first) == [Signal.LOST]


def test_a_reflected_frame_ends_the_session() -> None:
    host, _ = opened()
    assert host.receive(host.seal(b"to the node")) == [Signal.LOST]


def test_a_replayed_proof_opens_nothing() -> None:
    host, node = Wire("host", KEY), Wire("node", KEY)
    host.start()
    node.receive(bytes(host.take_replies()))
    proof = bytes(node.take_replies())
    assert host.receive(proof) == [Signal.OPENED]
    assert host.receive(proof) == []
    assert host.open
    host.start()
    assert host.receive(proof) == []
    assert not host.open


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=30), st.data())
def test_payloads_arrive_whole_however_the_bytes_are_cut(payloads: list[bytes], data: st.DataObject) -> None:
    host, node = opened()
    stream = b"".join(host.seal(payload) for payload in payloads)
    seen: list[Signal | bytes] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        seen += node.receive(stream[:cut])
        stream = stream[cut:]
    assert seen == payloads


@given(st.binary(max_size=2000), st.binary(max_size=20))
def test_after_any_garbage_a_session_can_be_opened(garbage: bytes, part: bytes) -> None:
    host, node = Wire("host", KEY), Wire("node", KEY)
    host.receive(garbage + MARK + part)
    node.receive(garbage + MARK + part)
    host.start()
    exchange(host, node)
    assert host.open
    assert node.open


@given(st.integers(0, len(PREAMBLE)), st.integers(0, 255))
def test_a_changed_byte_is_never_a_payload(at: int, value: int) -> None:
    host, node = opened()
    frame = bytearray(host.seal(bytes(BODY_BYTES_MAX)))
    at %= len(frame)
    unchanged = frame[at] == value
    frame[at] = value
    seen = node.receive(bytes(frame) + PREAMBLE)
    assert (bytes(BODY_BYTES_MAX) in seen) == unchanged
