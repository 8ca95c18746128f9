"""Lists of rules as values: what and, or and not make of them decides every frame as the expression does.

A decision here is a list whose last rule fits every frame, so that it always has an answer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import ip_network
from typing import Literal, TypeVar

from pileus.node.mirror.rules import PORT_MAX, RULES_MAX, WITH_PORTS, Rule

Decision = tuple[Rule, ...]
T = TypeVar("T")

ANY_PORT = (0, PORT_MAX)
KEPT = 3
"""Forms of each part that are tried in the whole: the shortest part does not always make the shortest whole."""
LENGTH_MAX, PAIRS_MAX = 128, 512
"""Bounds of what is tried on the way to a list of at most ``RULES_MAX``: such a text costs some 100 ms, not minutes."""


class TooLong(Exception):
    """No list that is short enough was found."""


def fitting(rules: Iterable[Rule]) -> Decision:
    """Return the decision that takes what one of ``rules`` fits."""
    return (*rules, Rule(action="reject"))


def negated(decision: Decision) -> Decision:
    """Return the decision that takes what the given one does not."""
    return tuple(replace(rule, action=_other(rule)) for rule in decision)


def all_of(forms: Sequence[Decision], others: Sequence[Decision]) -> list[Decision]:
    """Return the shortest forms of "both take it", of the forms of two parts. Raises: TooLong."""
    return _shortest(made for one in forms for other in others for made in _both(one, other))


def any_of(forms: Sequence[Decision], others: Sequence[Decision]) -> list[Decision]:
    """Return the shortest forms of "one takes it", of the forms of two parts. Raises: TooLong."""
    made = all_of([negated(one) for one in forms], [negated(other) for other in others])
    return [negated(one) for one in made]


def in_force(forms: Sequence[Decision]) -> tuple[Rule, ...]:
    """Return the shortest form as the rules of a filter; empty when no frame fits. Raises: TooLong."""
    rules = min((_without_end(form) for form in forms), key=len)
    if len(rules) > RULES_MAX:
        raise TooLong
    return rules


class _Apart(Exception):
    """Two rules say different things."""


def meet(one: Rule, other: Rule) -> Rule | None:
    """Return the rule, with the action of ``other``, that fits what both fit; None when no frame does."""
    try:
        made = Rule(
            action=other.action,
            direction=_same(one.direction, other.direction, "both"),
            family=_same(one.family, other.family, 0),
            protocol=_same(one.protocol, other.protocol, None),
            source=_narrower(one.source, other.source),
            destination=_narrower(one.destination, other.destination),
            source_ports=_common(one.source_ports, other.source_ports),
            destination_ports=_common(one.destination_ports, other.destination_ports),
        )
        return _consistent(made)
    except _Apart:
        return None


def _same(one: T, other: T, anything: T) -> T:
    """Return what both say; who says ``anything`` says nothing. Raises: _Apart."""
    if one in (anything, other):
        return other
    if other != anything:
        raise _Apart
    return one


def _narrower(one: str, other: str) -> str:
    if not one or not other or one == other:
        return one or other
    (family, low, high), (other_family, other_low, other_high) = _span(one), _span(other)
    if family != other_family or high < other_low or other_high < low:
        raise _Apart
    return one if other_low <= low and high <= other_high else other


def _common(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    low, high = max(one[0], other[0]), min(one[1], other[1])
    if low > high:
        raise _Apart
    return low, high


@functools.lru_cache(maxsize=4096)
def _span(text: str) -> tuple[int, int, int]:
    """Return family, first and last address."""
    network = ip_network(text)
    return network.version, int(network.network_address), int(network.broadcast_address)


def _consistent(rule: Rule) -> Rule:
    """Return the rule with the family that its addresses are of. Raises: _Apart when no frame can be so."""
    families = {_span(text)[0] for text in (rule.source, rule.destination) if text} | {rule.family} - {0}
    if len(families) > 1 or (rule.protocol == "arp" and families):
        raise _Apart
    if _has_ports(rule) and rule.protocol not in (None, *WITH_PORTS):
        raise _Apart
    if families == {rule.family} or not families:
        return rule
    return replace(rule, family=4 if 4 in families else 6)


def _has_ports(rule: Rule) -> bool:
    return (rule.source_ports, rule.destination_ports) != (ANY_PORT, ANY_PORT)


def _both(one: Decision, other: Decision) -> Iterable[Decision]:
    """Yield forms of "both take it": each order of asking, and where it is enough, what both take."""
    if _only(one, "reject") and _only(other, "reject"):
        yield (*one[:-1], *other)
        return
    pairs = len(one) * len(other)
    if pairs > PAIRS_MAX:
        return
    if _only(one, "accept") and _only(other, "accept"):
        met = (meet(first, second) for first in one[:-1] for second in other[:-1])
        yield fitting(rule for rule in met if rule is not None)
    yield _one_by_one(one, other)
    yield _one_by_one(other, one)


def _only(decision: Decision, action: str) -> bool:
    """Tell whether all but the last rule have this action, and the last one the other."""
    return decision[-1].action != action and all(rule.action == action for rule in decision[:-1])


def _one_by_one(one: Decision, other: Decision) -> Decision:
    """Return the form that looks into ``other`` where the first fitting rule of ``one`` accepts."""
    made: list[Rule] = []
    for rule in one:
        if rule.action == "reject":
            made.append(rule)
        else:
            made += [met for second in other if (met := meet(rule, second)) is not None]
    return tuple(made)


def _shortest(made: Iterable[Decision]) -> list[Decision]:
    found = {_pruned(one) for one in made if len(one) <= PAIRS_MAX}
    kept = sorted((one for one in found if len(one) <= LENGTH_MAX), key=len)[:KEPT]
    if not kept:
        raise TooLong
    return kept


def _pruned(decision: Decision) -> Decision:
    """Return an equal decision without rules that decide nothing."""
    reached: list[Rule] = []
    for rule in decision:
        if not any(_within(rule, earlier) for earlier in reached):
            reached.append(rule)
    kept: list[Rule] = []
    for rule in reversed(reached):  # what follows is in kept, its next one last
        if not _repeated(rule, kept):
            kept.append(rule)
    return tuple(reversed(kept))


def _repeated(rule: Rule, after: Sequence[Rule]) -> bool:
    """Tell whether the rules after it (the next one last) decide all that it fits in the same way."""
    for later in reversed(after):
        if later.action == rule.action:
            if _within(rule, later):
                return True
        elif meet(rule, later) is not None:
            return False
    return False


def _within(rule: Rule, other: Rule) -> bool:
    """Tell whether ``other`` fits all that ``rule`` fits."""
    return meet(other, rule) == rule


def _without_end(decision: Decision) -> tuple[Rule, ...]:
    """Return the rules without the last ones that reject, as what no rule fits is not taken."""
    end = len(decision)
    while end and decision[end - 1].action == "reject":
        end -= 1
    return decision[:end]


def _other(rule: Rule) -> Literal["accept", "reject"]:
    return "accept" if rule.action == "reject" else "reject"
