"""Servers run monitors' watchers, each under a lease: they bring an engine what is known, and carry out what it decides.

The engine is the same wherever it runs; this is its hands. What it decided is written in one transaction with the rows
that it decided from, fenced by the lease and by the epoch of each appliance: a watcher that lost either writes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec
import structlog
from msgspec.structs import replace

from pileus.fleet.node.types import NodeAssigned, answers
from pileus.fleet.vitals import Vitals
from pileus.kernel.errors import LeaseLost, NotFound, PileusError, Transient
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.lease import Lease, check, give_back, is_free, renew, take
from pileus.kernel.store import statements as sql
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.monitor.monitor.types import APPLIANCES_MAX
from pileus.monitor.moving import move_in
from pileus.monitor.watcher.types import LEASE_S, WatcherObserved
from pileus.server.deciding import Allowance, Deciding
from pileus.server.minds import Away, Here, Links, Mind
from pileus.server.watched import (
    Appliance,
    as_remembered,
    counted,
    from_rows,
    is_other,
)
from pileus.server.watchlist import News, Watchlist

log = structlog.get_logger()

LOOK_S = 1.0
"""How late a watcher that nobody runs is seen."""
RENEW_S = 3.0
STEP_MIN_S = 0.02
"""Between two steps: what changes at the same time is heard at the same time."""
PAUSE_S = 0.5
"""Between two polls of an appliance, whatever an engine wants: a customer's VM may be one."""
POLLS_MAX = 16
"""Hosts asked at the same time."""
PRESENT_S = 8.0
"""An agent says that it lives every 5 s: one that was not heard for longer is between two servers, and its rows are old."""
KINDS = (
    "monitor.monitor", "monitor.policy", "monitor.state", "monitor.watcher", "monitor.scan", "compute.vm", "fleet.node",
)  # fmt: skip
FINDINGS = "findings"
COUNTERS = ("disk_bytes", "disk_operations", "net_bytes")
"""Known from polls, and from what hosts report of them now and then."""
OF_NODE = ("node", "boot_id", "hash", "version", "status")
"""What the node itself says."""


class Hosts(Links, Protocol):
    """The way to the hosts' agents."""

    async def vitals(self, host_id: str, vm_ids: Iterable[str], timeout_s: float = 2.0) -> dict[str, Vitals]:
        """Return what each VM is now. Raises: Transient when the host does not answer."""


class Watching:
    """Takes watchers that nobody runs, and runs each in a task."""

    def __init__(self, store: Store, hub: Hub, hosts: Hosts) -> None:
        self._store, self._hub, self._hosts = store, hub, hosts
        self._runs: dict[str, tuple[asyncio.Task[None], Lease]] = {}
        self._allowances: dict[str, Allowance] = {}
        """By account."""

    async def look(self) -> None:
        """Take what is free, then wait for a change."""
        with self._hub.watch(("kind", "monitor.watcher")) as changes:
            for watcher in await self._store.list(Filter(kind="monitor.watcher"), limit=APPLIANCES_MAX):
                if watcher.deleting or watcher.id in self._runs:
                    continue
                if await is_free(self._store, watcher.id, LEASE_S):
                    await self._take(watcher)
            await changes.wait(LOOK_S)

    async def close(self) -> None:
        """End all of them, and let other servers take them at once."""
        leases = await self.kill()
        for lease in leases:
            with contextlib.suppress(PileusError):
                await self._store.write(functools.partial(give_back, lease=lease))

    async def kill(self) -> list[Lease]:
        """End all of them as a server that dies does, and return the leases that they had."""
        runs = dict(self._runs)
        for task, _ in runs.values():
            task.cancel()
        await asyncio.gather(*(task for task, _ in runs.values()), return_exceptions=True)
        return [lease for _, lease in runs.values()]

    async def _take(self, watcher: Resource) -> None:
        lease = await self._store.write(lambda tx: take(tx, watcher.id, self._store.server, LEASE_S))
        if lease is None:
            return
        allowance = self._allowances.setdefault(watcher.account_id, Allowance(self._store.clock()))
        run = Run(self._store, self._hub, self._hosts, watcher, lease, allowance)
        task = asyncio.create_task(self._go(run), name=f"watcher {watcher.name}")
        self._runs[watcher.id] = (task, lease)
        task.add_done_callback(lambda done: self._ended(watcher.id, done))

    def _ended(self, id: str, done: asyncio.Task[None]) -> None:
        self._runs.pop(id, None)
        if not done.cancelled() and done.exception() is not None:
            log.error("defect in a watcher; it is run again", id=id, exc_info=done.exception())

    async def _go(self, run: Run) -> None:
        try:
            await run.go()
        except (LeaseLost, NotFound) as ended:
            log.info("a watcher is run here no more", id=run.lease.id, reason=ended.message)
        except PileusError as failed:
            log.info("a watcher failed here", id=run.lease.id, error=failed.message)
            await asyncio.sleep(LOOK_S)
            with contextlib.suppress(PileusError):
                await self._store.write(functools.partial(give_back, lease=run.lease))


class Run:
    """One watcher at work."""

    def __init__(
        self, store: Store, hub: Hub, hosts: Hosts, watcher: Resource, lease: Lease, allowance: Allowance
    ) -> None:
        self.lease = lease
        self._store, self._hub, self._hosts = store, hub, hosts
        self._watcher = watcher
        self._mind: Mind
        self._list = Watchlist(store, watcher)
        self._deciding = Deciding(store, watcher, lease, self._list, allowance)
        self._appliances = self._list.by_vm
        self._is_configured = False
        self._renewed_at = 0.0
        self._heard: list[dict[str, Any]] = []
        self._missed: list[str] = []
        self._polls: dict[str, asyncio.Task[None]] = {}
        """Host -> the poll that is under way."""
        self._unasked: dict[str, set[str]] = defaultdict(set)
        """Host -> VMs that are asked when its poll is done."""
        self._wake: Callable[[], None] = lambda: None

    async def go(self) -> None:
        """Work until the watcher is gone or the lease is lost. Raises: LeaseLost, NotFound, Transient."""
        with self._hub.watch(*(("kind", kind) for kind in KINDS)) as changes:
            self._wake = changes.wake
            try:
                self._mind = await self._open()
                try:
                    await move_in(self._store, self.lease, self._watcher.assigned.monitor, self._mind.inventory)
                    while True:
                        after_s = await self._turn()
                        await asyncio.sleep(STEP_MIN_S)
                        await changes.wait(after_s)
                finally:
                    self._deciding.forget()
                    await self._mind.close()
            except Transient as failed:
                await self._say(WatcherObserved(state="lost", server=self._store.server, message=failed.message))
                raise
            finally:
                self._unasked.clear()
                polls = list(self._polls.values())
                for task in polls:
                    task.cancel()
                await asyncio.gather(*polls, return_exceptions=True)

    async def _open(self) -> Mind:
        """Return the engine. Raises: Transient while its appliance does not answer."""
        if self._watcher.desired.form == "server":
            return Here()
        nodes = await self._store.list(Filter(kind="fleet.node", owner=self._watcher.id))
        assigned: NodeAssigned | None = nodes[0].assigned if nodes else None
        if assigned is None or not assigned.host or not answers(nodes[0]):
            raise Transient("its appliance does not answer yet", code="no-answer")
        return await Away.open(self._hosts, assigned.host, assigned.vm)

    async def _turn(self) -> float:
        """Do all that is due, and return in how many seconds something is."""
        await self._renew()
        await self._follow()
        heard, self._heard = self._heard, []
        if waiting := {report["vm"]: report for report in heard if self._deciding.holds(report["vm"])}:
            # Of an appliance with much to be done about it, only the newest is heard, when that is written.
            self._heard = list(waiting.values())
            heard = [report for report in heard if report["vm"] not in waiting]
        missed, self._missed = self._missed, []
        work = await self._mind.step(heard, missed, self._store.clock())
        await self._deciding.write(work)
        for vm in work.polls:
            self._poll(vm)
        wait_s = self._deciding.wait_s()
        longest_s = RENEW_S if wait_s is None else min(wait_s, RENEW_S)
        return min(max(work.next_at - self._store.clock(), 0.0), longest_s)

    async def _renew(self) -> None:
        now = self._store.clock()
        if 0 <= now - self._renewed_at < RENEW_S:
            return
        await self._store.write(lambda tx: renew(tx, self.lease, LEASE_S))
        self._renewed_at = now
        if (await self._store.get(self._watcher.id)).deleting:
            raise LeaseLost("the watcher is being deleted")

    # what changed

    async def _follow(self) -> None:
        """Read what changed since the last turn: configure the engine anew, or let it hear of appliances."""
        is_new = not self._is_configured
        news = await self._list.follow()
        if is_new or news.is_other or (news.is_amended and not await self._amend(news)):
            await self._mind.configure(self._list.document())
            self._is_configured = True
        if is_new or news.is_amended:
            count = len(self._appliances)
            await self._say(WatcherObserved(state="working", server=self._store.server, appliances=count))
        for vm in news.begun | news.pushed | news.scanned:
            if vm in self._appliances:
                self._hear(self._appliances[vm], vm in news.spoken, vm in news.scanned)

    async def _amend(self, news: News) -> bool:
        vms = (news.begun | news.renamed) & self._appliances.keys()
        return await self._mind.amend({"appliances": self._list.described(vms), "gone": sorted(news.ended)})

    def _hear(self, known: Appliance, is_fresh: bool, has_answered: bool) -> None:
        """Let the engine hear what its host pushed of an appliance. ``is_fresh``: its node's row is another, just now.
        ``has_answered``: a scan, just now."""
        if known.vm is None:
            return
        has_spoken = known.node is not None and known.node.observed != known.said
        is_now = known.node is not None and (has_answered or (has_spoken and is_fresh))
        if known.heard is None and not is_now and is_other(known):
            # The watcher before may have heard newer words than its row has: only the node knows.
            known.said = known.node.observed if known.node is not None else None
            self._poll(known.vm.id)
            return
        vitals = from_rows(known.vm, known.node, is_now)
        if not has_spoken and known.node is not None and known.heard is not None:
            # What it said to a poll may be newer than its row.
            vitals = replace(vitals, **{word: getattr(known.heard, word) for word in OF_NODE})
        known.said = known.node.observed if known.node is not None else None
        self._hear_of(known.vm.id, "push", vitals)

    def _hear_of(self, vm: str, origin: str, vitals: Vitals, has_counters: bool = False) -> None:
        """Tell the engine at the next step; what was found in the appliance is said with what it says itself."""
        known = self._appliances.get(vm)
        if known is None:
            return
        known.heard = vitals = as_remembered(known, vitals)
        plain: dict[str, Any] = msgspec.to_builtins(vitals)
        plain["status"] = {**vitals.status, FINDINGS: dict(known.findings)}
        if not has_counters:
            for counter in COUNTERS:
                del plain[counter]
        self._heard.append({"vm": vm, "origin": origin, "at": self._store.clock(), "vitals": plain})

    # polls

    def _poll(self, vm: str) -> None:
        """Ask its host for the VM, soon: one question to a host at a time, for all that are due."""
        known = self._appliances.get(vm)
        host = known.vm.host if known is not None and known.vm is not None else ""
        if known is None or not host:
            self._missed.append(vm)
            return
        now = self._store.clock()
        if 0 <= now - known.polled_at < PAUSE_S:
            return
        known.polled_at = now
        self._unasked[host].add(vm)
        if host not in self._polls and len(self._polls) < POLLS_MAX:
            self._ask(host)

    def _ask(self, host: str) -> None:
        self._polls[host] = asyncio.create_task(self._asked(host, self._unasked.pop(host)))

    async def _asked(self, host: str, vms: set[str]) -> None:
        try:
            await self._look_at(host, vms)
        finally:
            del self._polls[host]
            for waiting in list(self._unasked)[: POLLS_MAX - len(self._polls)]:
                if waiting not in self._polls:
                    self._ask(waiting)
            self._wake()

    async def _look_at(self, host: str, vms: set[str]) -> None:
        try:
            found = await self._hosts.vitals(host, sorted(vms))
        except Transient as failed:
            found = {}
            if failed.code == "no-agent" and await self._speaks_elsewhere(host):
                await self._take_the_rows(vms)
                vms = set()
        for vm in vms:
            vitals = found.get(vm)
            if vitals is None or vitals.process == "unknown":
                self._missed.append(vm)
            else:
                self._hear_of(vm, "poll", vitals, has_counters=True)

    async def _speaks_elsewhere(self, host: str) -> bool:
        """Tell whether the host's agent speaks with another server, lately: then what it reports is in the rows."""
        rows = await self._store.fetch(sql.PRESENCE, host=host)
        return bool(rows) and rows[0][1] != self._store.server and self._store.clock() - rows[0][0] < PRESENT_S

    async def _take_the_rows(self, vms: Iterable[str]) -> None:
        for vm in vms:
            known = self._appliances.get(vm)
            if known is not None and known.vm is not None:
                said = from_rows(known.vm, known.node, True)
                with_counters = await counted(self._store, known.vm, said)
                self._hear_of(vm, "host", with_counters or said, with_counters is not None)

    async def _say(self, said: WatcherObserved) -> None:
        """Write how the watcher is."""

        async def write(tx: Transaction) -> None:
            await check(tx, self.lease)
            current = await tx.get(self._watcher.id)
            if current.observed != said:
                await tx.update(current, observed=said)
                await tx.enqueue(current.assigned.monitor)

        await self._store.write(write)
