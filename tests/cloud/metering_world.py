"""What a simulated cloud says that was used, asked as the operator asks, and what its hosts know of it."""

from __future__ import annotations

import contextlib
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from pileus.drivers.host.qemu.fake import FakeHost, FakeMachine
from pileus.kernel.access import Principal
from pileus.server import app
from pileus.server.auth import Auth
from pileus.server.ca import open_authority
from pileus.server.images import ImageStore
from pileus.server.joining import Joining
from pileus.server.parts import Parts
from tests.cloud.fate import DEFECTS, watch_logs
from tests.cloud.invariants import Ledger, check
from tests.cloud.server.server_world import Caller
from tests.cloud.settling import check_truth, clear, reach_fixed_point
from tests.cloud.world import OPERATOR, Cloud, cloud
from tests.virtual_time import clock

HOUR_S = 3600.0
ROUNDING_S = 0.0011
"""Hosts tell times in whole milliseconds, and a machine has two: its start and its end."""


class AsOperator(Auth):
    """Takes whoever calls for the operator."""

    async def principal(self, authorization: str, address: str) -> Principal:
        """Return the operator."""
        return OPERATOR


async def usage(world: Cloud, account: str = "acme", **asked: str) -> dict[str, Any]:
    """Return what ``GET /v1/usage`` answers; without an account: of all."""
    server = world.servers[0]
    authority = await open_authority(server.store)
    with tempfile.TemporaryDirectory(prefix="pileus-", dir="/dev/shm") as folder:
        parts = Parts(
            store=server.store,
            hub=server.hub,
            registry=server.store.registry,
            surface=server.surface,
            auth=AsOperator(server.store, server.hub),
            joining=Joining(server.store, authority),
            images=ImageStore(Path(folder)),
            agents=server.agents,
            uploaded=_uploaded,
        )
        query = "&".join(f"{word}={value}" for word, value in ({"account": account} | asked).items() if value)
        answer = await Caller(app.build(parts))("GET", f"/v1/usage?{query}")
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json
    return found


async def _uploaded(*_: Any) -> None:
    """Nobody uploads here."""


async def used(world: Cloud, name: str, **asked: str) -> dict[str, float]:
    """Return what the account's object with this name used; zero for what it did not."""
    answer = await usage(world, **asked)
    found: defaultdict[str, float] = defaultdict(float)
    for item in answer["items"]:
        if item["name"] == name:
            for word, value in item.items():
                if isinstance(value, float | int):
                    found[word] += value
    return found


class Book:
    """Says how long each machine of the hosts was on and how many CPU-seconds and MiB-seconds that was.

    It looks at the machines themselves, whenever one changes; it knows nothing of servers and agents.
    """

    def __init__(self, world: Cloud) -> None:
        self._world = world
        self.spans: defaultdict[str, list[tuple[float, float, int, int]]] = defaultdict(list)
        """Begin, end, CPUs and MiB of each time that a machine was on, by its id."""
        for host in world.hosts.values():
            self.follow(host.machines)

    def follow(self, host: FakeHost) -> None:
        """Note every end of the host's machines from now on."""
        end = host.end

        def noted(machine: FakeMachine, *how: Any) -> None:
            if machine.started_at is not None:
                spec = machine.spec
                self.spans[spec.id].append((machine.started_at, clock(), spec.vcpus, spec.memory_mib))
            end(machine, *how)

        host.end = noted  # type: ignore[assignment, method-assign]

    def ids(self) -> set[str]:
        """Return the ids of all machines that were ever on."""
        here = {id for host in self._world.hosts.values() for id in host.machines.machines if self.is_on(id)}
        return here | set(self.spans)

    def all(self, id: str) -> Iterator[tuple[float, float, int, int]]:
        """Yield every time that the machine was on; what is on now, until now."""
        yield from self.spans.get(id, ())
        for host in self._world.hosts.values():
            machine = host.machines.machines.get(id)
            if machine is not None and machine.started_at is not None:
                yield machine.started_at, clock(), machine.spec.vcpus, machine.spec.memory_mib

    def is_on(self, id: str) -> bool:
        """Tell whether the machine is on now."""
        found = [host.machines.machines.get(id) for host in self._world.hosts.values()]
        return any(machine is not None and machine.started_at is not None for machine in found)

    def on_s(self, id: str) -> float:
        """Return the seconds that the machine was on."""
        return sum(end - begin for begin, end, _, _ in self.all(id))

    def vcpu_s(self, id: str) -> float:
        """Return the CPU-seconds that it was on."""
        return sum((end - begin) * vcpus for begin, end, vcpus, _ in self.all(id))

    def memory_mib_s(self, id: str) -> float:
        """Return the MiB-seconds that it was on."""
        return sum((end - begin) * memory for begin, end, _, memory in self.all(id))


@contextlib.asynccontextmanager
async def metered(hosts: int = 1, **more: Any) -> AsyncIterator[tuple[Cloud, Book]]:
    """Give a cloud with the account acme; at the end everything holds, and can be deleted without rest."""
    watch_logs()
    async with cloud(hosts, **more) as world:
        await world.create("tenancy.account", "acme")
        yield world, Book(world)
        await reach_fixed_point(world)
        await check(world, Ledger(), full=True)
        await check_truth(world)
        await clear(world)
        await check(world, Ledger(), full=True)
        assert DEFECTS == []
