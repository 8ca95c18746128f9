"""What happens to a cloud without anybody asking: processes die, links break, drivers fail, guests end."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import MutableMapping
from typing import Any

import structlog

from pileus.drivers.host.disk.fake import Fault as DiskFault
from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.ovs.fake import Fault as SwitchFault
from pileus.kernel.errors import Transient
from pileus.kernel.stream import Report, encode
from pileus.lab.simulated import SimulatedHost
from tests.cloud.invariants import Broken
from tests.cloud.world import Cloud

INJECTED = DriverError("Injected", "a failure that the walk made")
DEFECTS: list[str] = []
"""Log lines that only a defect writes."""


def watch_logs() -> None:
    """Keep defects from now on, drop all other lines."""
    DEFECTS.clear()
    structlog.configure(processors=[structlog.processors.format_exc_info, _keep], cache_logger_on_first_use=False)


def _keep(logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
    if method == "exception" or event["event"].startswith("defect"):
        DEFECTS.append(str(dict(event)))
    raise structlog.DropEvent


class Fate:
    """Makes accidents; ``calm`` ends all of them."""

    def __init__(self, world: Cloud, random: random.Random) -> None:
        self.world = world
        self.random = random
        self.happened: Counter[str] = Counter()
        DEFECTS.clear()

    def check_logs(self) -> None:
        """Raises: Broken when a loop met a defect."""
        if DEFECTS:
            raise Broken(f"a defect was logged: {DEFECTS[0]}")

    def _host(self) -> SimulatedHost:
        return self.random.choice(list(self.world.hosts.values()))

    async def driver_fault(self) -> None:
        """One of the next calls of a driver fails, before or after its work."""
        self.happened["driver faults"] += 1
        host, after = self._host(), self.random.random() < 0.4
        which = self.random.choice(("machines", "machines", "switch", "pool", "mirror"))
        soon = self.random.randrange(1, 12)
        if which == "machines":
            host.machines.fail_call(soon, INJECTED, "after" if after else "before")
        elif which == "mirror":
            call = self.random.choice(("observe", "put", "put", "remove"))
            host.mirror.errors[call] = INJECTED  # type: ignore[index]
        elif which == "switch":
            call = self.random.choice(("observe", "plug", "unplug", "counters"))
            k = host.switch.calls[call] + self.random.randrange(1, 4)  # type: ignore[index]
            host.switch.faults[:] = [each for each in host.switch.faults if each.k > host.switch.calls[each.call]]
            host.switch.faults.append(SwitchFault(call=call, k=k, error=INJECTED, after=after))  # type: ignore[arg-type]
        else:
            call = self.random.choice(("capacity", "volumes", "create", "resize", "delete", "images", "put_image"))
            k = host.pool.calls[call] + self.random.randrange(1, 4)  # type: ignore[index]
            host.pool.faults[:] = [each for each in host.pool.faults if each.k > host.pool.calls[each.call]]
            host.pool.faults.append(DiskFault(call=call, k=k, error=INJECTED, after=after))  # type: ignore[arg-type]

    async def machine_ends(self) -> None:
        """A QEMU process is killed."""
        running = self._running()
        if running:
            self.happened["machines killed"] += 1
            host, id = self.random.choice(running)
            host.machines.crash(id)

    async def guest_ends(self) -> None:
        """A guest powers itself off."""
        running = self._running()
        if running:
            self.happened["guests powered off"] += 1
            host, id = self.random.choice(running)
            host.machines.crash(id, "guest-shutdown", "")

    def _running(self) -> list[tuple[SimulatedHost, str]]:
        return [
            (host, id)
            for host in self.world.hosts.values()
            for id, machine in host.machines.machines.items()
            if machine.state == "running"
        ]

    async def deaf_guest(self) -> None:
        """A guest heeds no power button any more, or does so again."""
        for host, id in self._running()[:1]:
            host.machines.machines[id].deaf = not host.machines.machines[id].deaf

    async def hung_machine(self) -> None:
        """A QEMU process is stopped, or goes on."""
        running = self._running()
        if running:
            host, id = self.random.choice(running)
            is_hung = host.machines.machines[id].hung
            self.happened["machines hung"] += not is_hung
            (host.machines.unhang if is_hung else host.machines.hang)(id)

    async def kill_agent(self) -> None:
        """kill -9 of an agent; half the time it comes back at once."""
        if self.world.agents:
            self.happened["agents killed"] += 1
            host = self.random.choice(sorted(self.world.agents))
            await self.world.stop_agent(host)
            if self.random.random() < 0.5:
                await self.world.start_agent(host)

    async def start_agents(self) -> None:
        """Start one agent that is down."""
        down = sorted(self.world.hosts.keys() - self.world.agents.keys())
        if down:
            await self.world.start_agent(self.random.choice(down))

    async def part(self) -> None:
        """A host loses its way to the servers."""
        self.happened["links cut"] += 1
        await self.world.cut_link(self.random.choice(sorted(self.world.hosts)))

    async def heal(self) -> None:
        """One such host finds it again."""
        if self.world.cut:
            self.world.heal_link(self.random.choice(sorted(self.world.cut)))

    async def kill_server(self) -> None:
        """kill -9 of a server, and a new one."""
        self.happened["servers killed"] += 1
        server = self.random.choice(self.world.servers)
        await self.world.stop_server(server)
        await self.world.start_server(server.store.server)

    async def reboot_host(self) -> None:
        """A host restarts: machines and flows are gone, files stay."""
        self.happened["hosts rebooted"] += 1
        id = self.random.choice(sorted(self.world.hosts))
        if id in self.world.agents:
            await self.world.stop_agent(id)
        self.world.hosts[id].machines.reboot()
        self.world.hosts[id].switch.crash()
        self.world.hosts[id].switch.ports.clear()
        self.world.hosts[id].switch.segments.clear()
        self.world.hosts[id].mirror.legs.clear()
        await asyncio.sleep(self.random.choice((0.1, 20.0)))
        await self.world.start_agent(id)

    async def switch_crashes(self) -> None:
        """A switch restarts: ports stay, flows are gone."""
        self.happened["switches crashed"] += 1
        self._host().switch.crash()

    async def switch_vanishes(self) -> None:
        """Somebody removed the switch with all its ports."""
        self.happened["switches lost"] += 1
        switch = self._host().switch
        switch.ports.clear()
        switch.segments.clear()

    async def report_again(self) -> None:
        """An agent's connection repeats an older report, out of order."""
        links = [id for id in sorted(self.world.links) if id in self.world.agents and id not in self.world.cut]
        if not links:
            return
        id = self.random.choice(links)
        facts = tuple(self.world.running[id]._converger.facts())
        if facts:
            self.happened["reports repeated"] += 1
            chosen = tuple(self.random.sample(facts, min(len(facts), 3)))
            with contextlib.suppress(Transient):
                await self.world.links[id].send(encode(Report(number=1, facts=chosen)))

    async def retire_hosts(self) -> None:
        """Switch off machines whose host was removed from the cloud; nothing of a tenant may be on them."""
        for id in sorted(self.world.hosts):
            row = await self.world.servers[0].store.row(id)
            if row is None:
                host = self.world.hosts.pop(id)
                self.world.cut.discard(id)
                if id in self.world.agents:
                    await self.world.stop_agent(id)
                if host.machines.machines or host.switch.ports or host.pool.volumes:
                    raise Broken(f"host {id} was removed with something on it")

    async def calm(self) -> None:
        """End all accidents: agents up, links whole, drivers well, guests obedient."""
        for id, host in self.world.hosts.items():
            host.machines._faults.clear()
            host.switch.faults.clear()
            host.pool.faults.clear()
            host.mirror.errors.clear()
            for machine_id, machine in host.machines.machines.items():
                machine.deaf = False
                host.machines.unhang(machine_id)
            self.world.heal_link(id)
            if id not in self.world.agents:
                await self.world.start_agent(id)
