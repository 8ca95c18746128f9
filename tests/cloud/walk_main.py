"""The walk as a command and as a function for tests: builds the world, walks, heals, settles, clears."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from pileus.kernel.store.engine import Engine
from pileus.kernel.store.sqlite import SqliteEngine
from tests.cloud.fate import watch_logs
from tests.cloud.invariants import check
from tests.cloud.settling import check_truth, clear, reach_fixed_point, recovery
from tests.cloud.settling_mirror import check_nothing_left, check_sessions
from tests.cloud.virtual_postgres import VirtualPostgres
from tests.cloud.walk import Walk
from tests.cloud.world import Cloud
from tests.virtual_time import clock, run


class Walked(Struct, kw_only=True):
    """What a walk came to; seconds are real unless they say otherwise."""

    operations: int
    walk_s: float = 0.0
    simulated_s: float = 0.0
    outcomes: dict[str, int]
    accidents: dict[str, int]
    checks: dict[str, int]
    orphans: int = 0
    settle_simulated_s: float = 0.0
    vms: int = 0
    recovery_simulated_s: dict[str, list[float]]


def walk(
    operations: int,
    seed: int,
    database: str = "",
    servers: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Walked:
    """Walk, heal, settle, compare what is with what is said, delete all. Raises: Broken."""
    watch_logs()
    with _engines(database) as engine:

        async def main() -> Walked:
            world = Cloud(engine, seed=seed)
            for number in range(servers):
                await world.start_server(f"server{number}")
            walker = Walk(world, seed)
            try:
                return await _walk(walker, operations, progress)
            finally:
                print(f"walk: {walker.done} operations, seed {seed}", flush=True)
                await world.close()

        return run(main)


async def _walk(walker: Walk, operations: int, progress: Callable[[int], None]) -> Walked:
    world = walker.world
    await walker.prepare()
    began, simulated = time.perf_counter(), clock()
    await walker.go(operations, progress=progress)
    result = Walked(operations=operations, outcomes={}, accidents={}, checks={}, recovery_simulated_s={})
    result.walk_s, result.simulated_s = time.perf_counter() - began, clock() - simulated
    await walker.fate.calm()
    result.settle_simulated_s = await reach_fixed_point(world)
    await check(world, walker.ledger, full=True)
    await check_truth(world)
    await check_sessions(world)
    result.vms = sum(1 for each in await world.list("compute.vm") if each["conditions"][0]["status"] == "true")
    result.recovery_simulated_s = await recovery(world)
    await check_nothing_left(world)
    await clear(world)
    await check(world, walker.ledger, full=True)
    await walker.mirror.check()
    walker.fate.check_logs()
    result.outcomes, result.accidents = dict(walker.outcomes), dict(walker.fate.happened)
    result.checks = dict(walker.ledger.checks + walker.mirror.ledger.seen)
    result.orphans = walker.ledger.orphans_seen
    return result


@contextmanager
def _engines(database: str) -> Iterator[Callable[[], Engine]]:
    if database:
        yield lambda: VirtualPostgres(database)
        return
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="pileus-walk-", dir=memory if memory.is_dir() else None) as folder:
        yield lambda: SqliteEngine(Path(folder) / "db", commit_inline=True)


def main() -> None:
    """Walk as the command line says."""
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of names must come in the same order in every run of a seed
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.cloud.walk", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    parser = argparse.ArgumentParser(description="Random walk over a simulated cloud.")
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--database", default="", help="postgresql://… ; SQLite without")
    parser.add_argument("--servers", type=int, default=1)
    asked = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    print(f"seed {asked.seed}, commit {commit.strip()}, {asked.operations} operations", flush=True)
    began = time.perf_counter()

    def progress(done: int) -> None:
        print(f"{done} operations, {done / (time.perf_counter() - began):.0f}/s", flush=True)

    _print(walk(asked.operations, asked.seed, asked.database, asked.servers, progress))


def _print(done: Walked) -> None:
    rate = done.operations / done.walk_s
    print(f"{done.operations} operations in {done.walk_s:.0f} s ({rate:.0f}/s), {done.simulated_s:.0f} simulated s")
    for title, counts in (("requests", done.outcomes), ("accidents", done.accidents), ("checks", done.checks)):
        print(f"{title}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    print(f"settled {done.settle_simulated_s:.0f} simulated s after the last accident, {done.vms} VMs ready")
    print(f"things on hosts without an owner, all removed in time: {done.orphans}")
    for what, seconds in done.recovery_simulated_s.items():
        ordered = sorted(seconds)
        print(
            f"recovery, {what}: min {ordered[0]:.2f} median {ordered[len(ordered) // 2]:.2f} max {ordered[-1]:.2f} simulated s"
        )
    print("0 invariants broken")
