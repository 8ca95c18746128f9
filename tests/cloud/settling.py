"""What a cloud must come to once nothing happens any more: a fixed point that is true, and nothing when all is deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import sqlalchemy as sa

from pileus.compute.offering.types import limits
from pileus.compute.vm.capacity import ALL_FREE, need_of, seen
from pileus.compute.vm.placement import fits
from pileus.compute.vm.types import VmObserved, is_of_cloud
from pileus.infra.zone.plan import public_pool
from pileus.infra.zone.types import public_space
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.lab.simulated import SimulatedHost
from pileus.network.port.host import spec_of
from pileus.network.segment.host import spec_of as segment_spec
from pileus.network.segment.plan import with_peers
from pileus.storage.volume.plan import limits_of
from pileus.tenancy.account.types import VmLimits, lowest
from tests.cloud.invariants import DANGLING, Broken
from tests.cloud.world import Cloud, leftovers
from tests.virtual_time import clock

PASS_S = 110.0
"""Three of them outlast the longest back-off and every resync."""
SETTLE_LIMIT_S = 3600.0
GIB = 2**30
LEGITIMATE = {
    "NoVlan",
    "NoAddress",
    "NoCapacity",
    "AddressInUse",
    "PoolFull",
    "ImageNotReady",
    "GuestShutdown",
    "Ended",
}
"""Why a VM may be other than wished when nothing is broken."""

PUBLIC_CLAIMS = sa.text("SELECT DISTINCT owner FROM claim WHERE space = :space")
REVISIONS = sa.text("SELECT id, revision FROM resource ORDER BY id")
TENANTS = sa.text("SELECT kind, name, account, reason FROM resource WHERE account_id <> '' OR kind = 'network.segment'")
CLAIMS = sa.text(
    "SELECT space, value, owner FROM claim WHERE space NOT LIKE 'name/%' AND space NOT LIKE 'version/%'"
    " AND space <> 'zone-number'"
)
USED = sa.text("SELECT space, used FROM budget WHERE used <> 0")
CHARGES = sa.text("SELECT space, owner FROM charge")


async def reach_fixed_point(world: Cloud) -> float:
    """I14: wait until no revision changes for three passes; return the seconds it took. Raises: Broken."""
    began, same, before = clock(), 0, None
    while same < 3:
        if clock() - began > SETTLE_LIMIT_S:
            raise Broken(f"I14: still changing after {SETTLE_LIMIT_S} s: {await _changing(world)}")
        await asyncio.sleep(PASS_S)
        now = await world.store.fetch(REVISIONS)
        same = same + 1 if now == before else 0
        before = now
    return clock() - began - 3 * PASS_S


async def _changing(world: Cloud) -> list[str]:
    before: dict[str, int] = dict(await world.store.fetch(REVISIONS))
    await asyncio.sleep(PASS_S)
    ids = [id for id, revision in await world.store.fetch(REVISIONS) if before.get(id) != revision]
    return [f"{row} {row.ready}" for row in [await world.store.get(id) for id in ids[:3]]]


async def check_truth(world: Cloud) -> None:
    """At a fixed point everything is as it says, and what is not as wished has a reason that holds. Raises: Broken."""
    store = world.store
    for vm in await _all(store, "compute.vm"):
        _check_vm(world, vm, await _lacks_public_address(store, vm))
        await _check_limits(world, vm)
        if vm.ready is not None and vm.ready.reason == "NoCapacity" and not vm.host:
            await _check_no_room(store, vm)
    for volume in await _all(store, "storage.volume"):
        if volume.host:
            _check_volume(world.hosts[volume.host], volume)
    for port in await _all(store, "network.port"):
        _check_port(world, port)
    segments = await _all(store, "network.segment")
    for segment in segments:
        _check_segment(world, segment, segments)
    await _check_parts(store)
    for row in [row for row in await _everything(store) if row.deleting]:
        raise Broken(f"I6: {row} is still being deleted: {row.ready}")


async def _all(store: Store, kind: str) -> list[Resource]:
    return await store.list(Filter(kind=kind), limit=100_000)


async def _everything(store: Store) -> list[Resource]:
    return [row for kind in store.registry for row in await _all(store, kind.name)]


async def _lacks_public_address(store: Store, vm: Resource) -> bool:
    """Tell whether the VM waits for a router that cannot have an address because others really have all of them."""
    ready = vm.ready
    if ready is None or ready.reason != "NetworkNotServed" or "no public address is left" not in ready.message:
        return False
    pool = public_pool((await store.get(vm.zone)).desired)
    assert pool is not None
    holders = [row[0] for row in await store.fetch(PUBLIC_CLAIMS, space=public_space(vm.zone))]
    return len(await store.get_all(holders)) == pool.high - pool.low + 1


def _check_vm(world: Cloud, vm: Resource, is_out_of_addresses: bool) -> None:
    ready = vm.ready
    assert ready is not None
    machine = world.hosts[vm.host].machines.machines.get(vm.id) if vm.host else None
    observed: VmObserved | None = vm.observed
    if ready.status == "true":
        state = machine.state if machine is not None else "stopped"
        if observed is None or state != vm.desired.power or observed.power != state:
            raise Broken(f"{vm} says {ready}, its machine is {state}, wished {vm.desired.power}, told {observed}")
        if machine is not None and state == "running":
            disks = tuple(disk.id for disk in machine.spec.disks)
            nics = tuple(nic.id for nic in machine.spec.nics)
            if sorted(disks) != sorted(vm.assigned.volumes) or sorted(nics) != sorted(vm.assigned.ports):
                raise Broken(f"{vm} has {disks} and {nics}, assigned are {vm.assigned}")
            if len(nics) != len(vm.desired.nics) or len(disks) != 1 + len(vm.desired.volumes):
                raise Broken(f"{vm} has {len(nics)} NICs and {len(disks)} disks, wished {vm.desired}")
    elif ready.reason not in LEGITIMATE and not is_out_of_addresses:
        raise Broken(f"{vm} is not ready for no good reason: {ready}; {vm.desired} {vm.assigned} {observed}")
    elif ready.reason == "Ended" and vm.desired.restart != "never":
        raise Broken(f"{vm} ended and is not restarted: {ready}, {observed}")


async def _check_limits(world: Cloud, vm: Resource) -> None:
    """What a running VM gets is the lowest of what it asks for, and of what offering, account and zone say."""
    machine = world.hosts[vm.host].machines.machines.get(vm.id) if vm.host else None
    if machine is None or machine.state != "running" or vm.ready is None or vm.ready.status != "true":
        return
    store = world.store
    own = (await store.links(vm.id)).get("offering")
    offering = limits((await store.get(own)).desired) if own else VmLimits()
    rest = [(await store.get(id)).desired.limits for id in (vm.account_id, vm.zone)]
    asked = VmLimits(**{word: getattr(vm.desired, word) for word in VmLimits.__struct_fields__})
    wanted = VmLimits() if is_of_cloud(vm) else lowest(asked, offering, *rest)
    throttles = {disk.id: disk.throttle for disk in machine.spec.disks}
    found = throttles[vm.assigned.volumes[0]]
    rates = {world.hosts[vm.host].switch.ports[port].rate_limit_kbps for port in vm.assigned.ports}
    if (found.iops, found.bytes_per_s) != (wanted.iops_limit, wanted.throughput_limit_kib_s * 1024):
        raise Broken(f"{vm} has {found}, wanted {wanted}")
    if rates - {wanted.rate_limit_kbps}:
        raise Broken(f"{vm} has rates {rates}, wanted {wanted}")
    for id in vm.assigned.volumes[1:]:
        further = lowest(limits_of(await store.get(id)), *rest)
        if throttles[id].iops != further.iops_limit:
            raise Broken(f"{vm} has {throttles[id]} on its further disk, wanted {further}")


async def _check_no_room(store: Store, vm: Resource) -> None:
    need = await need_of(store, vm, await store.links(vm.id))
    free: dict[str, Any] = dict(await store.fetch(ALL_FREE))
    hosts = seen(await _all(store, "infra.host"), await _all(store, "storage.pool"), free)
    if any(fits(host, need) for host in hosts):
        raise Broken(f"{vm} waits for room that there is: {need}")


def _check_volume(host: SimulatedHost, volume: Resource) -> None:
    fact = host.pool.volumes.get(volume.id)
    ready = volume.ready
    assert ready is not None
    if ready.status == "true" and (fact is None or fact.size_bytes < volume.desired.size_gib * GIB):
        raise Broken(f"{volume} says {ready}, on its host is {fact}")


def _check_port(world: Cloud, port: Resource) -> None:
    ready = port.ready
    assert ready is not None
    if ready.status != "true":
        if port.assigned is None and ready.reason in {*LEGITIMATE, "NoHost"}:
            return
        raise Broken(f"{port} is not ready: {ready}")
    fact = world.hosts[port.host].switch.ports.get(port.id)
    wanted = spec_of(port)
    if (
        fact is None
        or fact.blocked
        or (fact.vlan, fact.mac, fact.addresses) != (wanted.vlan, wanted.mac, wanted.addresses)
    ):
        raise Broken(f"{port} says ready, on its switch is {fact}, wanted {wanted}")


def _check_segment(world: Cloud, segment: Resource, segments: list[Resource]) -> None:
    ready = segment.ready
    decided = with_peers(segment.assigned, [other.assigned for other in segments])
    if ready is None or ready.status != "true" or segment.assigned != decided:
        raise Broken(f"{segment} is not ready: {ready}, {segment.assigned}, to be {decided}")
    fact = world.hosts[segment.host].switch.segments.get(decided.vlan)
    if fact != segment_spec(segment):
        raise Broken(f"{segment} says ready, on its switch is {fact}, wanted {segment_spec(segment)}")


async def _check_parts(store: Store) -> None:
    """No port or root volume without its place in its VM, and no address claimed that no port has or is wished."""
    vms = {vm.id: vm for vm in await _all(store, "compute.vm")}
    for kind, word in (("network.port", "ports"), ("storage.volume", "volumes")):
        for part in await _all(store, kind):
            if part.owner in vms and part.id not in _parts(vms[part.owner], word):
                raise Broken(f"{part} is no part of {vms[part.owner]!r} any more")
    for space, value, owner in await store.fetch(CLAIMS):
        if space.startswith("attachment/") and owner in vms:
            volume = space.removeprefix("attachment/")
            wished = (await store.links(owner)).values()
            if volume not in _parts(vms[owner], "volumes") and volume not in wished:
                raise Broken(f"{space} {value} is kept by {vms[owner]!r}, which does not have it")


def _parts(vm: Resource, word: str) -> set[str]:
    """Return what is assigned, and what a paused guest could not let go of yet."""
    kept = getattr(vm.observed, word) if vm.observed is not None and vm.observed.power == "paused" else ()
    return {*getattr(vm.assigned, word), *kept}


async def clear(world: Cloud) -> None:
    """I13: delete every account and wait until nothing of them is left anywhere. Raises: Broken."""
    for account in await _all(world.store, "tenancy.account"):
        await world.delete("tenancy.account", account.name)
    began = clock()
    while rows := await world.store.fetch(TENANTS):
        if clock() - began > SETTLE_LIMIT_S:
            raise Broken(f"I13: deleted accounts still have {rows[:5]}")
        await asyncio.sleep(5.0)
    for what in _left(await world.store.fetch(CLAIMS), await world.store.fetch(USED), await world.store.fetch(CHARGES)):
        raise Broken(f"I13: left in the tables: {what}")
    if found := await leftovers(world):
        raise Broken(f"I13: left behind: {found}")
    for word, statement in DANGLING.items():
        if rows := await world.store.fetch(statement):
            raise Broken(f"I13: a {word} that refers to nothing: {rows[:5]}")


def _left(*tables: Any) -> Iterator[Any]:
    for rows in tables:
        yield from rows


# how fast it recovers


async def recovery(world: Cloud, rounds: int = 5) -> dict[str, list[float]]:
    """Return simulated seconds until each kind of accident was made good, measured in quiet."""
    result: dict[str, list[float]] = {}
    if not world.servers or not await _running_vm(world):
        return result
    for _ in range(rounds):
        vm = await _running_vm(world)
        assert vm is not None
        host = world.hosts[vm.host]
        pid = host.machines.machines[vm.id].pid
        host.machines.crash(vm.id)

        async def restarted(host: SimulatedHost = host, id: str = vm.id, pid: int | None = pid) -> bool:
            machine = host.machines.machines[id]
            return machine.state == "running" and machine.pid != pid

        result.setdefault("machine killed", []).append(await _took(restarted))
        await world.stop_agent(vm.host)
        agent = await world.start_agent(vm.host)
        result.setdefault("agent killed", []).append(await _took(_is_set(agent.connected)))
        name = world.servers[0].store.server
        await world.stop_server(world.servers[0])
        await world.start_server(name)
        agent = world.running[vm.host]
        result.setdefault("server killed", []).append(await _took(_is_set(agent.connected)))
        host.switch.crash()
        result.setdefault("switch crashed", []).append(await _took(_unblocked(host)))
        await asyncio.sleep(120.0)  # long enough to count as stable again
    return result


def _is_set(event: asyncio.Event) -> Callable[[], Awaitable[bool]]:
    async def is_set() -> bool:
        return event.is_set()

    return is_set


def _unblocked(host: SimulatedHost) -> Callable[[], Awaitable[bool]]:
    async def unblocked() -> bool:
        return not any(port.blocked for port in host.switch.ports.values())

    return unblocked


async def _took(true: Callable[[], Awaitable[bool]], limit_s: float = 300.0) -> float:
    began = clock()
    while not await true():
        if clock() - began > limit_s:
            raise Broken(f"not made good within {limit_s} s")
        await asyncio.sleep(0.05)
    return clock() - began


async def _running_vm(world: Cloud) -> Resource | None:
    for vm in await _all(world.store, "compute.vm"):
        ready = vm.ready is not None and vm.ready.status == "true"
        if ready and vm.desired.power == "running" and vm.desired.restart != "never":
            return vm
    return None
