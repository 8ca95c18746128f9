"""What a session has on which host, where it goes next, and what its counts come to. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from pileus.mirror.leg.types import LegAssigned
from pileus.mirror.session.types import (
    AtDecapsulator,
    SessionAssigned,
    SessionCounts,
    SessionDesired,
    SessionObserved,
)
from pileus.mirror.sniffer.types import source_space
from pileus.node.mirror import SESSIONS_MAX, SLOT_BITS
from pileus.node.mirror.rules import Rule

HERE = "0.0.0.0"  # noqa: S104 - an address in a header, nothing listens there


class End(Struct, frozen=True, kw_only=True):
    """A host that a session touches: its id, and its tunnel's address (empty: it has none)."""

    host: str
    tunnel_address: str


class Course(Struct, frozen=True, kw_only=True):
    """All places of a session. ``sniffer`` None: the decapsulator keeps the packets."""

    port: str
    source: End
    decapsulator: End
    tunnel_port: str
    sniffer_port: str
    sniffer: End | None = None
    delivery_port: str = ""


def between(near: End, far: End) -> str:
    """Return the address by which ``near`` reaches, or knows, ``far``: empty on one host."""
    return "" if near.host == far.host else far.tunnel_address


def without_tunnel(course: Course) -> str:
    """Return the host that another must reach, or be reached from, and that has no tunnel; empty: there is none."""
    ends = [course.source, course.decapsulator, *([course.sniffer] if course.sniffer is not None else [])]
    if len({end.host for end in ends}) == 1:
        return ""
    apart = [end for pair in pairwise(ends) if pair[0].host != pair[1].host for end in pair]
    return next((end.host for end in apart if not end.tunnel_address), "")


def legs(
    session: str, assigned: SessionAssigned, desired: SessionDesired, rules: tuple[Rule, ...], course: Course
) -> dict[str, LegAssigned]:
    """Return the legs by name: those that receive first, the source last."""
    common: dict[str, Any] = {"session": session, "key": assigned.key}
    at, to = course.decapsulator, course.sniffer
    found = [
        LegAssigned(
            host=at.host,
            role="relay",
            port=course.tunnel_port,
            sniffer_port=course.sniffer_port,
            source=between(at, course.source),
            target=between(at, to) if to is not None else None,
            **common,
        )
    ]
    if to is not None:
        found.append(
            LegAssigned(host=to.host, role="delivery", port=course.delivery_port, source=between(to, at), **common)
        )
    found.append(
        LegAssigned(
            host=course.source.host,
            role="source",
            port=course.port,
            target=between(course.source, at),
            number=desired.number,
            direction=desired.direction,
            rules=rules,
            snap_bytes=desired.snap_bytes,
            sample_one_in=desired.sample_one_in,
            sample_by=desired.sample_by,
            rate_limit_kbps=desired.rate_limit_kbps,
            **common,
        )
    )
    return {leg_name(leg): leg for leg in found}


def leg_name(leg: LegAssigned) -> str:
    """Return the leg's name: of its session's key, its role and its host, since a leg never changes any of them."""
    return f"leg-{leg.key}-{leg.role}-{leg.host[-12:]}"


def key_of(random_bits: int, slot: int) -> str:
    """Return the key of a session at a place of a decapsulator, 15 hexadecimal digits (58 bits)."""
    return f"{random_bits << SLOT_BITS | slot:015x}"


class Offered(Struct, frozen=True, kw_only=True):
    """A decapsulator as a session sees it."""

    id: str
    node: str
    state: str
    sessions: int
    stays: bool = True
    """False: the zone wants fewer decapsulators, and this one goes when nobody uses it any more."""


def chosen(current: str, offered: Sequence[Offered]) -> Offered | None:
    """Return the decapsulator that a session goes to: it stays, unless that one is down and another is ready."""
    own = next((each for each in offered if each.id == current), None)
    good = [
        each
        for each in offered
        if each.id != current and each.stays and each.state == "ready" and each.sessions < SESSIONS_MAX
    ]
    best = min(good, key=lambda each: (each.sessions, each.id), default=None)
    if own is not None:
        return best if best is not None and (own.state == "down" or not own.stays) else own
    rising = [each for each in offered if each.stays and each.state == "starting" and each.sessions < SESSIONS_MAX]
    return best or min(rising, key=lambda each: (each.sessions, each.id), default=None)


_SHOWN = {
    "source": ("seen", "matched", "sampled", "limited", "failed", "sent", "sent_bytes", "truncated"),
    "relay": (),
    "delivery": ("delivered", "delivered_bytes", "dropped"),
}
"""What a session shows of each leg's counts, by role."""


Counts = Mapping[str, int]


def added(total: Counts, leg: LegAssigned, counts: Counts) -> dict[str, int]:
    """Return ``total`` with what a leg counted; what it did not say counts nothing."""
    result = dict(total)
    for word in _SHOWN[leg.role]:
        result[word] = result.get(word, 0) + max(0, counts.get(word, 0))
    return result


class Live(Struct, frozen=True, kw_only=True):
    """A leg that is there, and what it counted when it was asked last."""

    id: str
    leg: LegAssigned
    counts: Counts


def read_counts(sample: tuple[float, str] | None) -> dict[str, int]:
    """Return what a leg's host said of its counts last."""
    said = json.loads(sample[1]) if sample is not None else {}
    return {word: number for word, number in said.items() if isinstance(number, int)}


def began_anew(before: Counts, now: Counts) -> bool:
    """Tell whether a leg counts from zero again: its host made it anew."""
    return any(now.get(word, 0) < number for word, number in before.items())


def followed_legs(
    before: Mapping[str, Counts], live: Sequence[Live], closed: Counts
) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Return what each leg counts now, and the closed counts: what a leg counted before it began anew goes there."""
    total = dict(closed)
    for each in live:
        earlier = before.get(each.id, {})
        if began_anew(earlier, each.counts):
            total = added(total, each.leg, earlier)
    return {each.id: dict(each.counts) for each in live}, total


def released(closed: Counts, leg: Live, session: SessionObserved) -> dict[str, int]:
    """Return the closed counts with a leg's that is gone, and counted so much at the end."""
    earlier = session.at_legs.get(leg.id, {})
    result = added(closed, leg.leg, leg.counts)
    if began_anew(earlier, leg.counts):
        result = added(result, leg.leg, earlier)
    if leg.leg.key != session.at_decapsulator.key:
        result["sent_over"] = result.get("sent_over", 0) + result.get("sent", 0) - closed.get("sent", 0)
    return result


def read_at_decapsulator(said: Any, key: str, boot_id: str) -> AtDecapsulator | None:
    """Return what a node's status says of a session; None when that is not of this key, or makes no sense."""
    if not isinstance(said, list) or len(said) != 8 or said[0] != key:
        return None
    numbers = said[1:]
    if not all(isinstance(number, int) and -1 <= number < 2**64 for number in numbers):
        return None
    received, received_bytes, _, highest, _, forwarded, dropped = numbers
    return AtDecapsulator(
        key=key,
        boot_id=boot_id,
        received=received,
        received_bytes=received_bytes,
        highest=highest if received else -1,  # a number is nothing before a packet came
        forwarded=forwarded,
        dropped=dropped,
    )


def followed(
    before: AtDecapsulator, now: AtDecapsulator | None, closed: Counts
) -> tuple[AtDecapsulator, dict[str, int]]:
    """Return what is known at the decapsulator now, and the closed counts: a boot or a key that is over goes there.

    ``now`` None: nothing new was said.
    """
    if now is None:
        return before, dict(closed)
    if now.key != before.key:
        return now, settled(closed, before)
    highest = max(before.highest, now.highest)
    if now.boot_id == before.boot_id:
        return replace(now, before=before.before, highest=highest), dict(closed)
    total = _with_passed_on(closed, before)
    return replace(now, before=before.before + before.received, highest=highest), total


def settled(closed: Counts, at: AtDecapsulator) -> dict[str, int]:
    """Return the closed counts of a session whose last key is over."""
    total = _with_passed_on(closed, at)
    total["lost"] = _lost(closed) + _missed(at)
    total["received"] = total.get("received", 0) + at.received + at.before
    total["sent_over"] = total.get("sent", 0)
    return total


def _with_passed_on(closed: Counts, at: AtDecapsulator) -> dict[str, int]:
    total = dict(closed)
    for word in ("received_bytes", "forwarded", "dropped"):
        total[word] = total.get(word, 0) + getattr(at, word)
    return total


def _lost(closed: Counts) -> int:
    """Return what keys that are over lost: by their numbers, and at the end all that did not arrive."""
    return max(closed.get("lost", 0), closed.get("sent_over", 0) - closed.get("received", 0))


def _missed(at: AtDecapsulator) -> int:
    """Return how many numbers are missing among those that came."""
    return max(0, at.highest + 1 - at.received - at.before)


def ends_at(began_at: float, duration_s: int) -> float:
    """Return when a session ends, Unix seconds; 0: it has not begun, or has no end."""
    return began_at + duration_s if began_at and duration_s else 0.0


def nic_space(assigned: SessionAssigned, desired: SessionDesired) -> str:
    """Return the claim space of the sessions of this one's NIC."""
    return source_space(assigned.vm, desired.nic)


def counted(closed: Counts, live: Iterable[Live], at: AtDecapsulator) -> SessionCounts:
    """Return the session's counts: what is closed, what its legs count now, and what its decapsulator says."""
    total = dict(closed)
    for each in live:
        total = added(total, each.leg, each.counts)
    total = _with_passed_on(total, at)
    total["received"] = total.get("received", 0) + at.received + at.before
    total["lost"] = _lost(closed) + _missed(at)
    # Hosts say their counts every ten seconds, and what they had not said yet goes with them: what came was sent.
    total["sent_bytes"] = max(total.get("sent_bytes", 0), total["received_bytes"])
    least = total["received"] + total["lost"]
    for word in ("sent", "sampled", "matched", "seen"):
        least = total[word] = max(total.get(word, 0), least)
    words = asdict(SessionCounts())
    return SessionCounts(**{word: total.get(word, 0) for word in words})
