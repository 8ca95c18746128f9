"""How often a node may do harm before it is heard no more."""

from __future__ import annotations

from pileus.drivers.host.guest.flood import Limits, Offences


def test_a_few_offences_are_borne_and_one_more_is_too_many() -> None:
    offences = Offences(Limits(offences_max=3, offences_s=600.0))
    assert [offences.note(at) for at in (0.0, 1.0, 2.0, 3.0)] == [False, False, False, True]


def test_offences_are_forgotten_after_a_while() -> None:
    offences = Offences(Limits(offences_max=3, offences_s=600.0))
    assert not any(offences.note(200.0 * turn) for turn in range(50))
    assert offences.note(9801.0)
