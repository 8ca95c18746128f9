"""Takes the VMs and the network of this machine down: guests are asked to power off, and get some time for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from pileus.agent.run import AgentSettings, opened_drivers, sole_user
from pileus.agent.wiring import Drivers
from pileus.compute.vm.host import Note
from pileus.kernel.clock import system_clock

LOOK_EVERY_S = 0.2
APPLIANCES_S = 5.0
"""What appliances get although guests took all the time."""


async def take_down(settings: AgentSettings, grace_s: float, say: Callable[[str], None]) -> int:
    """Power off every machine of this host, remove its switch, and return how many ran.

    Guests have ``grace_s`` seconds to end by themselves; 0: they are not asked.
    """
    with sole_user(settings.data):
        async with opened_drivers(settings) as drivers:
            running = await _running(drivers)
            # Guests may need their appliances to the end: routers, and nodes that serve their disks.
            appliances = [machine for machine in running if settings.paths.channel_key(machine).exists()]
            guests = [machine for machine in running if machine not in appliances]
            if running and grace_s > 0:
                say(f"asking {len(running)} VMs to power off (at most {grace_s:.0f} s; --now does not ask)")
                end = time.monotonic() + grace_s
                await _ask(drivers, guests, end)
                await _ask(drivers, appliances, max(end, time.monotonic() + APPLIANCES_S))
            for machine in await _running(drivers):
                await drivers.hypervisor.power_off(machine)
            await drivers.mirror.tear_down()
            await drivers.switch.remove()
    return len(guests)


async def _ask(drivers: Drivers, machines: list[str], end: float) -> None:
    """Ask the machines to power off, and wait until they did, at most until ``end`` (monotonic)."""
    for machine in machines:
        _note_asked(drivers, machine)
        await drivers.hypervisor.shutdown(machine)
    while {*machines} & {*await _running(drivers)} and time.monotonic() < end:  # noqa: ASYNC110 - no events here
        await asyncio.sleep(LOOK_EVERY_S)


async def _running(drivers: Drivers) -> list[str]:
    return [machine.id for machine in (await drivers.hypervisor.observe()).values() if machine.state != "stopped"]


def _note_asked(drivers: Drivers, machine: str) -> None:
    """Note beside the machine that its guest was asked: it starts again with the next ``up``, as was wished."""
    text = drivers.notes.get(machine)
    note = msgspec.json.decode(text, type=Note) if text else Note()
    asked = replace(note, shutdown_asked_at=system_clock(), shutdown_pressed_at=system_clock())
    drivers.notes.put(machine, msgspec.json.encode(asked))
