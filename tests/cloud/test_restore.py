"""A database that was restored from a backup knows less than the hosts: what runs goes on, what is wished is done."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from pileus.agent.converge import QUARANTINE_S
from pileus.kernel.store.sqlite import SqliteEngine
from tests.cloud.world import Cloud, cloud, leftovers
from tests.virtual_time import clock, run


class Backups:
    """The database file of a cloud, its copy, and the way back."""

    def __init__(self, folder: Path) -> None:
        self.file, self._copy = folder / "db", folder / "copy"

    def take(self) -> None:
        with (
            contextlib.closing(sqlite3.connect(self.file)) as source,
            contextlib.closing(sqlite3.connect(self._copy)) as target,
        ):
            source.backup(target)

    async def restore(self, world: Cloud) -> None:
        await world.stop_server()
        self._put_back()
        await world.start_server()

    def _put_back(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.file}{suffix}").unlink(missing_ok=True)
        self.file.write_bytes(self._copy.read_bytes())


@contextlib.asynccontextmanager
async def backed_up() -> AsyncIterator[tuple[Cloud, Backups]]:
    with tempfile.TemporaryDirectory(prefix="pileus-", dir="/dev/shm") as folder:
        backups = Backups(Path(folder))
        world = Cloud(lambda: SqliteEngine(backups.file, commit_inline=True))
        await world.start_server()
        try:
            await world.furnish(1)
            await world.create("tenancy.account", "acme")
            yield world, backups
        finally:
            await world.close()


async def passes(world: Cloud, seconds: float) -> None:
    end = clock() + seconds

    async def late() -> bool:
        return clock() >= end

    await world.until(late, seconds + 1.0)


def test_a_vm_that_the_restored_database_does_not_know_goes_on_running_with_its_disk_and_its_port() -> None:
    async def main() -> None:
        async with backed_up() as (world, backups):
            ((id, host),) = world.hosts.items()
            backups.take()
            await world.create("compute.vm", "web", "acme", nics=[{"network": "default"}])
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            before = await leftovers(world)
            await backups.restore(world)
            await passes(world, 5 * QUARANTINE_S)
            found = await leftovers(world)
            assert {key: found.get(key) for key in before if "/" in key} == {
                k: v for k, v in before.items() if "/" in k
            }
            assert [one.state for one in host.machines.machines.values()] == ["running"]
            assert world.running[id]._converger.unclaimed == 3

    run(main)


def test_what_a_server_calls_gone_is_removed_also_when_the_agent_slept_through_it() -> None:
    async def main() -> None:
        async with cloud() as world:
            await world.create("tenancy.account", "acme")
            ((id, host),) = world.hosts.items()
            await world.create("compute.vm", "web", "acme", nics=[])
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            (volume,) = host.pool.volumes.values()
            await world.delete("compute.vm", "web", "acme")

            async def left() -> bool:
                return not await leftovers(world)

            await world.until(left)
            await world.stop_agent(id)
            host.pool.volumes[volume.id] = volume  # a disk that was not mounted when it was to be deleted
            await world.start_agent(id)
            await world.until(left, 3 * QUARANTINE_S)

    run(main)


def test_an_agent_hears_every_wish_of_a_restored_database_whose_revisions_it_had_passed() -> None:
    async def main() -> None:
        async with backed_up() as (world, backups):
            ((id, host),) = world.hosts.items()
            await world.create("compute.vm", "web", "acme", nics=[])
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            await world.settle()
            backups.take()
            for number in range(60):
                await world.create("tenancy.account", f"x{number}")
            await world.patch("compute.vm", "web", "acme", restart="always")
            await world.settle()
            await backups.restore(world)
            await world.settle()
            await world.cut_link(id)
            await world.patch("compute.vm", "web", "acme", power="stopped", shutdown_timeout_s=0)
            for number in range(80):
                await world.create("tenancy.account", f"y{number}")
            world.heal_link(id)

            async def stopped() -> bool:
                return [one.state for one in host.machines.machines.values()] == ["stopped"]

            await world.until(stopped)

    run(main)
