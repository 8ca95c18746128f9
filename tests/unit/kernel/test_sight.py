"""Who sees what: every caller against every object, in a table; and what no answer shows of a section."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from pileus.kernel import records
from pileus.kernel.access import Principal, nameable, sees
from pileus.kernel.condition import Condition, ready
from pileus.kernel.kind import Empty, Kind, Registry, Resource


def caller(account: str = "", manager: str = "", *consents: str) -> Principal:
    """Return somebody of this account; with a manager's id, that manager."""
    return Principal(
        user_id="u", user="u", account_id=account, account=account, role="r", rules=(), manager_id=manager,
        consents=frozenset(consents),
    )  # fmt: skip


def kind(**more: Any) -> Kind:
    """Return a kind that either the cluster or an account has."""
    return Kind(name="test.thing", summary="", desired=Empty, ready=lambda _: ready(), scope="either", **more)


OPEN, HIDDEN, CLOSED = kind(), kind(managed="hidden"), kind(readable_by="operator")
CALLERS = {
    "operator": caller(),
    "tenant": caller("a"),
    "central": caller("", "m", "a"),
    "own": caller("a", "m"),
    "blind": caller("", "m"),
}
ACCOUNTS, MANAGERS = ("", "a", "b"), ("", "m", "other")
EVERYTHING = set(itertools.product(ACCOUNTS, MANAGERS))
OF_A = {("a", ""), ("a", "m"), ("a", "other")}
CLUSTER = {("", ""), ("", "m"), ("", "other")}
SEEN: dict[str, tuple[set[tuple[str, str]], set[tuple[str, str]], set[tuple[str, str]]]] = {
    "operator": (EVERYTHING, EVERYTHING, EVERYTHING),
    "tenant": (OF_A | CLUSTER, OF_A | {("", "")}, OF_A),
    "central": ({("", "m"), ("a", "m")},) * 3,
    "own": ({("a", "m")},) * 3,
    "blind": ({("", "m")},) * 3,
}
"""Caller -> (account, manager) of what it sees, of kinds that everybody reads, that hide managed ones, of operators."""


@pytest.mark.parametrize("who", SEEN)
def test_each_caller_sees_exactly_what_the_table_says(who: str) -> None:
    for thing, seen in zip((OPEN, HIDDEN, CLOSED), SEEN[who], strict=True):
        assert {pair for pair in EVERYTHING if sees(CALLERS[who], thing, *pair)} == seen


def test_a_manager_names_what_its_account_has_and_nothing_of_another_manager() -> None:
    def names(who: str, thing: Kind, account: str, manager: str, *, wish_in: str) -> bool:
        target = Resource(id="t", kind=thing.name, name="t", desired=Empty(), account_id=account, manager=manager)
        return nameable(CALLERS[who], thing, wish_in, target)

    assert names("central", CLOSED, "a", "", wish_in="a"), "the account's network, for a node in the account"
    assert names("central", OPEN, "", "", wish_in="a")
    assert names("central", HIDDEN, "", "m", wish_in="a"), "its own image"
    for account, wish_in in itertools.product(ACCOUNTS, repeat=2):
        for thing in (OPEN, HIDDEN, CLOSED):
            assert not names("central", thing, account, "other", wish_in=wish_in)
    assert not names("central", CLOSED, "a", "", wish_in=""), "from the cluster only what it sees itself"
    assert not names("central", CLOSED, "", "", wish_in="")
    assert not names("central", OPEN, "b", "", wish_in="a")
    assert names("tenant", OPEN, "", "other", wish_in="a")
    assert not names("tenant", HIDDEN, "", "other", wish_in="a")
    assert names("operator", CLOSED, "b", "other", wish_in="a")


def test_a_rollout_of_a_manager_names_accounts_that_consented() -> None:
    accounts = Kind(
        name="test.account", summary="", desired=Empty, ready=lambda _: ready(), scope="cluster", readable_by="operator"
    )
    for id, known in (("a", True), ("b", False)):
        target = Resource(id=id, kind=accounts.name, name=id, desired=Empty())
        assert nameable(CALLERS["central"], accounts, "", target) == known
        assert not sees(CALLERS["central"], accounts, "", "")


def test_a_manager_is_never_an_operator_and_its_name_is_no_users() -> None:
    for who, principal in CALLERS.items():
        assert principal.operator == (who == "operator")
    assert CALLERS["central"].actor == "manager u"
    assert CALLERS["tenant"].actor == "u"


class Section(Struct, frozen=True):
    """Something to show and something to hide."""

    shown: str = "yes"
    hidden: str = "no-one-may-read-this"


def _ready(resource: Resource) -> Condition:
    return ready()


@pytest.mark.parametrize(
    ("private", "desired", "assigned"),
    [
        (set(), {"shown": "yes", "hidden": "no-one-may-read-this"}, {"shown": "yes", "hidden": "no-one-may-read-this"}),
        ({"desired.hidden"}, {"shown": "yes"}, {"shown": "yes", "hidden": "no-one-may-read-this"}),
        ({"desired.hidden", "assigned.hidden"}, {"shown": "yes"}, {"shown": "yes"}),
        ({"desired", "assigned.hidden"}, None, {"shown": "yes"}),
        ({"desired.hidden", "desired.shown"}, {}, {"shown": "yes", "hidden": "no-one-may-read-this"}),
        ({"assigned"}, {"shown": "yes", "hidden": "no-one-may-read-this"}, None),
    ],
)
def test_what_is_private_is_in_no_answer(private: set[str], desired: Any, assigned: Any) -> None:
    thing = Kind(
        name="test.thing", summary="", desired=Section, assigned=Section, observed=Section, ready=_ready,
        private=frozenset(private),
    )  # fmt: skip
    made = Resource(id="i", kind=thing.name, name="n", desired=Section(), assigned=Section())
    text = records.public_of(Registry((thing,)), made)
    answer = msgspec.json.decode(text)
    assert (answer["desired"], answer["assigned"], answer["observed"]) == (desired, assigned, None)
    assert text.count("no-one-may-read-this") == sum("hidden" in (part or {}) for part in (desired, assigned))
