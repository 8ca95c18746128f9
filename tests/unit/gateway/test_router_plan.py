"""The life of a router: up when wanted, down after its time, and its nodes replaced one at a time."""

from __future__ import annotations

import itertools

from pileus.gateway.router.plan import SLOTS, Member, Membership, activity, membership, slots


def test_it_is_up_as_soon_as_a_vm_wants_it() -> None:
    assert activity("no", 0.0, True, 100.0, 600.0).active == "yes"
    assert activity("yes", 50.0, True, 100.0, 600.0).idle_since == 0.0


def test_it_goes_down_only_when_nobody_wanted_it_for_its_time() -> None:
    first = activity("yes", 0.0, False, 100.0, 600.0)
    assert (first.active, first.idle_since, first.again_s) == ("yes", 100.0, 600.0)
    later = activity("yes", first.idle_since, False, 699.0, 600.0)
    assert (later.active, later.idle_since) == ("yes", 100.0)
    assert activity("yes", 100.0, False, 700.0, 600.0).active == "no"


def test_an_idle_router_stays_idle() -> None:
    assert activity("no", 0.0, False, 100.0, 600.0).active == "no"


def test_slots_follow_redundancy() -> None:
    assert slots("no", "redundant") == ()
    assert slots("yes", "single") == ("a",)
    assert slots("yes", "redundant") == ("a", "b")
    assert slots("yes", "none") == ()


def test_a_replacement_never_leaves_a_pair_without_a_node_in_force_and_always_ends() -> None:
    states = list(itertools.product((True, False), repeat=2))
    for (old_a, old_b), carrier in itertools.product(states, SLOTS):
        members = {
            slot: Member(slot=slot, is_current=not old, in_force=True, carries=slot == carrier)
            for slot, old in zip(SLOTS, (old_a, old_b), strict=True)
        }
        for _ in range(12):
            change = membership(SLOTS, members)
            if change == Membership():
                break
            members = _after(members, change)
            assert any(member.in_force and not member.deleting for member in members.values())
        assert all(member.is_current and member.in_force for member in members.values())
        assert sum(member.carries for member in members.values()) == 1


def _after(members: dict[str, Member], change: Membership) -> dict[str, Member]:
    result = dict(members)
    for slot in change.remove:
        gone = result.pop(slot)
        if gone.carries:
            raise AssertionError("the one that carries was removed before it handed over")
    if change.hand_over:
        for slot, member in result.items():
            result[slot] = Member(
                slot=slot,
                is_current=member.is_current,
                in_force=member.in_force,
                carries=slot != change.hand_over,
            )
    for slot in change.make:
        result[slot] = Member(slot=slot, is_current=True, in_force=True, carries=False)
    return result


def test_a_node_is_not_replaced_while_the_other_is_not_in_force() -> None:
    members = {
        "a": Member(slot="a", is_current=False, in_force=True, carries=True),
        "b": Member(slot="b", is_current=True, in_force=False, carries=False),
    }
    assert membership(SLOTS, members) == Membership()


def test_a_single_router_is_replaced_in_place() -> None:
    members = {"a": Member(slot="a", is_current=False, in_force=True, carries=True)}
    assert membership(("a",), members) == Membership(remove=("a",))
