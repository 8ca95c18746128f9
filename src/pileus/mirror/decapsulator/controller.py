"""The server half of a decapsulator: its node with the newest document, gone when no session needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from pileus.compute.vm.types import VmNic
from pileus.fleet.builtin import Appliance, macs_of, make_node
from pileus.fleet.manager.types import MIRRORS
from pileus.fleet.node.types import NodeDesired, answers
from pileus.infra.zone.types import ZoneDesired
from pileus.kernel.clock import Clock
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.mirror.decapsulator.plan import LINKS, document, refused
from pileus.mirror.decapsulator.types import DecapsulatorAssigned, DecapsulatorObserved
from pileus.mirror.platform import tidy
from pileus.mirror.session.types import slot_space
from pileus.node.mirror import SESSIONS_MAX

APPLIANCE = Appliance(manager=MIRRORS, role="decapsulator", vcpus=1, memory_mib=256)
NICS = (VmNic(network="", attachment="mirror"), VmNic(network="", attachment="mirror"))
LOOK_AGAIN_S = 15.0


class World(Struct, frozen=True, kw_only=True):
    """What a decision is made of."""

    own: Resource
    zone: Resource
    node: Resource | None
    macs: Sequence[str]
    sessions: Sequence[Resource]
    image: Resource | None
    sibling: str = ""
    """The node of another decapsulator of the zone, whose host is avoided."""
    zone_has_sessions: bool = False
    """Whether sessions are at another one: this one stays to take over."""


class DecapsulatorController(Controller):
    """Keeps a decapsulator's appliance and its document as the sessions want them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Keep the node, or let everything go once it was idle for long enough."""
        if resource.deleting:
            return Done()
        world = await _world(resource, store)
        assigned: DecapsulatorAssigned = resource.assigned
        zone: ZoneDesired = world.zone.desired
        is_spare = world.zone_has_sessions and assigned.number < zone.decapsulators
        idle_since = 0.0 if world.sessions or is_spare else assigned.idle_since or self._clock()
        left_s = idle_since + zone.decapsulator_idle_s - self._clock() if idle_since else 0.0
        if idle_since and (left_s <= 0 or assigned.number >= zone.decapsulators):
            return Done(lambda tx: _leave(tx, resource))
        if world.image is None and world.node is None:
            message = f"its image {zone.router_image} is not there; `pileus image build {zone.router_image}` makes it"
            return Wait("NoImage", message, 10.0, lambda tx: _note_idle(tx, resource, idle_since))
        found = _observe(world)

        async def apply(tx: Transaction) -> None:
            await _keep_node(tx, world)
            own = await tx.get(resource.id)
            await tx.update(own, assigned=replace(own.assigned, idle_since=idle_since), observed=found)
            await _wake_sessions(tx, world, found)

        return Done(apply, min(left_s, LOOK_AGAIN_S) if idle_since else LOOK_AGAIN_S)

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Let go of what was made for the first one."""
        await tidy(tx, resource)


async def _world(own: Resource, store: Store) -> World:
    assigned: DecapsulatorAssigned = own.assigned
    zone = await store.get(assigned.zone)
    nodes = await store.list(Filter(kind="fleet.node", owner=own.id))
    node = nodes[0] if nodes else None
    held = tuple(await store.queue(slot_space(own.id), SESSIONS_MAX))
    here = Filter(kind="mirror.session", ids=held)
    sessions = await store.list(here, limit=SESSIONS_MAX) if held else []
    others = await _others(store, own)
    return World(
        own=own,
        zone=zone,
        node=node,
        macs=await _macs(store, node),
        sessions=sessions,
        image=await store.find("storage.image", "", zone.desired.router_image),
        sibling=next(filter(None, (each.observed.node for each in others if each.observed is not None)), ""),
        zone_has_sessions=any([await store.queue(slot_space(each.id), 1) for each in others]),
    )


async def _macs(store: Store, node: Resource | None) -> list[str]:
    if node is None or node.assigned is None or not node.assigned.vm:
        return []
    found = await store.list(Filter(kind="compute.vm", ids=(node.assigned.vm,)))
    return await macs_of(store, found[0]) if found else []


async def _others(store: Store, own: Resource) -> list[Resource]:
    found = await store.list(Filter(kind=own.kind, account_id=own.account_id, zone=own.zone))
    return [each for each in found if each.id != own.id]


async def _keep_node(tx: Transaction, world: World) -> None:
    """Make the node, or bring it the newest document; until its NICs have MACs it keeps the one it has."""
    node = world.node
    if node is None:
        assert world.image is not None  # without it the decapsulator waits
        assigned: DecapsulatorAssigned = world.own.assigned
        first = NodeDesired(manager=MIRRORS, vdc=assigned.vdc, nics=NICS, apart_from=world.sibling)
        await make_node(tx, APPLIANCE, world.image, world.own, f"decapsulator-{world.own.name}"[:63], first)
        return
    if node.deleting or len(world.macs) != len(LINKS):
        return
    wished = document(world.macs, world.sessions)
    if node.desired.document != wished:
        await tx.update(node, desired=replace(node.desired, document=wished))


def _observe(world: World) -> DecapsulatorObserved:
    """Return what the decapsulator is, from what its node says."""
    node = world.node
    before: DecapsulatorObserved | None = world.own.observed
    was_up = before is not None and before.state in ("ready", "down")
    if node is None or not answers(node) or "links" not in node.desired.document or not node.observed.hash:
        why = (
            node.ready.message if node is not None and node.ready is not None else ""
        ) or "its appliance is being made"
        return DecapsulatorObserved(
            state="down" if was_up else "starting",
            message=why,
            node=node.id if node is not None else "",
            at=node.host if node is not None else "",
            sessions=len(world.sessions),
            path=before.path if before is not None else "",
            refused=before.refused if before is not None else {},
        )
    status: dict[str, Any] = node.observed.status
    return DecapsulatorObserved(
        state="ready",
        node=node.id,
        at=node.host,
        path=str(status.get("path", ""))[:20],
        sessions=len(world.sessions),
        refused=refused(status),
    )


async def _wake_sessions(tx: Transaction, world: World, found: DecapsulatorObserved) -> None:
    """Let those look that wait for it, and all of them when it came, went or got its host."""
    before: DecapsulatorObserved | None = world.own.observed
    came_or_went = before is None or (before.state, before.at) != (found.state, found.at)
    for session in world.sessions:
        if came_or_went or session.observed is None or session.observed.state != "running":
            await tx.enqueue(session.id)
    if came_or_went:
        for session in await tx.matching(
            Filter(kind="mirror.session", zone=world.zone.id, ready="false"), limit=10_000
        ):
            await tx.enqueue(session.id)


async def _note_idle(tx: Transaction, own: Resource, idle_since: float) -> None:
    await tx.update(own, assigned=replace(own.assigned, idle_since=idle_since))


async def _leave(tx: Transaction, own: Resource) -> None:
    """Let it go, unless a session came that needs it: that one made it due again."""
    if not await tx.claimed(slot_space(own.id)):
        await tx.mark_deleting(await tx.get(own.id))
