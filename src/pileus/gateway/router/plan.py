"""The life of a router: whether it shall be up, and which of its nodes to make, keep, hand over or remove. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from pileus.infra.zone.types import RouterWish

SLOTS = ("a", "b")
"""The places of a redundant pair; a single router has the first."""


class Activity(Struct, frozen=True):
    """Whether the router shall have appliances, since when nobody needs it, and when to look again (0: no need)."""

    active: Literal["yes", "no"]
    idle_since: float
    again_s: float = 0.0


def activity(now_active: str, idle_since: float, wanted: bool, now: float, idle_s: float) -> Activity:
    """Return what becomes of the router: up at once when wanted, down once nobody wanted it for ``idle_s``."""
    if wanted:
        return Activity("yes", 0.0)
    if now_active == "no":
        return Activity("no", 0.0)
    since = idle_since or now
    left = since + idle_s - now
    return Activity("yes", since, left) if left > 0 else Activity("no", 0.0)


class Member(Struct, frozen=True, kw_only=True):
    """A node as the plan sees it. ``is_current``: it has the wished image; ``carries``: it has the shared addresses."""

    slot: str
    is_current: bool
    in_force: bool
    carries: bool
    deleting: bool = False


class Membership(Struct, frozen=True, kw_only=True):
    """Which slots shall have a node, which nodes go, and which one hands over its addresses first."""

    make: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    hand_over: str = ""


def slots(active: str, redundancy: RouterWish) -> tuple[str, ...]:
    """Return the slots that shall have a node."""
    if active == "no" or redundancy == "none":
        return ()
    return SLOTS if redundancy == "redundant" else SLOTS[:1]


def membership(wanted: Sequence[str], members: Mapping[str, Member]) -> Membership:
    """Return the next change of the nodes; a newer image replaces one node at a time, the one that carries last.

    A node is only replaced while every other one is in force; one that carries hands over before it goes.
    """
    extra = tuple(slot for slot in members if slot not in wanted)
    make = tuple(slot for slot in wanted if slot not in members)
    old = [member for slot, member in members.items() if slot in wanted and not member.is_current]
    is_calm = not make and not any(member.deleting for member in members.values())
    if not old or not is_calm:
        return Membership(make=make, remove=extra)
    leaving = min(old, key=lambda member: (member.carries, member.slot))
    others = [member for slot, member in members.items() if slot in wanted and slot != leaving.slot]
    if not all(other.in_force for other in others):
        return Membership(remove=extra)
    if leaving.carries and others:
        return Membership(remove=extra, hand_over=leaving.slot)
    return Membership(remove=(*extra, leaving.slot))
