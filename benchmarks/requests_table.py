"""What a server does beside the choice itself: it keeps 5,000 hosts' offers in memory and reads again what is old.

Requests of one machine without end come one after another, half a second apart (every one reads again what is free) or
all at once; what is chosen is charged, as the server does.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from pathlib import Path

from benchmarks.fill import Filler, Sizes, write
from benchmarks.report import Report, Result
from pileus.compute.offers import Choice, Machine
from pileus.compute.request.table import OfferTable
from pileus.infra.host.types import HostAssigned, HostDesired, HostObserved
from pileus.kernel.kind import Resource
from pileus.kernel.quota import space
from pileus.kernel.store.sqlite import SqliteEngine
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.registry import KINDS
from pileus.storage.pool.types import PoolAssigned, PoolDesired, PoolObserved

HOSTS = 5_000
SEED = 32
BATCH = 500


class Clock:
    """Time that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory(prefix="pileus-bench-table-") as folder:
        asyncio.run(_measure(report, Path(folder), 20 if quick else 100))


async def _measure(report: Report, folder: Path, requests: int) -> None:
    clock = Clock()
    engine = SqliteEngine(folder / "pileus.db")
    await engine.open()
    store = Store(engine, KINDS, clock)
    chance = random.Random(SEED)
    await _fill(store, chance)
    table = OfferTable(store)
    began = time.process_time()
    await table.choose({}, [_machine(chance)], "all-or-nothing", clock())
    first_ms = (time.process_time() - began) * 1000
    report.add(Result(name=f"requests: {HOSTS} hosts read for the first", value=first_ms, unit="ms"))
    for words, apart_s in (("half a second apart", 0.6), ("at once", 0.0)):
        spent = 0.0
        for number in range(requests):
            clock.now += apart_s
            began = time.process_time()
            choice = await table.choose({}, [_machine(chance)], "all-or-nothing", clock())
            spent += time.process_time() - began
            await _charge(store, choice, f"{words}-{number}")
        ms = spent * 1000 / requests
        report.add(Result(name=f"requests: CPU for one of 1 machine, {words}", value=ms, unit="ms"))
    await engine.close()


async def _charge(store: Store, choice: Choice, owner: str) -> None:
    async def work(tx: Transaction) -> None:
        for held in choice.chosen[0].held:
            for word, amount in held.quantity.items():
                await tx.charge(space(held.server, word), owner, amount)

    await store.write(work)


async def _fill(store: Store, chance: random.Random) -> None:
    ids = Filler(Sizes(accounts=0, hosts=HOSTS, networks=0, vms=0), SEED).hosts
    rows = [row for number, id in enumerate(ids) for row in _host(number, id)]
    for first in range(0, len(rows), BATCH):
        await write(store, rows[first : first + BATCH])

    async def budgets(tx: Transaction) -> None:
        for number, id in enumerate(ids):
            await tx.set_capacity(space(id, "vcpus"), chance.randrange(64, 1024))
            await tx.set_capacity(space(id, "memory_mib"), chance.randrange(65_536, 524_288))
            await tx.set_capacity(space(_pool_of(number), "disk_gib"), chance.randrange(1000, 10_000))

    await store.write(budgets)


def _pool_of(number: int) -> str:
    return f"01900000-0000-7009-8000-{number:012x}"


def _host(number: int, id: str) -> tuple[Resource, Resource]:
    observed = HostObserved(version="1", cpus=64, memory_mib=524_288)
    disk = PoolObserved(total_gib=10_000, free_gib=10_000)
    return (
        Resource(id=id, kind="infra.host", name=f"host-{number}", desired=HostDesired(pod="pod"), observed=observed,
                 assigned=HostAssigned(host=id, zone="z", pod="pod"), generation=1, observed_generation=1,
                 revision=2 * number + 1),
        Resource(id=_pool_of(number), kind="storage.pool", name=f"pool-{number}", desired=PoolDesired(host=id),
                 observed=disk, assigned=PoolAssigned(host=id, zone="z"), generation=1, observed_generation=1,
                 revision=2 * number + 2),
    )  # fmt: skip


def _machine(chance: random.Random) -> Machine:
    return Machine(number=1, vcpus=chance.choice((1, 2, 4)), memory_mib=chance.choice((512, 2048)), disk_gib=20)
