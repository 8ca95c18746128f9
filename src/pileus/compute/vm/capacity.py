"""What placement knows of the hosts: their rows, and what is free of their budgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from msgspec.structs import replace

from pileus.compute.vm.placement import Candidate, Need
from pileus.compute.vm.types import VmAssigned, VmDesired, is_of_cloud
from pileus.infra.host.types import HostDesired
from pileus.kernel.kind import Resource
from pileus.kernel.quota import space
from pileus.kernel.reader import Reader
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.store.tables import budget
from pileus.kernel.transaction import Transaction

ALL_FREE = sa.select(budget.c.space, budget.c.capacity - budget.c.used)


async def need_of(reader: Reader, vm: Resource, links: dict[str, str]) -> Need:
    """Return what the VM needs of a host: room for its root volume, and for those volumes that are on none yet."""
    assigned: VmAssigned = vm.assigned
    desired: VmDesired = vm.desired
    only_host, disk_gib = "", assigned.disk_gib
    for position in range(len(desired.volumes)):
        volume = await reader.get(links[f"volumes.{position}.volume"])
        only_host = volume.host or only_host
        disk_gib += 0 if volume.host else volume.desired.size_gib
    return Need(
        zone=assigned.zone,
        vcpus=assigned.vcpus,
        memory_mib=assigned.memory_mib,
        disk_gib=disk_gib,
        only_host=only_host,
        avoid=await _host_to_avoid(reader, desired),
        uefi="yes" if assigned.firmware == "uefi" and not assigned.append else "no",
    )


async def candidates(tx: Transaction, vm: Resource) -> tuple[Need, list[Candidate]]:
    """Return what the VM needs, and all hosts as they are inside this transaction."""
    need = await need_of(tx, vm, await tx.links(vm.id))
    hosts = await tx.matching(Filter(kind="infra.host", account_id=""), limit=100_000)
    pools = await tx.matching(Filter(kind="storage.pool", account_id=""), limit=100_000)
    free = dict(await tx.statement(ALL_FREE))
    found = seen(hosts, pools, free)
    return for_role(need, vm, found), found


def seen(hosts: Sequence[Resource], pools: Sequence[Resource], free: dict[str, Any]) -> list[Candidate]:
    """Return the hosts as candidates, given what is free of every budget."""
    by_host = {pool.host: pool.id for pool in reversed(pools)}  # the first pool of a host takes its volumes
    return [
        Candidate(
            host=host.id,
            name=host.name,
            zone=host.zone,
            vcpus=int(free.get(space(host.id, "vcpus"), 0)),
            memory_mib=int(free.get(space(host.id, "memory_mib"), 0)),
            disk_gib=int(free.get(space(by_host.get(host.id, ""), "disk_gib"), 0)),
            pool=by_host.get(host.id, ""),
            refuses=_refuses(host),
            roles=host.desired.roles,
            public=host.observed.has_public if host.observed is not None else "no",
            uefi=host.observed.has_uefi if host.observed is not None else "no",
        )
        for host in hosts
    ]


def _refuses(host: Resource) -> str:
    desired: HostDesired = host.desired
    if host.deleting:
        return "Deleting"
    if desired.scheduling == "cordoned":
        return "Cordoned"
    ready = host.ready
    return "" if ready is not None and ready.status == "true" else (ready.reason if ready else "NotReady")


async def _host_to_avoid(reader: Reader, desired: VmDesired) -> str:
    if desired.appliance is None or not desired.appliance.apart_from:
        return ""
    other = await reader.find_id(desired.appliance.apart_from)
    return other.host if other is not None else ""


def for_role(need: Need, vm: Resource, hosts: Sequence[Candidate]) -> Need:
    """Return what the VM needs of these hosts.

    An appliance goes to the zone's routing hosts where there are any, one with a public NIC to those that have an
    uplink to the public segment where there are any.
    """
    if not is_of_cloud(vm):
        return need
    there = [each for each in hosts if each.zone == need.zone and not each.refuses]
    routing = [each for each in there if "routing" in each.roles]
    wants_public = any(nic.attachment == "public" for nic in vm.desired.nics)
    has_public = any(each.public == "yes" for each in routing or there)
    return replace(
        need, role="routing" if routing else "compute", public="yes" if wants_public and has_public else "no"
    )


class HostTable:
    """All hosts in memory for fast placement: read again when old, lowered by what this server placed since."""

    MAX_AGE_S = 0.5

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read_at = float("-inf")
        self._hosts: dict[str, Candidate] = {}

    async def hosts(self) -> list[Candidate]:
        """Return the hosts, at most MAX_AGE_S old; charges in the transaction are what counts in the end."""
        now = self._store.clock()
        if not 0 <= now - self._read_at < self.MAX_AGE_S:
            hosts = await self._all("infra.host")
            pools = await self._all("storage.pool")
            free: dict[str, Any] = dict(await self._store.fetch(ALL_FREE))
            self._hosts = {candidate.host: candidate for candidate in seen(hosts, pools, free)}
            self._read_at = now
        return list(self._hosts.values())

    async def _all(self, kind: str) -> list[Resource]:
        return await self._store.list(Filter(kind=kind, account_id=""), limit=100_000)

    def take(self, host: str, need: Need) -> None:
        """Lower what is thought free of a host."""
        known = self._hosts.get(host)
        if known is not None:
            self._hosts[host] = replace(
                known,
                vcpus=known.vcpus - need.vcpus,
                memory_mib=known.memory_mib - need.memory_mib,
                disk_gib=known.disk_gib - need.disk_gib,
            )

    def forget(self) -> None:
        """Read again at the next call: what was thought free was not."""
        self._read_at = float("-inf")
