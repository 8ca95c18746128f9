"""The plan of a snapshot on its host: from every state to every wish."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest

from pileus.kernel.fields import Problem
from pileus.kernel.kind import Resource
from pileus.storage.snapshot.plan import awaits, plan
from pileus.storage.snapshot.types import SnapshotAssigned, SnapshotDesired, SnapshotObserved


def test_every_state_reaches_every_wish_and_what_is_lost_is_not_made_again() -> None:
    for deleting, present, made in itertools.product((False, True), repeat=3):
        step = plan(deleting=deleting, present=present, made=made)
        if deleting:
            assert (step is not None and step.verb == "delete") == (present or made)
            assert plan(deleting=True, present=False, made=False) is None
        else:
            assert (step is not None and step.verb == "take") == (not present and not made)


@pytest.mark.parametrize(
    ("state", "reason", "is_awaited"),
    [
        (None, "", True), ("absent", "", True), ("absent", "CopyFailed", True), ("absent", "DiskFull", False),
        ("present", "", False),
    ],
)  # fmt: skip
def test_a_volume_waits_for_its_copies_but_not_for_those_that_find_no_room(
    state: Literal["absent", "present"] | None, reason: str, is_awaited: bool
) -> None:
    problem = Problem(reason=reason, message="") if reason else None
    snapshot = Resource(
        id="s",
        kind="storage.snapshot",
        name="s",
        desired=SnapshotDesired(volume="v"),
        assigned=SnapshotAssigned(zone="z", vdc="d", host="h", pool="p", volume="v", size_gib=1),
        observed=SnapshotObserved(state=state, problem=problem) if state is not None else None,
    )
    assert awaits(snapshot, "v") == is_awaited
    assert not awaits(snapshot, "w")
