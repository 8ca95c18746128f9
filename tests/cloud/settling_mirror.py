"""What mirrors come to once nothing happens any more: sessions that run or say why not, and nothing after the last."""

from __future__ import annotations

from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.mirror.leg.host import spec_of
from pileus.mirror.leg.types import in_force
from pileus.mirror.session.types import SessionAssigned, SessionObserved
from tests.cloud.invariants import Broken
from tests.cloud.settling import LEGITIMATE
from tests.cloud.world import Cloud
from tests.virtual_time import clock

LEAVING_LIMIT_S = 600.0
STOPPED = {"Forbidden", "ApprovalNeeded", "NoNic"}
"""Why a session copies nothing, and has no legs."""
WAITS = {"VmNotPlaced", "NicNotPlugged", "SnifferNotReady"}
"""Why a session cannot do so yet, or not now."""
LEFT = ("mirror.session", "mirror.leg", "mirror.decapsulator")


async def check_sessions(world: Cloud) -> None:
    """Every session copies packets, has ended, or has a reason that holds. Raises: Broken."""
    store = world.store
    for session in await store.list(Filter(kind="mirror.session"), limit=10_000):
        legs = await store.list(Filter(kind="mirror.leg", owner=session.id))
        observed: SessionObserved | None = session.observed
        assert observed is not None
        match observed.state:
            case "running":
                _check_running(world, session, legs)
            case "ended":
                _check_ended(session, legs)
            case _:
                await _check_waiting(store, session, legs)


def _check_running(world: Cloud, session: Resource, legs: list[Resource]) -> None:
    assigned: SessionAssigned = session.assigned
    counts = session.observed.counts
    roles = {"source", "relay", *(["delivery"] if assigned.sniffer else [])}
    if sorted(leg.assigned.role for leg in legs) != sorted(roles):
        raise Broken(f"{session} runs with the legs {legs}")
    for leg in legs:
        kept = world.hosts[leg.host].mirror.legs.get(leg.id)
        if not in_force(leg) or kept is None or kept.spec != spec_of(leg) or leg.assigned.key != assigned.key:
            raise Broken(f"{session} says {session.ready}, its {leg} is {leg.ready}, on its host is {kept}")
    if counts.sent < counts.received + counts.lost:
        raise Broken(f"{session} lost more than it did not get: {counts}")


def _check_ended(session: Resource, legs: list[Resource]) -> None:
    assigned: SessionAssigned = session.assigned
    counts = session.observed.counts
    if legs or assigned.decapsulator or assigned.ended == "no":
        raise Broken(f"{session} has ended, and has {legs} and a place: {assigned}")
    if counts.sent != counts.received + counts.lost:
        raise Broken(f"{session} has ended with counts that are not the sum: {counts}")


async def _check_waiting(store: Store, session: Resource, legs: list[Resource]) -> None:
    ready = session.ready
    assert ready is not None
    if ready.reason in STOPPED and not legs:
        return
    if ready.reason in WAITS or (ready.reason == "Starting" and await _lacks_room(store)):
        return
    vm = await store.get(session.assigned.vm)
    ports = await store.list(Filter(kind="network.port", owner=vm.id))
    raise Broken(f"{session} is not ready for no good reason: {ready}; {legs}, {vm!r}, {ports}")


async def _lacks_room(store: Store) -> bool:
    """Tell whether a decapsulator could not be placed."""
    for node in await store.list(Filter(kind="fleet.node"), limit=10_000):
        vms = await store.list(Filter(kind="compute.vm", owner=node.id))
        if "decapsulator" in node.name and any(vm.ready is not None and vm.ready.reason in LEGITIMATE for vm in vms):
            return True
    return False


async def check_nothing_left(world: Cloud) -> None:
    """Delete every session: legs, decapsulators, their nodes and the account of the platform go. Raises: Broken."""
    for session in await world.store.list(Filter(kind="mirror.session"), limit=10_000):
        await world.delete("mirror.session", session.name, session.account)
    began = clock()
    while left := await _left(world):
        if clock() - began > LEAVING_LIMIT_S:
            raise Broken(f"left of mirrors after the last session: {left}")
        await world.settle(10.0)


async def _left(world: Cloud) -> list[str]:
    rows = [row for kind in LEFT for row in await world.store.list(Filter(kind=kind))]
    nodes = [
        row for row in await world.store.list(Filter(kind="fleet.node"), limit=10_000) if "decapsulator" in row.name
    ]
    legs = [id for host in world.hosts.values() for id in host.mirror.legs]
    platform = ["account platform"] if await world.exists("tenancy.account", "platform") else []
    return [*(f"{row} {row.ready}" for row in [*rows, *nodes]), *legs, *platform]
