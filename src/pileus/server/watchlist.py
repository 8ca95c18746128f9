"""The appliances of one watcher as the rows say: read whole at first and now and then, between that only what changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from msgspec import Struct

from pileus.kernel.changes import Changes, ids_of, read_all
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.monitor.monitor.types import MonitorDesired
from pileus.monitor.policy.plan import engine_policy
from pileus.monitor.scan.types import OVER
from pileus.server.watched import Appliance, described, described_by

WHOLE_S = 600.0
"""How late a change would be seen that was missed."""
PAGE = 1000


class News(Struct):
    """What became of it since it was read last; VMs."""

    is_other: bool = False
    """Whether the monitor's settings or its policies are others."""
    begun: set[str] = set()
    """New ones, and those that came back with another epoch."""
    renamed: set[str] = set()
    ended: set[str] = set()
    pushed: set[str] = set()
    """Those of which the VM's or the node's row is another."""
    spoken: set[str] = set()
    """Those of which the node's row is another."""
    scanned: set[str] = set()

    @property
    def is_amended(self) -> bool:
        """Whether the engine is to watch others, or otherwise."""
        return bool(self.begun or self.renamed or self.ended)


class Watchlist:
    """What one watcher has."""

    def __init__(self, store: Store, watcher: Resource) -> None:
        self.by_vm: dict[str, Appliance] = {}
        self.desired = MonitorDesired()
        self._store, self._watcher = store, watcher
        self._monitor: str = watcher.assigned.monitor
        self._policies: dict[str, dict[str, object]] = {}
        self._vm_of_row: dict[str, str] = {}
        self._vm_of_node: dict[str, str] = {}
        """Of all nodes of the account: one may be watched later."""
        self._node_of: dict[str, str] = {}
        self._changes = Changes(store, watcher.account_id)
        self._looked_at = float("-inf")

    async def follow(self) -> News:
        """Read what changed. Raises: NotFound when the monitor is gone."""
        now = self._store.clock()
        if 0 <= now - self._looked_at < WHOLE_S:
            return await self._take(await self._changes.news())
        await self._changes.begin()
        news = await self._take(await self._everything())
        self._looked_at = now
        return news

    def document(self) -> dict[str, object]:
        """Return what the engine is to do."""
        desired = self.desired
        return {
            "settings": {
                "poll_s": desired.poll_s, "misses": desired.misses, "hung_s": desired.hung_s,
                "seed": int(self._monitor[-12:], 16),
            },
            "appliances": self.described(self.by_vm),
            "policies": self._policies,
        }  # fmt: skip

    def described(self, vms: Iterable[str]) -> dict[str, object]:
        """Return these appliances as the engine's document says them."""
        return {vm: described(self.by_vm[vm]) for vm in vms}

    async def _everything(self) -> dict[str, str]:
        """Return the ids of all that is read, with those that are known: they may be gone."""
        found = {self._monitor: "monitor.monitor", "": "monitor.policy"}
        found |= dict.fromkeys(self._vm_of_row, "monitor.state") | dict.fromkeys(self._vm_of_node, "fleet.node")
        found |= dict.fromkeys(self.by_vm, "compute.vm")
        account = self._watcher.account_id
        for filter in (
            Filter(kind="fleet.node", account_id=account),
            Filter(kind="monitor.state", owner=self._monitor),
            Filter(kind="monitor.scan", account_id=account),
        ):
            after = ""
            while rows := await self._store.list_rows(filter, after=after, limit=PAGE):
                found |= {row[0]: filter.kind for row in rows}
                after = rows[-1][0]
                await asyncio.sleep(0)
        return found

    async def _take(self, changed: dict[str, str]) -> News:
        news = News()
        if not changed:
            return news
        if self._monitor in changed:
            before, self.desired = self.desired, (await self._store.get(self._monitor)).desired
            news.is_other = before != self.desired
        if "monitor.policy" in changed.values():
            earlier, self._policies = self._policies, await self._read_policies()
            news.is_other = news.is_other or earlier != self._policies
        await self._take_nodes(ids_of(changed, "fleet.node"), news)
        await self._take_rows(ids_of(changed, "monitor.state"), news)
        vms = [id for id in ids_of(changed, "compute.vm") if id in self.by_vm and id not in news.begun]
        await self._take_vms(vms, news)
        news.scanned = self._note_scans(await read_all(self._store, "monitor.scan", ids_of(changed, "monitor.scan")))
        if news.begun:
            scans = await self._store.list_all(Filter(kind="monitor.scan", account_id=self._watcher.account_id))
            self._note_scans(scan for scan in scans if scan.assigned.vm in news.begun)
        return news

    async def _read_policies(self) -> dict[str, dict[str, object]]:
        policies = await self._store.list_all(Filter(kind="monitor.policy", account_id=self._watcher.account_id))
        return {
            policy.id: engine_policy(policy)
            for policy in policies
            if not policy.deleting and (await self._store.links(policy.id)).get("monitor") == self._monitor
        }

    async def _take_nodes(self, ids: list[str], news: News) -> None:
        found = {node.id: node for node in await read_all(self._store, "fleet.node", ids)}
        for id in ids:
            node = found.get(id)
            vm = node.assigned.vm if node is not None and node.assigned is not None else self._vm_of_node.pop(id, "")
            if node is not None and vm:
                self._vm_of_node[id], self._node_of[vm] = vm, id
            elif self._node_of.get(vm) == id:
                del self._node_of[vm]
            known = self.by_vm.get(vm)
            if known is not None and _is_other(known.node, node):
                known.node = node
                news.pushed.add(vm)
                news.spoken.add(vm)

    async def _take_rows(self, ids: list[str], news: News) -> None:
        found = {row.id: row for row in await read_all(self._store, "monitor.state", ids)}
        begun: list[Resource] = []
        for id in ids:
            row, known = found.get(id), self.by_vm.get(self._vm_of_row.get(id, ""))
            if row is None or row.deleting or row.assigned.watcher != self._watcher.id:
                if known is not None:
                    self._end(known, news)
            elif known is None:
                begun.append(row)
            else:
                if known.row.assigned.epoch != row.assigned.epoch:
                    news.begun.add(row.assigned.vm)
                known.row = row
        await self._begin(begun, news)

    def _end(self, known: Appliance, news: News) -> None:
        vm = known.row.assigned.vm
        del self._vm_of_row[known.row.id], self.by_vm[vm]
        news.ended.add(vm)

    async def _begin(self, rows: list[Resource], news: News) -> None:
        ids = [row.assigned.vm for row in rows]
        vms = {vm.id: vm for vm in await read_all(self._store, "compute.vm", ids)}
        nodes = {
            node.id: node
            for node in await read_all(
                self._store, "fleet.node", [self._node_of[id] for id in ids if id in self._node_of]
            )
        }
        for row in rows:
            vm = row.assigned.vm
            self.by_vm[vm] = Appliance(row=row, vm=vms.get(vm), node=nodes.get(self._node_of.get(vm, "")))
            self._vm_of_row[row.id] = vm
            news.begun.add(vm)
            news.ended.discard(vm)

    async def _take_vms(self, ids: list[str], news: News) -> None:
        found = {vm.id: vm for vm in await read_all(self._store, "compute.vm", ids)}
        for id in ids:
            known, vm = self.by_vm[id], found.get(id)
            if not _is_other(known.vm, vm):
                continue
            if vm is not None and described_by(known.vm) != described_by(vm):
                news.renamed.add(id)
            known.vm = vm
            news.pushed.add(id)

    def _note_scans(self, scans: Iterable[Resource]) -> set[str]:
        ended = set()
        for scan in scans:
            known = self.by_vm.get(scan.assigned.vm)
            if known is not None and scan.observed is not None and scan.observed.state in OVER and not scan.deleting:
                said = {"state": scan.observed.state, "at": scan.assigned.ended_at, "where": scan.observed.message}
                known.findings[scan.assigned.signature_name] = said
                ended.add(scan.assigned.vm)
        return ended


def _is_other(known: Resource | None, found: Resource | None) -> bool:
    return (known.revision if known is not None else None) != (found.revision if found is not None else None)
