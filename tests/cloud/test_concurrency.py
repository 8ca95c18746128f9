"""32 clients want the last one at the same moment: one gets it, the others are told why, on every database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from pileus.kernel.errors import Rejected
from pileus.kernel.store.engine import Engine
from pileus.kernel.store.sqlite import SqliteEngine
from tests.cloud.invariants import Ledger, check
from tests.cloud.virtual_postgres import VirtualPostgres
from tests.cloud.world import Cloud
from tests.postgres import postgres, postgres_url
from tests.virtual_time import run

__all__ = ["postgres", "postgres_url"]

CLIENTS = 32
OVER = sa.text("SELECT space, used, capacity FROM budget WHERE used > capacity")
Engines = Callable[[], Engine]


@pytest.fixture(params=["sqlite", "postgres"])
def engines(request: pytest.FixtureRequest, tmp_path: Path) -> Engines:
    """What opens the test's database; PostgreSQL is used by two servers."""
    if request.param == "sqlite":
        return lambda: SqliteEngine(tmp_path / "db", commit_inline=True)
    url: str = request.getfixturevalue("postgres_url")
    return lambda: VirtualPostgres(url)


@contextlib.asynccontextmanager
async def crowded(engines: Engines, **furniture: Any) -> AsyncIterator[Cloud]:
    """Give a furnished cloud with as many servers as its database allows."""
    world = Cloud(engines)
    first = await world.start_server("one")
    if isinstance(first.store.engine, VirtualPostgres):
        await world.start_server("two")
    try:
        await world.furnish(**furniture)
        yield world
    finally:
        await world.close()


async def at_once(world: Cloud, work: Callable[[int], Awaitable[Any]]) -> list[str]:
    """Let all clients go at the same moment; return the codes of those that were refused."""

    async def client(number: int) -> str:
        try:
            await work(number)
        except Rejected as error:
            return error.code
        return ""

    codes = await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    assert not await world.store.fetch(OVER)
    await check(world, Ledger(), full=True)
    return [code for code in codes if code]


async def create(world: Cloud, client: int, name: str, account: str = "acme", **desired: Any) -> None:
    """Create a VM through one of the servers."""
    surface = world.servers[client % len(world.servers)].surface
    body = msgspec.json.encode({"name": name, "desired": desired})
    await surface.create(world.call(account), "compute.vm", body)


def test_one_gets_the_last_of_the_quota(engines: Engines) -> None:
    async def main() -> None:
        async with crowded(engines) as world:
            await world.create("tenancy.account", "acme")
            await world.patch("tenancy.vdc", "main", "acme", quota={"vms": 5})
            for number in range(4):
                await create(world, number, f"before{number}", nics=[])
            codes = await at_once(world, lambda number: create(world, number, f"v{number}", nics=[]))
            assert codes == ["quota-exceeded"] * (CLIENTS - 1)
            assert len(await world.list("compute.vm")) == 5

    run(main)


def test_one_gets_a_name(engines: Engines) -> None:
    async def main() -> None:
        async with crowded(engines) as world:
            await world.create("tenancy.account", "acme")
            codes = await at_once(world, lambda number: create(world, number, "same", nics=[]))
            assert codes == ["already-exists"] * (CLIENTS - 1)

    run(main)


def test_one_gets_the_address_that_all_ask_for(engines: Engines) -> None:
    async def main() -> None:
        async with crowded(engines) as world:
            await world.create("tenancy.account", "acme")
            await world.patch("tenancy.vdc", "main", "acme", quota={"vms": 100})
            nics = [{"network": "default", "address": "10.1.1.10"}]
            codes = await at_once(world, lambda number: create(world, number, f"v{number}", nics=nics))
            assert codes == ["address-in-use"] * (CLIENTS - 1)

    run(main)


def test_one_gets_the_last_address_and_the_next_when_it_is_given_back(engines: Engines) -> None:
    async def main() -> None:
        async with crowded(engines) as world:
            await world.create("tenancy.account", "acme")
            await world.patch("tenancy.vdc", "main", "acme", quota={"vms": 100})
            await world.create("network.network", "tight", "acme", range="10.7.0.0/30")
            nics = [{"network": "tight"}]
            assert await at_once(world, lambda number: create(world, number, f"v{number}", nics=nics)) == []
            await world.until(lambda: one_runs_and_all_say_why(world))
            (winner,) = await running(world)
            messages = {reason(vm) for vm in await world.list("compute.vm") if vm["name"] != winner}
            assert messages == {("NoAddress", "no address is left in network tight (10.7.0.1 to 10.7.0.2)")}
            await world.delete("compute.vm", winner, "acme")
            await world.until(lambda: other_runs(world, winner))
            await check(world, Ledger(), full=True)

    run(main)


def test_one_account_gets_the_last_vlan_and_the_next_when_it_is_given_back(engines: Engines) -> None:
    async def main() -> None:
        async with crowded(engines, vlan_first=7, vlan_last=7) as world:
            for number in range(CLIENTS):
                await world.create("tenancy.account", f"a{number}")
            assert await at_once(world, lambda number: create(world, number, f"v{number}", f"a{number}")) == []
            await world.until(lambda: one_runs_and_all_say_why(world))
            (winner,) = await running(world)
            texts = {reason(vm) for vm in await world.list("compute.vm") if vm["name"] != winner}
            expected = (
                "no VLAN ID is left in zone local: all 1 of 7-7 are in use by other accounts; it starts as soon as one is "
                "given back"
            )
            assert texts == {("NoVlan", expected)}
            await world.delete("compute.vm", winner, f"a{winner[1:]}")
            await world.until(lambda: other_runs(world, winner))
            await check(world, Ledger(), full=True)

    run(main)


def test_one_gets_the_last_room_on_the_host_and_the_next_when_it_is_given_back(engines: Engines) -> None:
    async def main() -> None:
        async with crowded(engines, memory_mib=2048) as world:
            await world.create("tenancy.account", "acme")
            await world.patch("tenancy.vdc", "main", "acme", quota={"vms": 100, "memory_mib": 1_000_000})
            size: dict[str, Any] = {"vcpus": 1, "memory_mib": 1024, "nics": []}
            assert await at_once(world, lambda number: create(world, number, f"v{number}", **size)) == []
            await world.until(lambda: one_runs_and_all_say_why(world))
            (winner,) = await running(world)
            messages = {reason(vm) for vm in await world.list("compute.vm") if vm["name"] != winner}
            message = "no host takes it: NoMemory; ask for less, or wait until there is room"
            assert messages == {("NoCapacity", message)}
            await world.delete("compute.vm", winner, "acme")
            await world.until(lambda: other_runs(world, winner))
            await check(world, Ledger(), full=True)

    run(main)


def test_a_volume_goes_to_one_vm(engines: Engines) -> None:
    async def main() -> None:
        async with crowded(engines) as world:
            await world.create("tenancy.account", "acme")
            await world.patch("tenancy.vdc", "main", "acme", quota={"vms": 100})
            await world.create("storage.volume", "data", "acme", size_gib=1)
            more: dict[str, Any] = {"nics": [], "volumes": [{"volume": "data"}]}
            codes = await at_once(world, lambda number: create(world, number, f"v{number}", **more))
            assert codes == ["in-use"] * (CLIENTS - 1)

    run(main)


def reason(vm: dict[str, Any]) -> tuple[str, str]:
    """Return what a VM says of itself."""
    condition = vm["conditions"][0]
    return condition["reason"], condition["message"]


async def running(world: Cloud) -> list[str]:
    """Return the names of the VMs that run."""
    return [vm["name"] for vm in await world.list("compute.vm") if vm["conditions"][0]["status"] == "true"]


async def other_runs(world: Cloud, former: str) -> bool:
    """Tell whether exactly one VM runs, and not the former."""
    names = await running(world)
    return len(names) == 1 and names != [former]


async def one_runs_and_all_say_why(world: Cloud) -> bool:
    """Tell whether one VM runs and each other gives a reason that starts with No."""
    reasons = [reason(vm)[0] for vm in await world.list("compute.vm")]
    waiting = [each for each in reasons if each.startswith("No")]
    return len(await running(world)) == 1 and len(waiting) == len(reasons) - 1
