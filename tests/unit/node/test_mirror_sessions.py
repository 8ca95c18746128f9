"""What a decapsulator does with frames, in Python: who gets them, what is counted, and that nobody inherits anything."""

from __future__ import annotations

import pytest

from pileus.node.mirror import wire
from pileus.node.mirror.sessions import Sessions, ahead

SOURCE = "10.9.0.1"
KEY = 0xABCDEF_0005
SLOT = 5
FRAME = bytes(range(60))


def _own(number: int, key: int = KEY, source: str = SOURCE, *, truncated: bool = False) -> bytes:
    return wire.encapsulate(wire.own_header(key, source, number, truncated=truncated), FRAME)


def _foreign(number: int, source: str = SOURCE) -> bytes:
    return wire.encapsulate(wire.Header(source=source, erspan=2, session=77, sequence=number), FRAME)


@pytest.fixture
def sessions() -> Sessions:
    made = Sessions()
    made.put(SLOT, KEY, SOURCE, "sniffers")
    return made


def test_a_frame_is_given_back_behind_its_label(sessions: Sessions) -> None:
    assert sessions.take(_own(0)) == ("sniffers", wire.label(KEY) + FRAME)


def test_a_kept_frame_has_another_ethertype_and_no_padding(sessions: Sessions) -> None:
    sessions.put(SLOT, KEY, SOURCE, "store")
    sent = _own(0)
    assert sessions.take(sent + b"padding") == ("store", sent[:12] + b"\x88\xb6" + sent[14:])


def test_counts_say_what_is_lost(sessions: Sessions) -> None:
    for number in (0, 1, 4, 3):
        sessions.take(_own(number, truncated=number == 4))
    counts = sessions.counts(SLOT)
    assert counts is not None
    assert (counts.received, counts.bytes, counts.first, counts.highest) == (4, 4 * len(FRAME), 0, 4)
    assert (counts.truncated, counts.forwarded) == (1, 4)
    assert counts.highest - counts.first + 1 - counts.received == 1


@pytest.mark.parametrize("frame", [_own(0, KEY + (1 << 16)), _own(0, source="10.9.0.9"), _own(0, KEY + 1), _foreign(0)])
def test_what_is_nobodys_is_refused_and_counted(sessions: Sessions, frame: bytes) -> None:
    assert sessions.take(frame) is None
    assert sessions.refused()["unknown-session"] == 1


def test_a_foreign_session_is_known_by_source_number_and_type(sessions: Sessions) -> None:
    sessions.put_foreign(SOURCE, 77, 2, KEY)
    assert sessions.take(_foreign(3)) == ("sniffers", wire.label(KEY) + FRAME)
    sessions.put_foreign("10.9.0.9", 77, 2, KEY)
    assert sessions.take(_foreign(3, "10.9.0.9")) is None, "its session has another source"
    sessions.remove_foreign(SOURCE, 77, 2)
    assert sessions.take(_foreign(4)) is None


def test_another_key_starts_anew_and_the_same_one_goes_on(sessions: Sessions) -> None:
    sessions.take(_own(7))
    sessions.put(SLOT, KEY, SOURCE, "store")
    counts = sessions.counts(SLOT)
    assert counts is not None
    assert counts.received == 1
    sessions.put(SLOT, KEY + (1 << 16), SOURCE, "store")
    counts = sessions.counts(SLOT)
    assert counts is not None
    assert counts.received == 0
    assert sessions.take(_own(8)) is None


def test_a_removed_session_is_nobodys(sessions: Sessions) -> None:
    sessions.remove(SLOT)
    sessions.remove(SLOT)
    assert sessions.counts(SLOT) is None
    assert sessions.take(_own(0)) is None


def test_every_reason_is_counted(sessions: Sessions) -> None:
    assert sessions.take(b"") is None
    assert sessions.refused() == dict.fromkeys(wire.REASONS, 0) | {"short": 1}


@pytest.mark.parametrize(("slot", "key"), [(6, KEY), (5, 1 << 58 | 5), (0, 0), (5, -1)])
def test_a_key_that_cannot_be_is_refused(sessions: Sessions, slot: int, key: int) -> None:
    with pytest.raises(ValueError, match=f"slot {slot}"):
        sessions.put(slot, key, SOURCE, "store")


@pytest.mark.parametrize(
    ("sequence", "highest", "step"),
    [(5, 4, 1), (4, 4, 0), (3, 4, 0), (0, 0xFFFF_FFFF, 1), (0xFFFF_FFFF, 1 << 32, 0), (2, (7 << 32) + 1, 1)],
)
def test_numbers_go_round(sequence: int, highest: int, step: int) -> None:
    assert ahead(sequence, highest) == step
