"""A host with a real switch, and guests on it that send and keep raw frames.

A sentinel, a good frame sent last on the same port, proves that every frame before it has had its chance to arrive. Two
are needed, one after the other: the switch takes frames in batches and keeps the order inside one only by flow.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from itertools import count

import pytest
from tests.contract.ovs.frames import good, mac_of

from pileus.drivers.host.ovs import namespace
from pileus.drivers.host.ovs.base import PortSpec, Uplinks
from pileus.drivers.host.ovs.real import OpenVSwitch
from pileus.drivers.host.paths import HostPaths

LIMIT_S = 30
"""For conditions that hold within a second on an idle machine."""

IFF_RUNNING = 0x40
LONELY = Uplinks()


class Guest:
    """A machine's NIC: whatever comes in is kept in ``inbox``."""

    def __init__(self, spec: PortSpec, descriptor: int) -> None:
        self.spec = spec
        self.mac = mac_of(spec)
        self.inbox: list[bytes] = []
        self._descriptor = descriptor
        self._arrived = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            os.write(self._descriptor, frame)

    async def arrival(self, frame: bytes, timeout_s: float) -> bool:
        """Return whether ``frame`` is in the inbox within the time."""
        return await self.arrives(lambda: frame in self.inbox, timeout_s)

    async def arrives(self, true: Callable[[], bool], timeout_s: float = LIMIT_S) -> bool:
        """Return whether ``true`` holds within the time; it is asked whenever something came."""
        try:
            async with asyncio.timeout(timeout_s):
                while not true():
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        while True:
            try:
                self.inbox.append(os.read(self._descriptor, 65_536))
            except BlockingIOError:
                break
        self._arrived.set()


def is_running(link: str) -> bool:
    """Return whether the kernel has put the link to work; setting flags waits for the lock it does so under."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = fcntl.ioctl(control, namespace.SIOCGIFFLAGS, struct.pack("16sH22x", link.encode(), 0))
        fcntl.ioctl(control, namespace.SIOCSIFFLAGS, request)
    return bool(struct.unpack_from("H", request, 16)[0] & IFF_RUNNING)


class Lan:
    """A real switch and the guests on it."""

    def __init__(self, paths: HostPaths, uplinks: Uplinks = LONELY) -> None:
        self.paths = paths
        self.uplinks = uplinks
        self.switch = OpenVSwitch(paths, uplinks)
        self.guests: list[Guest] = []
        self._serial = count()

    async def plug(self, spec: PortSpec) -> Guest:
        fact = await self.switch.plug(spec)
        guest = Guest(spec, await self.switch.open_tap(fact.tap))
        self.guests.append(guest)
        async with asyncio.timeout(LIMIT_S):
            # The kernel drops what it sends to a tap until it has noticed that somebody opened it.
            while not await namespace.inside(self.paths.namespace, lambda: is_running(fact.tap)):
                pass
        return guest

    async def unplug(self, guest: Guest) -> None:
        self.guests.remove(guest)
        guest.close()
        await self.switch.unplug(guest.spec.id)

    async def settle(self, sender: Guest, receiver: Guest) -> None:
        """Send sentinels until two have arrived, the second sent after the first was there; then forget them."""
        mark, arrived = b"sentinel", 0
        async with asyncio.timeout(LIMIT_S):
            while arrived < 2:
                frame = good(sender.spec, receiver.spec, mark + str(next(self._serial)).encode())
                sender.send(frame)
                arrived += await receiver.arrival(frame, timeout_s=1)
        receiver.inbox = [frame for frame in receiver.inbox if mark not in frame]

    async def counted(self, number: Callable[[], Awaitable[int]], wanted: int) -> None:
        """Wait until ``number`` gives ``wanted``; counters of flows lag up to half a second."""
        seen = None
        try:
            async with asyncio.timeout(LIMIT_S):
                while seen != wanted:
                    seen = await number()
        except TimeoutError:
            pytest.fail(f"counted {seen}, wanted {wanted}")

    async def dropped(self, spec: PortSpec) -> int:
        return (await self.switch.counters())[spec.id].dropped_packets
