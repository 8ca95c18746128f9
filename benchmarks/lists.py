"""How fast lists are in the largest cloud: 25k hosts, VMs, networks and accounts, 50k volumes.

The server has one core to itself and the client the other; requests are real HTTPS over one kept-alive connection. The
reference is the same page read from the same database without a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct
from tests import postgres

from benchmarks.clouds import Api, folder, memory_mib, server
from benchmarks.fill import Filled, Sizes, fill
from benchmarks.report import Report, Result, median, percentile, ratio
from pileus.kernel.clock import system_clock
from pileus.kernel.store.engine import Engine
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.postgres import PostgresEngine
from pileus.kernel.store.sqlite import SqliteEngine
from pileus.kernel.store.store import Store
from pileus.registry import KINDS

PAGE = 500
BAR_MS = 100.0
WALK_BAR_S = 2.0
SEED = 20
FULL = Sizes(hosts=25_000, vms=25_000, networks=25_000, accounts=25_000)
SMALL = Sizes(hosts=2_500, vms=5_000, networks=2_500, accounts=2_500)


class Case(Struct, frozen=True):
    """A list; its pages are read in turn."""

    name: str
    kind: str
    query: dict[str, str]


def cases(filled: Filled) -> list[Case]:
    """Return the lists that are measured."""
    everybody = {"all_accounts": "1"}
    return [
        Case("vm, plain", "compute.vm", everybody),
        Case("vm, of one account", "compute.vm", {"account": filled.account}),
        Case("vm, on one host", "compute.vm", {**everybody, "host": filled.host}),
        Case("vm, not ready", "compute.vm", {**everybody, "ready": "false"}),
        Case("vm, not ready, of one account", "compute.vm", {"account": filled.account, "ready": "false"}),
        Case("vm, by label", "compute.vm", {**everybody, "label": "tier=db"}),
        Case("host, plain", "infra.host", {}),
        Case("host, by label", "infra.host", {"label": "rack=r7"}),
        Case("volume, plain", "storage.volume", everybody),
        Case("volume, on one host", "storage.volume", {**everybody, "host": filled.host}),
        Case("network, plain", "network.network", everybody),
        Case("account, plain", "tenancy.account", {}),
    ]


def run(report: Report, *, quick: bool) -> None:
    """Measure on SQLite, and on PostgreSQL where it is installed."""
    sizes, repeat = (SMALL, 40) if quick else (FULL, 200)
    with folder("lists") as where:
        (where / "data").mkdir(mode=0o700)
        _measure(report, Place("sqlite", where / "data"), sizes, repeat)
    if not (postgres.BIN / "postgres").exists():
        report.say("lists: PostgreSQL 15 is not installed, left out")
        return
    with folder("lists") as where, postgres.running() as cluster, postgres.database(cluster) as url:
        (where / "data").mkdir(mode=0o700)
        _measure(report, Place("postgres", where / "data", url), sizes, repeat)


class Place(Struct, frozen=True):
    """Where the database is: its engine's name, the data folder of its server, its URL (empty: SQLite)."""

    engine: str
    data: Path
    url: str = ""

    def open(self) -> Engine:
        """Return the engine, closed."""
        return PostgresEngine(self.url) if self.url else SqliteEngine(self.data / "pileus.db")


def _measure(report: Report, place: Place, sizes: Sizes, repeat: int) -> None:
    began = time.monotonic()
    filled = asyncio.run(_fill(place, sizes))
    report.say(
        f"lists on {place.engine}: {sizes.hosts} hosts, {sizes.vms} VMs of {filled.row_bytes:.0f} bytes, {sizes.volumes} "
        f"volumes, {sizes.networks} networks, {sizes.accounts} accounts, seed {SEED}, "
        f"filled in {time.monotonic() - began:.0f} s"
    )
    with server(place.data, place.url) as (context, pid), _cores(pid):
        api = Api(context)
        for case in cases(filled):
            _list(report, place, api, case, repeat)
        _walk(report, place, api, sizes)
        report.add(Result(name=f"lists {place.engine}: server's memory", value=memory_mib(pid), unit="MiB"))
        api.close()


async def _fill(place: Place, sizes: Sizes) -> Filled:
    engine = place.open()
    await engine.open()
    filled = await fill(Store(engine, KINDS, system_clock), sizes, SEED)
    await engine.close()
    return filled


def _list(report: Report, place: Place, api: Api, case: Case, repeat: int) -> None:
    after = _cursors(api, case)
    times_ms = []
    for number in range(repeat):
        began = time.perf_counter()
        api.get(f"/v1/{case.kind}", **case.query, limit=PAGE, after=after[number % len(after)])
        times_ms.append((time.perf_counter() - began) * 1000)
    name = f"lists {place.engine}: {case.name}"
    if case.name == "vm, plain":
        bare_ms = asyncio.run(_bare_ms(place, case.kind, after, min(repeat, 50)))
        report.add(
            Result(name=f"{name}, p50", value=median(times_ms), unit="ms", ratio=ratio(median(times_ms), bare_ms),
                   reference=f"the same rows read without a server: {bare_ms:.1f} ms")
        )  # fmt: skip
    report.add(Result(name=f"{name}, p95", value=percentile(times_ms, 95), unit="ms", bar=BAR_MS))


def _cursors(api: Api, case: Case) -> list[str]:
    """Return where the pages of the list begin, at most 50; reading them warms the caches as any use does."""
    found, after = [""], ""
    while len(found) < 50:
        page = api.call("GET", f"/v1/{case.kind}", **case.query, limit=PAGE, after=after)
        if not page["items"] and not after:
            raise RuntimeError(f"the list {case.name} is empty")
        after = page["next"] or ""
        if not after:
            break
        found.append(after)
    # A last page that is not full would make the rest look faster than it is.
    return found[:-1] if len(found) > 1 else found


async def _bare_ms(place: Place, kind: str, after: list[str], repeat: int) -> float:
    """Return the median time in which the store alone reads such pages."""
    engine = place.open()
    await engine.open()
    store = Store(engine, KINDS, system_clock)
    times_ms = []
    for number in range(repeat):
        began = time.perf_counter()
        await store.list_rows(Filter(kind=kind), after=after[number % len(after)], limit=PAGE)
        times_ms.append((time.perf_counter() - began) * 1000)
    await engine.close()
    return median(times_ms)


def _walk(report: Report, place: Place, api: Api, sizes: Sizes) -> None:
    """Read all VMs page by page, as a client that needs all of them does."""
    times_s = []
    for _ in range(3):
        began, after, seen = time.perf_counter(), "", 0
        while True:
            page = msgspec.json.decode(api.get("/v1/compute.vm", all_accounts=1, limit=PAGE, after=after), type=Page)
            seen += len(page.items)
            after = page.next or ""
            if not after:
                break
        times_s.append(time.perf_counter() - began)
        if seen != sizes.vms:
            raise RuntimeError(f"{seen} of {sizes.vms} VMs were listed")
    name = f"lists {place.engine}: all {sizes.vms} VMs in pages of {PAGE}"
    report.add(Result(name=name, value=median(times_s), unit="s", bar=WALK_BAR_S))


class Page(Struct):
    """A page whose items are left as they are."""

    items: list[msgspec.Raw]
    next: str | None


@contextlib.contextmanager
def _cores(server_pid: int) -> Iterator[None]:
    """Give the server one core and this process another, for the block; with one core only they share it."""
    own = os.sched_getaffinity(0)
    if len(own) > 1:
        server_core, client_core = sorted(own)[:2]
        for task in os.listdir(f"/proc/{server_pid}/task"):
            os.sched_setaffinity(int(task), {server_core})
        os.sched_setaffinity(0, {client_core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)
