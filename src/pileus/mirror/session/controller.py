"""The server half of a session: a place at a decapsulator, its legs on up to three hosts, its counts, its end."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Literal

import structlog
from msgspec.structs import replace

from pileus.kernel.clock import Clock
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait, Waiting
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Exhausted, Transaction
from pileus.mirror.leg.types import LegAssigned, LegDesired, in_force
from pileus.mirror.platform import ensure_decapsulators
from pileus.mirror.session import plan
from pileus.mirror.session.plan import Offered
from pileus.mirror.session.types import (
    AtDecapsulator,
    SessionAssigned,
    SessionCounts,
    SessionObserved,
    account_space,
    slot_space,
)
from pileus.mirror.session.world import World, load_world
from pileus.node.mirror import KEY_BITS, SESSIONS_MAX, SLOT_BITS

log = structlog.get_logger()

LOOK_AGAIN_S = 10.0
"""How often a session's counts are read; hosts say them as often."""
ENDING_S = 15.0
"""How long the last counts are waited for: nodes say them every ten seconds."""


class SessionController(Controller):
    """Keeps a session's packets on their way."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Find it a decapsulator, keep its legs as things are now, count, and end it when its time is over."""
        if resource.deleting or _is_over(resource):
            return Done()
        assigned: SessionAssigned = resource.assigned
        world = await load_world(resource, store)
        now = self._clock()
        ends_at = plan.ends_at(assigned.began_at, resource.desired.duration_s)
        if assigned.ended != "no" or (ends_at and now >= ends_at):
            return self._end(world, now)
        if world.lacking is not None:
            return _waiting(world, "waiting", world.lacking.reason, world.lacking.message)
        best = plan.chosen(assigned.decapsulator, world.offered)
        if best is None:
            return _without_place(world)
        if best.id != assigned.decapsulator or world.is_elsewhere or world.is_lost:
            return await self._place(world, best, store)
        if world.course is None:
            return _waiting(world, "starting", "Starting", "the VM of its decapsulator is being made")
        stranger = plan.without_tunnel(world.course)
        if stranger:
            log.warning("a host without a tunnel is on a mirror's way", host=stranger, session=resource.id)
            message = (
                "its packets would have to go to another host, and no tunnel leads there; ask the cloud's operator"
            )
            return _waiting(world, "waiting", "NoTunnel", message)
        return self._keep(world, now)

    async def _place(self, world: World, best: Offered, store: Store) -> Outcome:
        """Give it a place and a key at a decapsulator that has a host."""
        source = await world.address_at(best, store)
        if source is None:
            return _waiting(world, "starting", "Starting", "its decapsulator has no host yet")
        random = secrets.randbits(KEY_BITS - SLOT_BITS)

        async def apply(tx: Transaction) -> None:
            session = await tx.get(world.session.id)
            assigned: SessionAssigned = session.assigned
            if assigned.decapsulator:
                await tx.release(session.id, slot_space(assigned.decapsulator))
                await tx.enqueue(assigned.decapsulator)
            try:
                slot = await tx.claim_number(slot_space(best.id), 0, SESSIONS_MAX - 1, session.id)
            except Exhausted:
                raise Waiting("Starting", "its decapsulator has no place left; another is looked for", 1.0) from None
            at_legs, closed = plan.followed_legs(_at_legs(session), world.live, assigned.closed)
            at, closed = plan.followed(_at(session), world.heard, closed)
            placed = replace(
                assigned,
                closed=closed,
                decapsulator=best.id,
                node=best.node,
                slot=slot,
                key=plan.key_of(random, slot),
                source_host=world.session_host,
                source_address=source,
            )
            found: SessionObserved | None = session.observed
            observed = replace(found, at_legs=at_legs, at_decapsulator=at) if found is not None else None
            await tx.update(session, assigned=placed, observed=observed)
            await tx.enqueue(best.id)

        return Wait("Starting", "it gets its place at a decapsulator", 0.0, apply)

    def _keep(self, world: World, now: float) -> Outcome:
        """Keep its legs as wished; the source comes last, when all that follows is ready for it."""
        assert world.course is not None  # it was asked for before
        session = world.session
        assigned: SessionAssigned = session.assigned
        wished = plan.legs(session.id, assigned, session.desired, world.rules, world.course)
        missing = _missing(world, wished)
        runs = not missing
        began = assigned.began_at or (now if runs else 0.0)
        ends_at = plan.ends_at(began, session.desired.duration_s)
        course = world.course
        at, at_legs, closed = _followed(world)
        counts = plan.counted(closed, world.live, at)

        async def apply(tx: Transaction) -> None:
            await _make_legs(tx, world, wished)
            if world.lacks_decapsulators:
                await ensure_decapsulators(tx, world.zone)
            current = await tx.get(session.id)
            decided = replace(
                current.assigned,
                began_at=began,
                ends_at=ends_at,
                closed=closed,
                port=course.port,
                delivery_port=course.delivery_port,
            )
            found = SessionObserved(
                state="running" if runs else "starting",
                reason="Starting",
                message=missing,
                counts=counts,
                at_decapsulator=at,
                at_legs=at_legs,
            )
            await tx.update(current, assigned=decided, observed=found)
            if began != assigned.began_at:
                await tx.event(session, "Mirror", "Started", f"{session} runs: packets are copied")
            if ends_at != assigned.ends_at:
                await tx.enqueue(assigned.decapsulator)

        if not runs:
            return Wait("Starting", missing, LOOK_AGAIN_S, apply)
        return Done(apply, min(LOOK_AGAIN_S, max(0.1, ends_at - now)) if ends_at else LOOK_AGAIN_S)

    def _end(self, world: World, now: float) -> Outcome:
        """Take the source away, wait for the last counts, then give everything back; the counts stay with the session."""
        session = world.session
        assigned: SessionAssigned = session.assigned
        at, at_legs, closed = _followed(world)
        sources = [leg for leg in world.legs.values() if leg.assigned.role == "source"]
        is_late = assigned.ended != "no" and now >= assigned.ends_at + ENDING_S
        sent = closed.get("sent", 0) - closed.get("sent_over", 0)
        is_whole = not sources and at.received + at.before >= sent
        has_last_counts = is_late or is_whole
        going = list(world.legs.values()) if has_last_counts else sources
        done = has_last_counts and not world.legs
        if done:
            closed = plan.settled(closed, at)
            at = AtDecapsulator()
        counts = plan.counted(closed, world.live, at)

        async def apply(tx: Transaction) -> None:
            for leg in going:
                await tx.mark_deleting(leg)
            current = await tx.get(session.id)
            decided = replace(current.assigned, ended="expired", ends_at=assigned.ends_at or now, closed=closed)
            if done:
                for space in (
                    slot_space(assigned.decapsulator),
                    plan.nic_space(assigned, session.desired),
                    account_space(session.account_id),
                ):
                    await tx.release(session.id, space)
                await tx.enqueue(assigned.decapsulator)
                decided = replace(decided, decapsulator="", node="", key="", slot=-1)
                await tx.event(session, "Mirror", "Ended", f"{session} has ended: {_words(counts)}")
            message = f"its time is over; {_words(counts)}"
            found = SessionObserved(
                state="ended" if done else "starting",
                reason="Ending",
                message=message,
                counts=counts,
                at_decapsulator=at,
                at_legs=at_legs,
            )
            await tx.update(current, assigned=decided, observed=found)

        if done:
            return Done(apply, 0.1)
        return Done(apply, LOOK_AGAIN_S if is_late else 0.5)


def _is_over(session: Resource) -> bool:
    """Tell whether the session has ended, and all was given back."""
    observed: SessionObserved | None = session.observed
    return session.assigned.ended != "no" and observed is not None and observed.state == "ended"


def _without_place(world: World) -> Wait:
    """Return why no decapsulator takes it."""
    if world.offered and all(each.sessions >= SESSIONS_MAX for each in world.offered):
        message = "all decapsulators of its zone are full; ask the cloud's operator for another one"
        return _waiting(world, "starting", "NoPlace", message)
    return _waiting(world, "starting", "Starting", "a decapsulator is being made for it")


def _waiting(world: World, state: Literal["waiting", "starting"], reason: str, message: str) -> Wait:
    """Return a wait that is said in the observed section too, with what is to be made for the session."""
    session = world.session

    stops = world.lacking is not None and world.lacking.stops

    async def apply(tx: Transaction) -> None:
        if world.lacking is None and world.lacks_decapsulators:
            await ensure_decapsulators(tx, world.zone)
        for leg in world.legs.values() if stops else ():
            await tx.mark_deleting(leg)
        current = await tx.get(session.id)
        counts = current.observed.counts if current.observed is not None else SessionCounts()
        found = SessionObserved(
            state=state,
            reason=reason,
            message=message,
            counts=counts,
            at_decapsulator=_at(current),
            at_legs=_at_legs(current),
        )
        # Its next source numbers its packets from 0: without a place of its source it gets another key.
        decided = replace(current.assigned, source_host="") if stops else current.assigned
        if stops and not world.legs and decided.decapsulator:
            decided = await _give_place_back(tx, session, decided, _at(current))
            found = replace(found, at_decapsulator=AtDecapsulator())
        await tx.update(current, assigned=decided, observed=found)

    return Wait(reason, message, LOOK_AGAIN_S, apply)


async def _give_place_back(
    tx: Transaction, session: Resource, assigned: SessionAssigned, at: AtDecapsulator
) -> SessionAssigned:
    """Return the session's decisions without a place at a decapsulator; what that has kept of it goes."""
    await tx.release(session.id, slot_space(assigned.decapsulator))
    await tx.enqueue(assigned.decapsulator)
    closed = plan.settled(assigned.closed, at)
    return replace(assigned, closed=closed, decapsulator="", node="", slot=-1, key="", source_host="")


def _followed(world: World) -> tuple[AtDecapsulator, dict[str, dict[str, int]], dict[str, int]]:
    """Return what is known now at the decapsulator and of the legs, and the closed counts."""
    session = world.session
    at_legs, closed = plan.followed_legs(_at_legs(session), world.live, session.assigned.closed)
    at, closed = plan.followed(_at(session), world.heard, closed)
    return at, at_legs, closed


def _at_legs(session: Resource) -> dict[str, dict[str, int]]:
    observed: SessionObserved | None = session.observed
    return observed.at_legs if observed is not None else {}


def _at(session: Resource) -> AtDecapsulator:
    observed: SessionObserved | None = session.observed
    return observed.at_decapsulator if observed is not None else AtDecapsulator()


def _missing(world: World, wished: Mapping[str, LegAssigned]) -> str:
    """Return what is not in force yet, for people; empty: everything is."""
    if not world.is_loaded:
        return "its decapsulator has not taken it yet"
    for name, wish in wished.items():
        leg = world.legs.get(name)
        if not _is_as_wished(leg, wish):
            reason = leg.ready.reason if leg is not None and leg.ready is not None and not leg.deleting else ""
            return f"the {wish.role} is not ready yet{f' ({reason})' if reason else ''}"
    return ""


def _is_as_wished(leg: Resource | None, wish: LegAssigned) -> bool:
    return leg is not None and not leg.deleting and leg.assigned == wish and in_force(leg)


async def _make_legs(tx: Transaction, world: World, wished: Mapping[str, LegAssigned]) -> None:
    """Make, change and remove legs; the source is made when all that follows it is ready, and stays when that changes.

    One of another key goes when the new one is in force, which takes its place: meanwhile it copies, and what gets lost is
    counted.
    """
    later = [(name, wish) for name, wish in wished.items() if wish.role != "source"]
    with_source = world.is_loaded and all(_is_as_wished(world.legs.get(name), wish) for name, wish in later)
    for name, leg in world.legs.items():
        if name not in wished and not _holds_place(leg, world, wished):
            await tx.mark_deleting(leg)
    for name, wish in wished.items():
        known = world.legs.get(name)
        if known is not None and not known.deleting:
            await tx.update(known, assigned=wish)
        elif known is None and (wish.role != "source" or with_source):
            made = Resource(
                id="", kind="mirror.leg", name=name, owner=world.session.id, desired=LegDesired(), assigned=wish
            )
            await tx.create(made, {"host": wish.host})


def _holds_place(leg: Resource, world: World, wished: Mapping[str, LegAssigned]) -> bool:
    """Tell whether a leg copies the packets of the port until the source that is wished does."""
    assigned: LegAssigned = leg.assigned
    return assigned.role == "source" and any(
        (wish.role, wish.host, wish.port) == ("source", assigned.host, assigned.port)
        and not _is_as_wished(world.legs.get(name), wish)
        for name, wish in wished.items()
    )


def _words(counts: SessionCounts) -> str:
    """Return the counts in a sentence: what metering and people want to know."""
    return (
        f"{counts.matched} of {counts.seen} packets matched, {counts.sent} were copied ({counts.sent_bytes} bytes), "
        f"{counts.received} received, {counts.lost} lost on the way, {counts.dropped} dropped at the end"
    )
