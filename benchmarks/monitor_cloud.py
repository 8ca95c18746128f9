"""A monitor of 10,000 appliances in a server, by CPU time: idle, and while a host that dies takes 200 of them along.

Store, loop, watchers and controllers are the server's own, in this process; hosts answer what they are asked at once. The
reference is the engine alone, which hears the same answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from benchmarks.clouds import folder
from benchmarks.fill import Filler, Sizes, write
from benchmarks.report import Report, Result, ratio
from pileus.fleet.node.types import NodeAssigned, NodeDesired, NodeObserved
from pileus.fleet.vitals import Vitals
from pileus.kernel.access import Principal, Rule
from pileus.kernel.background import for_ever
from pileus.kernel.clock import system_clock
from pileus.kernel.errors import Transient
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Loop
from pileus.kernel.reading import Call
from pileus.kernel.store.sqlite import SqliteEngine
from pileus.kernel.store.store import Store
from pileus.kernel.surface import Surface
from pileus.node.monitor.engine import Engine
from pileus.registry import KINDS
from pileus.server.links import Connection
from pileus.server.watching import Watching
from pileus.server.wiring import admissions, controllers

ACCOUNT = "account-0"
SEED = 6
HOST_VMS = 200
WATCHED_WITHIN_S = 600.0
QUIET_S = 12.0
"""Afterwards each appliance was polled at least once, and what a change made due is done."""
OPERATOR = Principal(
    user_id="operator", user="admin", account_id="", account="", role="operator",
    rules=(Rule(kinds=("*",), verbs=("get", "create", "update", "delete", "console")),),
)  # fmt: skip
STATUS = {
    "role": "applications", "users": ["ann"], "registrations": {},
    "applications": {"web": {"state": "running", "version": "2.1.0", "exits": 0, "code": "", "since": 1.7e9}},
}  # fmt: skip
HASH = "0123456789abcdef0123456789abcdef"
SAID = Vitals(vm="", process="running", boots=1, node="ready", heard_s=0.1, boot_id="b", hash=HASH, status=STATUS)
POLL_S = 10.0


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    appliances, seconds = (2_000, 10.0) if quick else (10_000, 30.0)
    with folder("monitor") as where:
        asyncio.run(_measure(report, where, appliances, seconds))


async def _measure(report: Report, where: Path, appliances: int, seconds: float) -> None:
    async with _cloud(where, appliances) as cloud:
        await cloud.spend(QUIET_S)
        without = await cloud.spend(seconds)
        report.say(f"monitor: the same cloud without a monitor takes {100 * without.cpu:.2f} % of a CPU")
        alone = _engine_alone(appliances, seconds)
        began, cpu = time.monotonic(), time.process_time()
        await cloud.watch(appliances)
        took_s, busy_s = time.monotonic() - began, time.process_time() - cpu
        report.say(f"monitor: {appliances} appliances were watched after {took_s:.0f} s and {busy_s:.0f} s of CPU")
        await cloud.spend(QUIET_S)
        idle = await cloud.spend(seconds)
        _add(report, f"CPU of a server with {appliances} idle appliances", idle, alone)
        cloud.hosts.dead.add(cloud.dying)
        storm = await cloud.spend(seconds)
        _add(report, f"CPU of it while a host with {HOST_VMS} of them dies", storm, alone)
        report.say(f"monitor: {cloud.hosts.asked} questions to hosts in all")


class Spent(Struct, frozen=True):
    """What a while cost, for each second of it."""

    cpu: float
    reads: float
    writes: float
    revisions: float


def _add(report: Report, name: str, spent: Spent, alone: float) -> None:
    found = ratio(spent.cpu, alone)
    reference = "the engine alone, idle"
    report.add(Result(name=f"monitor: {name}", value=100 * spent.cpu, unit="%", ratio=found, reference=reference))
    report.say(f"monitor: per second: {spent.reads:.0f} reads, {spent.writes:.0f} statements of writes, "
               f"{spent.revisions:.1f} revisions")  # fmt: skip


def _engine_alone(appliances: int, seconds: float) -> float:
    """Return what part of a CPU an engine takes that polls so many; virtual time, real work."""
    vms = [f"vm-{number:05}" for number in range(appliances)]
    engine = Engine()
    engine.configure({"appliances": {vm: {"name": vm} for vm in vms}, "policies": {}})
    plain = msgspec.to_builtins(SAID)
    begin = now = 1.7e9
    cpu_s = 0.0
    while now < begin + POLL_S + seconds:
        began = time.process_time()
        work = engine.work(now)
        for vm in work.polls:
            engine.hear({"vm": vm, "origin": "poll", "at": now, "vitals": {**plain, "vm": vm}}, now)
        if now > begin + POLL_S:
            cpu_s += time.process_time() - began
        now = max(work.next_at, now + 0.02)
    return cpu_s / seconds


class Hosts:
    """Answers for all hosts but the dead."""

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.asked = 0

    async def vitals(self, host_id: str, vm_ids: Iterable[str], timeout_s: float = 2.0) -> dict[str, Vitals]:
        """Return what each VM is. Raises: Transient."""
        self.asked += 1
        if host_id in self.dead:
            raise Transient("the host does not answer")
        said = Vitals(
            vm="", process="running", boots=1, node="ready", heard_s=0.1, boot_id="b", hash=HASH, status=STATUS
        )
        return {vm: msgspec.structs.replace(said, vm=vm) for vm in vm_ids}

    async def connect(self, host_id: str, appliance: str, address: str, port: int) -> Connection:
        """Refuse. Raises: Transient."""
        raise Transient("no appliance is asked here")


class Counted(SqliteEngine):
    """Counts statements."""

    reads = 0
    statements_written = 0

    async def fetch(self, statement: Any, **parameters: Any) -> Any:
        self.reads += 1
        return await super().fetch(statement, **parameters)

    async def open(self) -> None:
        await super().open()
        self._write.set_trace_callback(self._count)

    def _count(self, statement: str) -> None:
        self.statements_written += 1


class Cloud:
    """A server's parts at work."""

    def __init__(self, store: Store, engine: Counted, surface: Surface, hosts: Hosts, dying: str) -> None:
        self.hosts, self.dying = hosts, dying
        self._store, self._engine, self._surface = store, engine, surface

    async def watch(self, appliances: int) -> None:
        """Make a monitor with a policy, and wait until it knows all appliances."""
        await self._create("monitor.monitor", "watch", {"misses": 1})
        failed = {"field": "applications.*.state", "value": "failed"}
        policy = {"monitor": "watch", "when": [failed], "do": [{"do": "restart-application"}], "mode": "enforce"}
        await self._create("monitor.policy", "mend", policy)
        until = time.monotonic() + WATCHED_WITHIN_S
        while (await self._monitor()).get("states") != {"running": appliances}:
            if time.monotonic() > until:
                raise RuntimeError(f"after {WATCHED_WITHIN_S:.0f} s: {await self._monitor()}")
            await asyncio.sleep(1.0)

    async def spend(self, seconds: float) -> Spent:
        """Return what the next seconds cost."""
        before = self._now()
        began = time.monotonic()
        await asyncio.sleep(seconds)
        took_s = time.monotonic() - began
        return Spent(*((after - start) / took_s for after, start in zip(self._now(), before, strict=True)))

    def _now(self) -> tuple[float, float, float, float]:
        return time.process_time(), self._engine.reads, self._engine.statements_written, self._engine._revision

    async def _monitor(self) -> dict[str, Any]:
        answer = await self._surface.get(Call(principal=OPERATOR, account=ACCOUNT), "monitor.monitor", "watch")
        found: dict[str, Any] = msgspec.json.decode(answer.body).get("observed") or {}
        return found

    async def _create(self, kind: str, name: str, desired: dict[str, Any]) -> None:
        body = msgspec.json.encode({"name": name, "desired": desired})
        await self._surface.create(Call(principal=OPERATOR, account=ACCOUNT), kind, body)


@contextlib.asynccontextmanager
async def _cloud(where: Path, appliances: int) -> AsyncIterator[Cloud]:
    engine = Counted(where / "db")
    await engine.open()
    store = Store(engine, KINDS, system_clock, "server")
    filler = Filler(Sizes(hosts=appliances // HOST_VMS, vms=appliances, networks=1, accounts=1), SEED)
    rows = list(_rows(filler))
    for start in range(0, len(rows), 500):
        await write(store, rows[start : start + 500])
    hub, hosts = Hub(store), Hosts()
    await hub.open()
    loop = Loop(store, hub, controllers(store, NoFiles()), seed=SEED)
    await loop.open()
    watching = Watching(store, hub, hosts)
    looking = for_ever(watching.look, "watchers")
    try:
        yield Cloud(store, engine, Surface(store, hub, KINDS, admissions()), hosts, filler.hosts[1])
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await watching.kill()
        await loop.close()
        await hub.close()
        await engine.close()


class NoFiles:
    """Images have no files here."""

    def present(self, image_id: str, file: str) -> Path | None:
        """Return none."""
        return None

    def remove(self, image_id: str) -> None:
        """Do nothing."""


def _rows(filler: Filler) -> Iterator[Resource]:
    """Yield account, hosts, VMs that run, evenly on the hosts, and the node in each."""
    number = 0
    for each in filler.rows():
        if each.kind in ("tenancy.account", "infra.host"):
            yield each
        if each.kind == "compute.vm":
            host = filler.hosts[number % len(filler.hosts)]
            number += 1
            root = each.assigned.volumes[:1]
            yield replace(
                each,
                desired=msgspec.structs.replace(each.desired, nics=()),
                assigned=msgspec.structs.replace(each.assigned, host=host, volumes=root),
                observed=msgspec.structs.replace(each.observed, power="running", volumes=root),
            )
            yield _node(each, number, host)


def _node(vm: Resource, number: int, host: str) -> Resource:
    return replace(
        vm,
        id=f"01900000-0000-7006-8000-{number:012x}",
        kind="fleet.node",
        name=f"node-{number}",
        labels={},
        desired=NodeDesired(manager="m", package="p"),
        assigned=NodeAssigned(zone=vm.assigned.zone, vdc=vm.assigned.vdc, vm=vm.id, host=host, hash=HASH),
        observed=NodeObserved(state="ready", hash=HASH, boot_id="b", status=STATUS),
    )
