"""Disks and NICs put into and taken out of a running machine, each step undone or redone after an interruption.

The record names a device before it is plugged and until it is gone, so that an agent that starts in between can tell
what is half there. What QEMU has is asked, never assumed: the guest decides when a device really goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from pileus.drivers.host.errors import DriverError, QmpRefused
from pileus.drivers.host.qemu import command
from pileus.drivers.host.qemu.base import DiskAttachment, MachineSpec, NicAttachment, Throttle
from pileus.drivers.host.qemu.folder import MachineFolder
from pileus.drivers.host.qemu.jail import Descriptors
from pileus.drivers.host.qemu.launch import Launcher
from pileus.drivers.host.qemu.live import Live

ASK_AGAIN_S = 2.0
"""A guest that is still booting misses the first request; asking again is harmless."""

RELEASE_TIMEOUT_S = 5.0
"""QEMU lets go of the block nodes of a deleted device within milliseconds."""

_POLL_S = 0.01


def forget(folder: MachineFolder, device: str) -> None:
    """Take a disk or NIC out of the record."""
    spec = folder.record.spec
    if spec is None or device not in folder.record.slots:
        return
    disks = tuple(disk for disk in spec.disks if command.disk_device(disk.id) != device)
    nics = tuple(nic for nic in spec.nics if command.nic_device(nic.id) != device)
    slots = {one: slot for one, slot in folder.record.slots.items() if one != device}
    folder.change(spec=replace(spec, disks=disks, nics=nics), slots=slots)


class Plug:
    """Hot plug of one live machine."""

    def __init__(self, live: Live, launcher: Launcher, unplug_timeout_s: float) -> None:
        self._live = live
        self._launcher = launcher
        self._timeout_s = unplug_timeout_s
        self._lock = asyncio.Lock()
        self._released: dict[str, asyncio.Event] = {}
        live.on_released = self._on_released

    async def attach_disk(self, disk: DiskAttachment) -> None:
        """Plug the disk in; there already: nothing. Raises QmpRefused, DriverError."""
        device = command.disk_device(disk.id)
        async with self._lock:
            if device in await self._present():
                return
            slot = self._remember(device, disk)
            await self._or_forget(device, lambda: self._add_disk(disk, slot))

    async def attach_nic(self, nic: NicAttachment) -> None:
        """Plug the NIC in; there already: nothing. Raises QmpRefused, DriverError."""
        device = command.nic_device(nic.id)
        async with self._lock:
            if device in await self._present():
                return
            slot = self._remember(device, nic)
            await self._or_forget(device, lambda: self._add_nic(nic, slot))

    async def detach(self, device: str) -> None:
        """Unplug the device and forget it. Raises QmpRefused (GuestBusy) when the guest did not let go in time."""
        async with self._lock:
            if device not in self._live.folder.record.slots:
                return
            released = self._released[device] = asyncio.Event()
            try:
                await self._ask_guest(device, released)
            finally:
                del self._released[device]
            await self._drop(device)

    async def set_throttle(self, disk: str, throttle: Throttle) -> None:
        """Change the limits of a disk. Raises DriverError (NoDisk)."""
        found = next((one for one in self._spec().disks if one.id == disk), None)
        if found is None:
            raise DriverError("NoDisk", f"machine {self._spec().id} has no disk {disk}")
        path = f"/objects/{command.throttle_group(disk)}"
        arguments = {"path": path, "property": "limits", "value": command.throttle_limits(throttle)}
        await self._execute("qom-set", arguments)
        changed = replace(found, throttle=throttle)
        disks = tuple(changed if one.id == disk else one for one in self._spec().disks)
        self._live.folder.change(spec=replace(self._spec(), disks=disks))

    async def settle(self) -> None:
        """Forget what an interrupted attach or a late detach left half there, if QEMU answers."""
        with suppress(DriverError):
            async with self._lock:
                present = await self._present()
                for device in [one for one in self._live.folder.record.slots if one not in present]:
                    await self._drop(device)

    async def _ask_guest(self, device: str, released: asyncio.Event) -> None:
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        while device in await self._present():
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise QmpRefused("GuestBusy", "the guest did not let go of the device; try again, or power it off")
            try:
                await self._execute("device_del", {"id": device})
            except QmpRefused as error:
                if error.qemu_class == "DeviceNotFound":
                    return
                # GenericError: an earlier request is still pending in the guest.
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, ASK_AGAIN_S)):
                    await released.wait()

    def _on_released(self, device: str) -> None:
        if device in self._released:
            self._released[device].set()
        elif device in self._live.folder.record.slots:
            self._live.spawn_task(self.settle())

    async def _add_disk(self, disk: DiskAttachment, slot: int) -> None:
        await self._clear_disk(disk)  # what an interrupted attach left
        device = command.disk_device(disk.id)
        with Descriptors() as fds:
            sets = []
            for fd in self._launcher.open_disk(disk, fds):
                answer = await self._live.monitor.execute_with_fd(fd, "add-fd", {"opaque": device})
                sets.append(int(answer["fdset-id"]))
        await self._execute("object-add", command.throttle_object(disk))
        for node in command.disk_nodes(disk, tuple(sets)):
            await self._execute("blockdev-add", node)
        await self._execute("device_add", command.disk_plug(disk, slot))

    async def _add_nic(self, nic: NicAttachment, slot: int) -> None:
        await self._clear_nic(nic)
        netdev = command.netdev(nic.id)
        with Descriptors() as fds:
            fd = await self._launcher.open_tap(nic.tap, fds)
            await self._live.monitor.execute_with_fd(fd, "getfd", {"fdname": netdev})
        await self._execute("netdev_add", {"type": "tap", "id": netdev, "fd": netdev})
        await self._execute("device_add", command.nic_plug(nic, slot))

    async def _drop(self, device: str) -> None:
        for disk in self._spec().disks:
            if command.disk_device(disk.id) == device:
                await self._clear_disk(disk)
        for nic in self._spec().nics:
            if command.nic_device(nic.id) == device:
                await self._clear_nic(nic)
        forget(self._live.folder, device)

    async def _clear_disk(self, disk: DiskAttachment) -> None:
        await self._delete_nodes(command.disk_node_names(disk))
        await self._if_there("object-del", {"id": command.throttle_group(disk.id)})
        device = command.disk_device(disk.id)
        for fdset in await self._execute("query-fdsets"):
            if any(fd.get("opaque") == device for fd in fdset["fds"]):
                await self._if_there("remove-fd", {"fdset-id": fdset["fdset-id"]})

    async def _delete_nodes(self, names: list[str]) -> None:
        deadline = asyncio.get_running_loop().time() + RELEASE_TIMEOUT_S
        while True:
            there = {node["node-name"] for node in await self._execute("query-named-block-nodes", {"flat": True})}
            left = [name for name in names if name in there]
            if not left:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise QmpRefused("NodeInUse", "QEMU did not close the disk; try again, or power the machine off")
            for name in left:
                await self._if_there("blockdev-del", {"node-name": name})
            await asyncio.sleep(_POLL_S)  # the device's last user in QEMU goes after a grace period, with no event

    async def _clear_nic(self, nic: NicAttachment) -> None:
        await self._if_there("netdev_del", {"id": command.netdev(nic.id)})
        await self._if_there("closefd", {"fdname": command.netdev(nic.id)})

    async def _if_there(self, name: str, arguments: dict[str, Any]) -> None:
        with suppress(QmpRefused):
            await self._execute(name, arguments)

    async def _present(self) -> set[str]:
        children = await self._execute("qom-list", {"path": "/machine/peripheral"})
        return {str(child["name"]) for child in children}

    def _remember(self, device: str, attachment: DiskAttachment | NicAttachment) -> int:
        record = self._live.folder.record
        if device not in record.slots:
            spec = self._spec()
            if isinstance(attachment, DiskAttachment):
                slot = command.free_slot(record.slots, "disk")
                spec = replace(spec, disks=(*spec.disks, attachment))
            else:
                slot = command.free_slot(record.slots, "nic")
                spec = replace(spec, nics=(*spec.nics, attachment))
            self._live.folder.change(spec=spec, slots={**record.slots, device: slot})
        return self._live.folder.record.slots[device]

    async def _or_forget(self, device: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except DriverError:
            with suppress(DriverError):
                await self._drop(device)
            raise

    def _spec(self) -> MachineSpec:
        spec = self._live.folder.record.spec
        assert spec is not None  # written before the process was started
        return spec

    async def _execute(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        return await self._live.monitor.execute(name, arguments)
