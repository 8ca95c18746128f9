"""A process of simulated hosts: one real agent each, joined and connected as agents of real machines are."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import sys
from pathlib import Path

import structlog
import uvloop

from pileus.agent.connection import Connector
from pileus.agent.identity import client_context, join
from pileus.drivers.host.ovs.base import Uplinks
from pileus.kernel.clock import system_clock
from pileus.kernel.errors import Transient
from pileus.lab.seats import Attached, Order, Seat, lifeline, read, tell
from pileus.lab.simulated import SimulatedHost
from pileus.server import logs
from pileus.server.run import GC_THRESHOLD

log = structlog.get_logger()

AT_ONCE = 8
"""Agents that join or connect at the same time: a handshake costs the server a millisecond, and more only queue."""
TELL_EVERY_S = 0.5
JOIN_TRIES = 5


class Hosts:
    """The agents of one order."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._attached = 0

    async def run(self) -> None:
        """Run all agents until cancelled. Raises: Rejected when one may not join."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell())
            for seed, seat in enumerate(self._order.seats):
                tasks.create_task(self._host(tasks, seat, seed), name=seat.name)

    async def _host(self, tasks: asyncio.TaskGroup, seat: Seat, seed: int) -> None:
        async with self._gate:
            folder = Path(self._order.folder) / seat.name
            if seat.token:
                await self._join(seat, folder)
            uplinks = Uplinks(trunk="trunk0", tunnel="tunnel0", tunnel_address=seat.tunnel_address, public="public0")
            host = SimulatedHost(system_clock, seed=seed, instant=self._order.instant, uplinks=uplinks)
            connector = Connector(self._order.url, client_context(folder))
            agent = await host.start_agent(connector.open, connector.content)
            tasks.create_task(agent.run(), name=f"agent {seat.name}")
            await agent.connected.wait()
            self._attached += 1

    async def _join(self, seat: Seat, folder: Path) -> None:
        """Get the agent's certificate; what passes, such as a server too busy to answer in time, is tried again."""
        for tries in range(JOIN_TRIES):
            try:
                await join(self._order.url, seat.token, folder)
            except Transient as error:
                if tries == JOIN_TRIES - 1:
                    raise
                log.warning("joining again", host=seat.name, error=error.message)
                await asyncio.sleep(2.0**tries)
            else:
                return

    async def _tell(self) -> None:
        told = -1
        while told < len(self._order.seats):
            if self._attached != told:
                told = self._attached
                tell(Attached(count=told))
            await asyncio.sleep(TELL_EVERY_S)
        gc.collect()
        gc.freeze()


async def run() -> None:
    """Run the agents of the order on standard input until that ends."""
    line = await lifeline()
    order = read(await line.readline(), Order)
    hosts = asyncio.create_task(Hosts(order).run(), name="hosts")
    end = asyncio.create_task(line.read(), name="lifeline")
    await asyncio.wait({hosts, end}, return_when=asyncio.FIRST_COMPLETED)
    end.cancel()
    hosts.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await hosts


def main() -> int:
    """Run; a defect ends the process with its trace on standard error."""
    logs.set_up()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.set_threshold(*GC_THRESHOLD)
    with contextlib.suppress(KeyboardInterrupt):  # the terminal's ctrl-c is for who started it
        uvloop.run(run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
