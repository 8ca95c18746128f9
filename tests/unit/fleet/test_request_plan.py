"""How requests go on: every node x every request, and a host that is cut after each step."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest

from pileus.fleet.request.plan import Asked, End, Follow, NodeSeen, Place, Queue, Seen, Wish, decide, next_step
from pileus.node import ledger
from pileus.node.ledger import Book, Request

HERE = Place(vm="vm", disk="disk", host="here")
THERE = Place(vm="vm", disk="disk", host="there")
NOWHERE = Place(vm="vm", disk="disk")
REPLACED = Place(vm="vm", disk="other", host="here")

# the server: the expected word is that of an end, ``queue``, or ``follow`` (``follow!`` when it shall not be begun)
NEVER_GIVEN = {
    # (deleting, late): by the node's state
    (False, False): {"present": "queue", "leaving": "withdrawn", "quarantined": "withdrawn", "gone": "withdrawn"},
    (False, True): {"present": "expired", "leaving": "withdrawn", "quarantined": "withdrawn", "gone": "withdrawn"},
    (True, False): dict.fromkeys(("present", "leaving", "quarantined", "gone"), "withdrawn"),
    (True, True): dict.fromkeys(("present", "leaving", "quarantined", "gone"), "withdrawn"),
}
GIVEN = {
    (False, False): {"present": "follow", "leaving": "follow!", "quarantined": "unknown", "gone": "unknown"},
    (False, True): {"present": "follow", "leaving": "follow!", "quarantined": "unknown", "gone": "unknown"},
    (True, False): {"present": "follow!", "leaving": "follow!", "quarantined": "unknown", "gone": "unknown"},
    (True, True): {"present": "follow!", "leaving": "follow!", "quarantined": "unknown", "gone": "unknown"},
}


@pytest.mark.parametrize("given", ["", "disk"])
@pytest.mark.parametrize("state", ["present", "leaving", "quarantined", "gone"])
@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("deleting", [False, True])
def test_the_server_ends_only_what_nobody_else_can(
    deleting: bool, is_late: bool, state: Literal["present", "leaving", "quarantined", "gone"], given: str
) -> None:
    expected = (GIVEN if given else NEVER_GIVEN)[deleting, is_late][state]
    for place in (HERE, THERE, NOWHERE):
        decided = decide(Asked(unwanted=deleting, is_late=is_late, given=given), NodeSeen(state=state, place=place))
        assert _word(decided) == expected
        if isinstance(decided, Follow):
            assert decided.place == place


def _word(decided: End | Follow | Queue) -> str:
    match decided:
        case End(state, message):
            assert message
            return state
        case Follow(_, withdrawn):
            return "follow!" if withdrawn else "follow"
        case _:
            return "queue"


@pytest.mark.parametrize("state", ["present", "leaving"])
def test_with_its_disk_a_node_loses_its_memory_of_what_it_did(state: Literal["present", "leaving"]) -> None:
    for place in (REPLACED, Place()):
        decided = decide(Asked(unwanted=False, is_late=False, given="disk"), NodeSeen(state=state, place=place))
        assert _word(decided) == "unknown"


@pytest.mark.parametrize("asked", ["no", "under-way", "done"])
@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=4)))
def test_a_host_asks_a_ready_node_for_the_first_only(
    asked: Literal["no", "under-way", "done"], flags: tuple[bool, bool, bool, bool]
) -> None:
    withdrawn, is_late, is_first, ready = flags
    step = next_step(
        Wish(withdrawn=withdrawn, is_late=is_late, is_first=is_first), Seen(asked=asked, ready=ready), recheck_s=30.0
    )
    if asked == "done":
        assert step is None
        return
    assert step is not None
    if asked == "under-way" or not is_first or not ready:
        assert (step.verb, step.after_s) == ("wait", 30.0)
    else:
        assert step.verb == ("withdraw" if withdrawn or is_late else "ask")


@dataclass
class Host:
    """A host with requests to one node: what its agent knows is lost with it, the node's book is not."""

    book: Book = field(default_factory=Book)
    applied: list[str] = field(default_factory=list)
    ends: dict[str, str] = field(default_factory=dict)
    now: float = 0.0

    def step(self, requests: list[Request], deleting: set[str]) -> bool:
        """Do one step of the first that is not done; False when none is left."""
        for position, request in enumerate(requests):
            wish = Wish(
                withdrawn=request.id in deleting,
                is_late=self.now >= request.deadline,
                is_first=all(other.id in self.ends for other in requests[:position]),
            )
            seen = Seen(asked="done" if request.id in self.ends else "no", ready=True)
            step = next_step(wish, seen, 30.0)
            if step is not None and step.verb != "wait":
                self.ask(replace(request, withdrawn=step.verb == "withdraw"))
                return True
        return False

    def ask(self, request: Request) -> None:
        """Let the node decide, and do it."""
        verdict = self.book.decide(request, self.now)
        end = verdict.end
        if verdict.step == "begin":
            self.book.begin(request.sequence, request.id)
            self.applied.append(request.id)
            end = ledger.End(request.id, "applied", b"")
            self.book.end(request.sequence, end)
        elif verdict.step == "end" and end is not None:
            self.book.end(request.sequence, end)
        assert end is not None
        self.ends[request.id] = end.state


REQUESTS = [Request(id=f"r{number}", sequence=number, deadline=deadline) for number, deadline in
            ((1, 100.0), (2, 2.0), (3, 100.0), (4, 1.0))]  # fmt: skip


@pytest.mark.parametrize("cut", range(6))
@pytest.mark.parametrize("late_from", range(6))
def test_an_agent_that_forgets_everything_after_any_step_comes_to_the_same_end(cut: int, late_from: int) -> None:
    host, deleting = Host(), {"r3"}
    for number in range(20):
        host.now = 50.0 if number >= late_from else 0.0
        if number == cut:
            host.ends.clear()  # a new agent: nothing that was heard had been told
        if not host.step(REQUESTS, deleting) and number > cut:
            break
    assert set(host.ends) == {"r1", "r2", "r3", "r4"}
    assert host.applied == sorted(set(host.applied))
    assert [id for id, state in sorted(host.ends.items()) if state == "applied"] == host.applied
    assert host.ends["r3"] == "withdrawn"
    assert "r4" not in host.applied or late_from > 3
