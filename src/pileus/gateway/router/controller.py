"""The server half of a router: up before the account's first VM, its nodes with the newest document, down when idle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from pileus.compute.vm.types import VmNic, is_of_cloud
from pileus.fleet.builtin import Appliance, macs_of, make_node
from pileus.fleet.manager.types import ROUTERS
from pileus.fleet.node.types import NodeDesired, NodeObserved, answers, in_force
from pileus.gateway.router.document import (
    Pair,
    RouterView,
    document,
    far_routers,
    guest_addresses,
    public_addresses,
    stations,
    with_links,
    with_pair,
)
from pileus.gateway.router.plan import SLOTS, Activity, Member, Membership, activity, membership, slots
from pileus.gateway.router.types import RouterAssigned, RouterObserved
from pileus.gateway.router.view import load_view
from pileus.infra.zone.plan import public_pool
from pileus.infra.zone.types import RouterWish, public_space
from pileus.kernel.clock import Clock
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait, Waiting
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Exhausted, Transaction
from pileus.network.network.types import NetworkObserved
from pileus.node.document import Document, document_hash
from pileus.storage.image.types import is_available

APPLIANCE = Appliance(manager=ROUTERS, role="router", vcpus=1, memory_mib=192)

PAIR_ADDRESSES = {"a": "169.254.255.1", "b": "169.254.255.2"}
"""Of the two nodes of a pair on the guest link (link-local, RFC 3927): they never leave the account's VLAN."""
PAIR_PREFIX = 30
VRRP_ROUTER_ID = 51
PRIORITY = {"a": 110, "b": 100}
RENEWED_AT_ONCE = 3
"""Routers of a zone that are replaced by a newer image at the same time."""
BLOCKED_RECHECK_S = 10.0
LOOK_AGAIN_S = 15.0
"""How often a router that is up looks whether a VM still wants it, besides being told."""


class World(Struct, frozen=True, kw_only=True):
    """What a decision is made of. ``macs``: of the nodes' NICs, by node slot, in their order."""

    router: Resource
    zone: Resource
    networks: Sequence[Resource]
    vms: Sequence[Resource]
    nodes: Mapping[str, Resource]
    in_force: frozenset[str]
    """Slots whose node runs the document that is wished for it now; found once, because a hash reads all of it."""
    macs: Mapping[str, Sequence[str]]
    image: Resource | None
    view: RouterView


class RouterController(Controller):
    """Keeps a router's appliances and their documents as the account's resources want them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Decide whether it is up, claim its address, keep its nodes; gone with the account's last served network."""
        if resource.deleting:
            return Done()
        world = await _world(resource, store)
        if not world.networks and not world.nodes and resource.assigned.active == "no":
            return Done(lambda tx: _leave(tx, world))
        wanted = any(_wants(vm, world.networks) for vm in world.vms)
        idle_s = world.zone.desired.router_idle_s
        assigned: RouterAssigned = resource.assigned
        change = activity(assigned.active, assigned.idle_since, wanted, self._clock(), idle_s)
        if change.active == "yes" and world.image is None and not world.nodes:
            name = world.zone.desired.router_image
            message = f"its image {name} is not there; `pileus image build {name}` makes it"
            return Wait("NoImage", message, 10.0, lambda tx: _tell_networks(tx, world, "waiting", message))
        wished = _settled_assignment(world, change)
        if wished != assigned or _lacks_address(world, wished):
            reason, message = "Starting", "its decisions are being written"
            if assigned.blocked:
                reason, message = "NoPublicAddress", assigned.blocked
            after_s = BLOCKED_RECHECK_S if assigned.blocked else 0.0
            return Wait(reason, message, after_s, lambda tx: _assign(tx, world, wished))
        found = _observe(world)

        async def apply(tx: Transaction) -> None:
            await _keep_nodes(tx, world)
            await _report(tx, world, found)

        if found.state == "idle":
            return Done(apply)
        after_s = min(change.again_s or LOOK_AGAIN_S, LOOK_AGAIN_S)
        if found.state == "starting":
            return Wait("Starting", found.message, after_s, apply)
        return Done(apply, after_s)


async def _world(router: Resource, store: Store) -> World:
    assigned: RouterAssigned = router.assigned
    zone = await store.get(assigned.zone)
    account = router.account_id
    networks = await store.list(Filter(kind="network.network", account_id=account, zone=zone.id), limit=10_000)
    vms = await store.list(Filter(kind="compute.vm", account_id=account, zone=zone.id), limit=100_000)
    children = await store.list(Filter(kind="fleet.node", owner=router.id))
    nodes = {node.name.rpartition("-")[2]: node for node in children}
    macs = {}
    for slot, node in nodes.items():
        vm = next((vm for vm in vms if vm.id == node.assigned.vm), None)
        if vm is not None and vm.assigned.ports:
            macs[slot] = await macs_of(store, vm)
    return World(
        router=router,
        zone=zone,
        networks=[each for each in networks if each.assigned.router != "none" and not each.deleting],
        vms=[vm for vm in vms if not is_of_cloud(vm)],
        nodes=nodes,
        in_force=frozenset(slot for slot, node in nodes.items() if _is_in_force(node)),
        macs=macs,
        image=await store.find("storage.image", "", zone.desired.router_image),
        view=await load_view(store, router),
    )


def _wants(vm: Resource, networks: Iterable[Resource]) -> bool:
    """Tell whether the VM runs, or shall, in one of the networks."""
    is_up = vm.observed is not None and vm.observed.power in ("running", "paused")
    if vm.desired.power == "stopped" and not is_up:
        return False
    words = {nic.network for nic in vm.desired.nics}
    return any(network.id in words or network.name in words for network in networks)


def _redundancy(world: World) -> RouterWish:
    return "redundant" if any(each.assigned.router == "redundant" for each in world.networks) else "single"


def _settled_assignment(world: World, change: Activity) -> RouterAssigned:
    """Return the assignment as it shall be, but for a public address that is still to be claimed."""
    assigned: RouterAssigned = world.router.assigned
    pool = public_pool(world.zone.desired)
    wished = replace(
        assigned, blocked="", active=change.active, idle_since=change.idle_since, redundancy=_redundancy(world)
    )
    if change.active == "no" and world.nodes:
        return wished  # an address goes back when nobody answers for it any more
    if change.active == "no" or pool is None:
        return replace(wished, public_address="", public_prefix=0, public_gateway="")
    return replace(wished, public_prefix=pool.network.prefixlen, public_gateway=str(pool.gateway))


def _lacks_address(world: World, wished: RouterAssigned) -> bool:
    """Tell whether the router needs a public address that it has not claimed."""
    return wished.active == "yes" and bool(world.zone.desired.public_range) and not wished.public_address


async def _assign(tx: Transaction, world: World, wished: RouterAssigned) -> None:
    router = world.router
    space = public_space(world.zone.id)
    if _lacks_address(world, wished):
        pool = public_pool(world.zone.desired)
        assert pool is not None  # the zone has a range
        try:
            number = await tx.claim_number(space, pool.low, pool.high, router.id)
        except Exhausted as error:
            await _note_blocked(tx, world, error.capacity)
            return
        wished = replace(wished, public_address=pool.address(number))
    elif not wished.public_address:
        await tx.release(router.id, space)
    if wished.active == "no":
        await _refuse_wanted(tx, world)
        await _tell_networks(tx, world, "waiting", "")  # from here on a VM that starts waits for the router
    await tx.update(router, assigned=wished)
    if wished.active != router.assigned.active:
        idle_s = world.zone.desired.router_idle_s
        up = wished.active == "yes"
        message = "starts: a VM needs it" if up else f"ends: no VM needed it for {idle_s} s"
        await tx.event(router, "Decided", "Starts" if up else "Ends", f"{router} {message}")


async def _note_blocked(tx: Transaction, world: World, capacity: int) -> None:
    """Say everywhere that no public address is left."""
    range_ = world.zone.desired.public_range
    message = f"no public address is left in {world.zone}: all {capacity} of {range_} are in use"
    await tx.update(world.router, assigned=replace(world.router.assigned, blocked=message))
    await _tell_networks(tx, world, "waiting", message)


async def _refuse_wanted(tx: Transaction, world: World) -> None:
    """Raises: Waiting when a VM came to want the router since the world was read."""
    here = Filter(kind="compute.vm", account_id=world.router.account_id, zone=world.zone.id)
    if any(_wants(vm, world.networks) for vm in await tx.matching(here, limit=100_000) if not is_of_cloud(vm)):
        raise Waiting("Starting", "a VM needs it again", 0.0)


def _members(world: World) -> dict[str, Member]:
    found = {}
    image = world.image
    if image is not None and (image.deleting or not is_available(image)):
        image = None  # none could be made of it: those that are there are good enough
    for slot, node in world.nodes.items():
        found[slot] = Member(
            slot=slot,
            is_current=image is None or node.assigned.footprint.image == image.id,
            in_force=slot in world.in_force and _part(node) != "fault",
            carries=_carries(node, world),
            deleting=node.deleting,
        )
    return found


def _carries(node: Resource, world: World) -> bool:
    """Tell whether the node has the addresses: the only one always, one of a pair when it says so."""
    if world.router.assigned.redundancy != "redundant":
        return True
    return _part(node) == "active"


def _part(node: Resource) -> str:
    """Return what the node says of its part in a pair: active, standby, or fault as long as it has none yet."""
    observed: NodeObserved | None = node.observed
    return str(observed.status.get("redundancy", "")) if observed is not None else ""


async def _keep_nodes(tx: Transaction, world: World) -> None:
    """Make, change and remove the router's nodes."""
    router = world.router
    assigned: RouterAssigned = router.assigned
    wanted = slots(assigned.active, assigned.redundancy)
    members = _members(world)
    change = membership(wanted, members)
    if not await _may_replace(tx, world, change, members):
        change = Membership(make=change.make, remove=tuple(slot for slot in change.remove if slot not in wanted))
    for slot in change.remove:
        await tx.mark_deleting(world.nodes[slot])
    shared = document(world.view)
    for slot in wanted:
        node = world.nodes.get(slot)
        if node is None and slot in change.make[:1] and world.image is not None and _knows_hosts(world):
            empty = NodeDesired(manager=ROUTERS, vdc=assigned.vdc)
            wished = _wished(empty, world, slot, Membership(), shared)
            await make_node(tx, APPLIANCE, world.image, router, _node_name(world, slot), wished)
        elif node is not None and not node.deleting and slot not in change.remove:
            await tx.update(node, desired=_wished(node.desired, world, slot, change, shared))


async def _may_replace(tx: Transaction, world: World, change: Membership, members: Mapping[str, Member]) -> bool:
    """Tell whether nodes of an older image may go now: only a few routers of a zone are renewed at the same time."""
    space = f"renewing/{world.zone.id}"
    old = [member for member in members.values() if not member.is_current]
    if not old and not change.make and all(member.in_force for member in members.values()):
        await tx.release(world.router.id, space)
    if not any(member.slot in (*change.remove, change.hand_over) for member in old):
        return True
    if not await tx.claims(space, world.router.id):
        try:
            await tx.claim_number(space, 1, RENEWED_AT_ONCE, world.router.id)
        except Exhausted:
            return False
    return True


def _knows_hosts(world: World) -> bool:
    """Tell whether each node has a host: another one is made after that, since it avoids that host."""
    return all(node.host for node in world.nodes.values())


def _node_name(world: World, slot: str) -> str:
    return f"{world.router.name[:60]}-{slot}"


def _wished(desired: NodeDesired, world: World, slot: str, change: Membership, shared: Document) -> NodeDesired:
    """Return the node's wish: its NICs with every address they may use, and its document once its NICs have MACs.

    ``shared`` is what all nodes of the router have in theirs.

    A node that gets a NIC keeps the document it has until then.
    """
    pair = _pair(world.router.assigned.redundancy, slot, change)
    nics = _nics(world, pair)
    other = next((node for name, node in world.nodes.items() if name != slot), None)
    macs = world.macs.get(slot, ())
    whole = desired.document
    if len(macs) == len(nics):
        whole = with_links(shared, _node_name(world, slot), *macs)
        whole = with_pair(whole, pair) if pair is not None else whole
    return replace(
        desired,
        nics=nics,
        apart_from=other.id if other is not None else desired.apart_from,
        document=whole,
    )


def _pair(redundancy: RouterWish, slot: str, change: Membership) -> Pair | None:
    """Return what only this node of a pair is told."""
    if redundancy != "redundant":
        return None
    return Pair(
        router_id=VRRP_ROUTER_ID,
        priority=PRIORITY[slot],
        own=f"{PAIR_ADDRESSES[slot]}/{PAIR_PREFIX}",
        peer=next(PAIR_ADDRESSES[each] for each in SLOTS if each != slot),
        yields=change.hand_over == slot,
    )


def _nics(world: World, pair: Pair | None) -> tuple[VmNic, ...]:
    """Return the guest NIC and, in a zone with public addresses, the public one."""
    own = (pair.own.partition("/")[0],) if pair is not None else ()
    guest = VmNic(
        network="",
        attachment="gateway",
        addresses=(*guest_addresses(world.view), *own),
        stations=stations(world.view),
    )
    if not world.router.assigned.public_address:
        return (guest,)
    return guest, VmNic(network="", attachment="public", addresses=public_addresses(world.view))


def _observe(world: World) -> RouterObserved:
    """Return what the router is, from what its nodes say."""
    assigned: RouterAssigned = world.router.assigned
    wanted = slots(assigned.active, assigned.redundancy)
    if not wanted:
        nodes = tuple(node.id for node in world.nodes.values())
        return RouterObserved(state="ending" if nodes else "idle", nodes=nodes)
    alive = {slot: node for slot, node in world.nodes.items() if slot in wanted and not node.deleting}
    good = {slot: node for slot, node in alive.items() if slot in world.in_force}
    carrying = next((node.id for node in good.values() if _carries(node, world)), "")
    reasons = [f"{node}: {_why(node)}" for slot, node in alive.items() if slot not in good]
    message = "; ".join(reasons) or ("" if len(good) == len(wanted) else "its appliance is being made")
    return RouterObserved(
        state=_state(len(good), len(wanted), was_up=_was_up(world)),
        message=message,
        nodes=tuple(node.id for node in world.nodes.values()),
        active_node=carrying,
        hash="-".join(str(node.observed.hash) for node in good.values()),
    )


def _why(node: Resource) -> str:
    """Return why a node is not in force; its own condition may not know yet that it has a newer document to take."""
    return (node.ready.message if node.ready is not None else "") or "it takes its newest document"


def _was_up(world: World) -> bool:
    observed: RouterObserved | None = world.router.observed
    return observed is not None and observed.state in ("ready", "degraded")


def _state(good: int, wanted: int, *, was_up: bool) -> Literal["starting", "ready", "degraded"]:
    if good == wanted:
        return "ready"
    return "degraded" if good or was_up else "starting"


async def _report(tx: Transaction, world: World, found: RouterObserved) -> None:
    """Write what was found, tell the networks, and let those look who wait for it."""
    known = await tx.get(world.router.id)
    if found != known.observed:
        await tx.update(known, observed=found)
        for id in (*(rule.id for rule in world.view.rules), *far_routers(world.view)):
            await tx.enqueue(id)
    if found.state in ("idle", "ending"):
        await _tell_networks(tx, world, "waiting", "")
    elif found.state == "starting":
        await _tell_networks(tx, world, "", f"{world.router} is starting: {found.message}")
    else:
        await _tell_networks(tx, world, "served", "")


async def _tell_networks(tx: Transaction, world: World, state: str, message: str) -> None:
    """Write who serves the networks; ``state`` empty: a served one stays so while its router configures itself."""
    changed = False
    for network in world.networks:
        before: NetworkObserved | None = network.observed
        kept = state or (before.state if before is not None else "waiting")
        if kept == "served" and (before is None or before.state != "served") and not _runs(world, network):
            kept, message = "waiting", f"{world.router} does not run its configuration yet"
        after = NetworkObserved(
            state="served" if kept == "served" else "waiting",
            router=world.router.id,
            message="" if kept == "served" else message,
        )
        if after != before:
            changed = True
            await tx.update(await tx.get(network.id), observed=after)
    if changed:
        for vm in world.vms:
            await tx.enqueue(vm.id)


def _runs(world: World, network: Resource) -> bool:
    """Tell whether a node runs a document that has the network."""
    documents = (world.nodes[slot].desired.document for slot in world.in_force)
    return any(network.id in each.get("networks", {}) for each in documents)


def _is_in_force(node: Resource) -> bool:
    """Tell whether the node runs the document that is wished now; what it was last assigned may be older."""
    return answers(node) and in_force(node) and node.observed.hash == document_hash(node.desired.document)


async def _leave(tx: Transaction, world: World) -> None:
    """Let the router go, unless a network came that needs it: that one made it due again."""
    zone, account = world.zone.id, world.router.account_id
    networks = await tx.matching(Filter(kind="network.network", account_id=account, zone=zone), limit=10_000)
    if not any(network.assigned.router != "none" and not network.deleting for network in networks):
        await tx.mark_deleting(await tx.get(world.router.id))
