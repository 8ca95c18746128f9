"""Thousands of requests while agents, servers, links and nodes die: each is done at most once, in order, never late.

``python -m tests.cloud.fleet.requests_chaos --requests 10000 --seed 1`` prints what happened, or the first thing that
does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from tests.cloud.fate import Fate, watch_logs
from tests.cloud.fleet.requests_world import ACCOUNT, furnish, slow_nodes
from tests.cloud.invariants import Broken
from tests.cloud.world import Cloud
from tests.virtual_time import clock, run

from pileus.compute.vm.types import VmAssigned
from pileus.drivers.host.guest.fake_node import FakeNode
from pileus.fleet.request.api import upload
from pileus.kernel.clock import iso
from pileus.kernel.errors import Rejected, Transient
from pileus.kernel.kind import Resource
from pileus.kernel.store.sqlite import SqliteEngine
from pileus.kernel.transaction import Transaction
from pileus.node.role import RoleRefused

HOSTS, NODES = 3, 8
SETTLE_LIMIT_S = 3 * 3600.0

REQUESTS = sa.text("SELECT id, host, assigned, observed FROM resource WHERE kind = 'fleet.request'")
ENDS = sa.text(
    "SELECT id, reason FROM event WHERE kind = 'fleet.request'"
    " AND reason IN ('Applied', 'Refused', 'Expired', 'Withdrawn', 'Unknown')"
)
QUEUED = sa.text("SELECT space, value FROM claim WHERE space LIKE 'requests/%'")
PAYLOADS = sa.text("SELECT id FROM content WHERE part = 'payload'")


class Sent(msgspec.Struct, kw_only=True):
    """What was asked: its number and deadline as the server decided them."""

    node: str
    sequence: int
    deadline: float


class Chaos:
    """Asks, and makes accidents."""

    def __init__(self, world: Cloud, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.fate = Fate(world, self.random)
        self.disks: dict[str, FakeNode] = {}
        """What all nodes have on their disks, by their VM: disks go with VMs from host to host."""
        self.nodes: list[Resource] = []
        self.sent: dict[str, Sent] = {}
        self.outcomes: Counter[str] = Counter()
        self.cuts = 0
        self.moves = 0
        self.calm = False

    async def prepare(self) -> None:
        """Make the nodes. A request may find its node ending at each of its steps."""
        await self.world.furnish(HOSTS)
        self.nodes = await furnish(self.world, NODES)
        for host in self.world.hosts.values():
            host.guests.nodes = self.disks
            host.guests.cut = self._cut
            host.guests.roles.update({node.assigned.vm: _role for node in self.nodes})

    def _cut(self, machine: str) -> bool:
        if self.calm or self.random.random() > 0.02:
            return False
        self.cuts += 1
        if self.random.random() < 0.5:  # its VM ends with it
            for host in self.world.hosts.values():
                host.machines.crash(machine)
        return True

    async def go(self, requests: int) -> None:
        """Send that many requests, with accidents between them."""
        accidents = (
            (self.fate.kill_agent, 20), (self.fate.start_agents, 40), (self.fate.part, 12), (self.fate.heal, 30),
            (self.fate.kill_server, 8), (self.fate.machine_ends, 25), (self.fate.report_again, 25),
            (self.fate.reboot_host, 2), (self.fate.driver_fault, 10), (self.move, 6), (self.withdraw, 60),
        )  # fmt: skip
        works, weights = [work for work, _ in accidents], [weight for _, weight in accidents]
        while sum(self.outcomes.values()) < requests:
            await self.ask()
            if self.random.random() < 0.15:
                await self.random.choices(works, weights)[0]()
            await asyncio.sleep(self.random.choice((0.0, 0.0, 0.0, 0.02, 0.1, 0.5)))
            self.fate.check_logs()

    async def ask(self) -> None:
        """Send one request: some are uploaded, some have little time, some are refused by the role."""
        node = self.random.choice(self.nodes)
        payload = self.random.choice(("x", "y" * 100, "refuse", "z" * 5000))
        uploaded = self.random.random() < 0.05
        wish: dict[str, Any] = (
            {"node": node.name, "upload": "yes"} if uploaded else {"node": node.name, "payload": payload}
        )
        if self.random.random() < 0.7:
            wish["deadline"] = iso(clock() + self.random.choice((0.05, 0.3, 1.0, 5.0, 30.0, 300.0, 3000.0)))
        body = msgspec.json.encode({"desired": wish})
        try:
            server = self.random.choice(self.world.servers)
            answer = await server.surface.create(self.world.call(ACCOUNT), "fleet.request", body)
            if uploaded and self.random.random() < 0.8:
                id = msgspec.json.decode(answer.body)["id"]
                await server.store.write(lambda tx: upload(tx, id, payload.encode()))
        except Rejected as error:
            self.outcomes[error.code] += 1
        except (Transient, asyncio.CancelledError):
            self.outcomes["unanswered"] += 1
        else:
            self.outcomes["ok"] += 1

    async def withdraw(self) -> None:
        """Delete one of the newest requests."""
        await self.note()
        rows = await self.world.servers[0].store.fetch(REQUESTS)
        if rows:
            id = self.random.choice(rows[-20:])[0]
            try:
                await self.world.delete("fleet.request", id, ACCOUNT)
            except (Rejected, Transient, asyncio.CancelledError):
                return

    async def move(self) -> None:
        """A node's VM comes to another host: its machine has ended on the one, and its disk is on the other."""
        node = self.random.choice(self.nodes)
        vm = await self.world.servers[0].store.get(node.assigned.vm)
        target = self.random.choice(sorted(self.world.hosts.keys() - {vm.host}))
        old = self.world.hosts[vm.host]
        if vm.host not in self.world.agents or vm.host in self.world.cut or not vm.assigned.volumes:
            return  # moved only where it is known to have ended
        self.moves += 1
        await self.world.stop_agent(vm.host)
        old.machines.crash(vm.id)
        old.machines.machines.pop(vm.id, None)
        pools = {pool["host"]: pool["id"] for pool in await self.world.list("storage.pool")}

        async def write(tx: Transaction) -> None:
            there = await tx.get(vm.id)
            assigned: VmAssigned = there.assigned
            for id in assigned.volumes:
                volume = await tx.get(id)
                decided = msgspec.structs.replace(volume.assigned, host=target, pool=pools[target])
                await tx.update(volume, assigned=decided)
            await tx.update(there, assigned=msgspec.structs.replace(assigned, host=target))

        await self.world.servers[0].store.write(write)
        await self.world.start_agent(vm.host)

    async def end(self) -> None:
        """Let nothing happen any more until every request is settled."""
        self.calm = True
        await self.fate.calm()
        await self.world.until(self._all_settled, SETTLE_LIMIT_S)
        self.fate.check_logs()

    async def _all_settled(self) -> bool:
        await asyncio.sleep(5.0)
        rows = await self.world.store.fetch(REQUESTS)
        return all(msgspec.json.decode(assigned)["settled_at"] for _, _, assigned, _ in rows)

    async def note(self) -> None:
        """Remember what the server decided about all requests that there are: some go before the end."""
        for id, _, text, _ in await self.world.servers[0].store.fetch(REQUESTS):
            decided = msgspec.json.decode(text)
            self.sent[id] = Sent(node=decided["node"], sequence=decided["sequence"], deadline=decided["deadline"])

    async def check(self) -> Counter[str]:
        """Compare what roles did with what was said of it, and return how many ended how. Raises: Broken."""
        await self._check_nothing_left()
        ends = await self._ends()
        done = {id for vm, disk in self.disks.items() for id in _check_node(vm, disk, self.sent)}
        for id, state in ends.items():
            if state == "applied" and id not in done:
                raise Broken(f"{id} is said to be applied, and no role did it")
            if state in ("expired", "withdrawn", "refused") and id in done:
                raise Broken(f"{id} is said to be {state}, and a role did it")
        if untold := done - ends.keys():
            raise Broken(f"done, and nobody was told: {sorted(untold)[:3]}")
        return Counter(ends.values())

    async def _check_nothing_left(self) -> None:
        store = self.world.store
        if rows := await store.fetch(QUEUED):
            raise Broken(f"still queued: {rows[:3]}")
        if rows := await store.fetch(PAYLOADS):
            raise Broken(f"payloads of settled requests: {rows[:3]}")
        if rows := [row for row in await store.fetch(REQUESTS) if row[1]]:
            raise Broken(f"settled, and on a host: {rows[:3]}")

    async def _ends(self) -> dict[str, str]:
        ends: dict[str, set[str]] = {}
        for id, reason in await self.world.store.fetch(ENDS):
            ends.setdefault(id, set()).add(reason.lower())
        if several := [(id, states) for id, states in ends.items() if len(states) > 1]:
            raise Broken(f"ended twice: {several[:3]}")
        return {id: state for id, (state,) in ends.items()}


def _check_node(vm: str, disk: FakeNode, sent: dict[str, Sent]) -> list[str]:
    """Return what the node's role did. Raises: Broken for a request done twice, out of order, or late."""
    ids = [id for id, _ in disk.applied]
    if len(set(ids)) != len(ids):
        raise Broken(f"{vm} did twice: {[id for id, count in Counter(ids).items() if count > 1][:3]}")
    numbers = [sent[id].sequence for id in ids]
    if numbers != sorted(numbers):
        raise Broken(f"{vm} did requests out of order")
    for id, at in disk.applied:
        if at >= sent[id].deadline:
            raise Broken(f"{vm} did {id} {at - sent[id].deadline:.3f} s after its deadline")
    return ids


def _role(payload: bytes) -> bytes:
    if payload == b"refuse":
        raise RoleRefused("this payload is refused")
    return payload


def chaos(requests: int, seed: int) -> dict[str, Any]:
    """Send requests through accidents, and return the counts. Raises: Broken."""
    watch_logs()

    async def main(folder: str) -> dict[str, Any]:
        world = Cloud(lambda: SqliteEngine(Path(folder) / "db", commit_inline=True), seed=seed)
        await world.start_server()
        made = Chaos(world, seed)
        try:
            await made.prepare()
            began = clock()
            while (left := requests - sum(made.outcomes.values())) > 0:
                await made.go(sum(made.outcomes.values()) + min(left, 50))
                await made.note()
            await made.end()
            await made.note()
            ends = await made.check()
        finally:
            print(f"requests' chaos: seed {seed}", flush=True)
            await world.close()
        return {
            "asked": dict(made.outcomes),
            "ended": dict(ends),
            "accidents": dict(made.fate.happened) | {"nodes cut in a request": made.cuts, "nodes moved": made.moves},
            "simulated_s": round(clock() - began),
        }

    slow = random.Random(seed)
    with (
        tempfile.TemporaryDirectory(prefix="pileus-", dir="/dev/shm") as folder,
        slow_nodes(lambda: slow.choice((0.0, 0.0, 0.01, 0.1, 1.0))),
    ):
        return run(lambda: main(folder))


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description="Requests to nodes of a simulated cloud in which everything dies.")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    began = time.perf_counter()
    for name, value in chaos(asked.requests, asked.seed).items():
        print(f"{name}: {value}")
    print(f"{asked.requests} requests in {time.perf_counter() - began:.0f} s: none done twice, out of order or late")


if __name__ == "__main__":
    main()
