"""From a machine's specification to QEMU's command line and to the QMP arguments of hot plug. Pure: opens nothing.

QEMU gets every file, socket and tap as an open descriptor: its own user may open nothing of the host's. No text of a
tenant becomes an argument; ids appear as digests, because QEMU allows a block node 31 characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import blake2s
from typing import Any, Literal
from uuid import UUID

from msgspec import Struct

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.qemu.base import DirectBoot, DiskAttachment, MachineSpec, NicAttachment, Throttle

QEMU = "qemu-system-x86_64"

ROOT_SLOT = 0x02
NIC_SLOTS = range(0x03, 0x0B)
DISK_SLOTS = range(0x0B, 0x1B)
"""PCI slots by kind, so that a NIC keeps its name in the guest when a disk comes or goes."""
CHANNEL_SLOT = 0x1B
BALLOON_SLOT, RNG_SLOT, SEED_SLOT = 0x1C, 0x1D, 0x1E
"""The seed comes last: the guest numbers disks by slot, so data disks keep their order."""

CHANNEL_PORT = "channel"
CHANNEL_NAMES = {"serial": "pileus.0", "qga": "org.qemu.guest_agent.0"}
"""By which the guest finds the port."""

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
ON_END = "reboot=reset,shutdown=pause,panic=pause"
"""A guest that ended stays as a paused process until an agent has read why; then the agent ends it."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_CONSOLE_SET, _SEED_SET, _FIRMWARE_SET, _FIRST_DISK_SET = 1, 2, 3, 5

QmpArguments = dict[str, Any]


class OpenFiles(Struct, frozen=True, kw_only=True):
    """Descriptor numbers in the new process. ``disks``: of the disk itself, then of each backing file, by disk id."""

    qmp: int
    console: int
    console_log: int
    channel: int | None = None
    seed: int | None = None
    kernel: int | None = None
    initrd: int | None = None
    firmware: tuple[int, int] | None = None
    """UEFI's code, and the machine's own variables of it; None: BIOS."""
    disks: Mapping[str, tuple[int, ...]] = {}
    taps: Mapping[str, int] = {}


def disk_device(disk: str) -> str:
    """Return the QEMU device id of a disk."""
    return f"disk-{_tag(disk)}"


def nic_device(nic: str) -> str:
    """Return the QEMU device id of a NIC."""
    return f"nic-{_tag(nic)}"


def check(spec: MachineSpec) -> None:
    """Accept a specification that can be started. Raises DriverError (BadSpec)."""
    ids = [spec.id, *(disk.id for disk in spec.disks), *(nic.id for nic in spec.nics)]
    for wrong in (one for one in ids if not _ID.fullmatch(one)):
        raise DriverError("BadSpec", f"{wrong!r} is not an id that a machine, disk or NIC may have")
    if len(set(ids[1:])) != len(ids) - 1:
        raise DriverError("BadSpec", f"machine {spec.id} names a disk or NIC twice")
    if spec.vcpus < 1 or spec.memory_mib < 1:
        raise DriverError("BadSpec", f"machine {spec.id} needs at least 1 vCPU and 1 MiB of memory")
    for nic in spec.nics:
        check_nic(nic)


def check_nic(nic: NicAttachment) -> None:
    """Accept a NIC whose id and MAC are well formed. Raises DriverError (BadSpec)."""
    if not _ID.fullmatch(nic.id) or not _MAC.fullmatch(nic.mac):
        raise DriverError("BadSpec", f"NIC {nic.id!r} has no usable id or MAC address ({nic.mac!r})")


def check_disk(disk: DiskAttachment) -> None:
    """Accept a disk whose id is well formed. Raises DriverError (BadSpec)."""
    if not _ID.fullmatch(disk.id):
        raise DriverError("BadSpec", f"{disk.id!r} is not an id that a disk may have")


def plan_slots(spec: MachineSpec) -> dict[str, int]:
    """Return the PCI slot of each disk and NIC, by device id. Raises DriverError (TooManyDevices)."""
    slots: dict[str, int] = {}
    for index, disk in enumerate(spec.disks):
        slots[disk_device(disk.id)] = ROOT_SLOT if index == 0 else free_slot(slots, "disk")
    for nic in spec.nics:
        slots[nic_device(nic.id)] = free_slot(slots, "nic")
    return slots


def free_slot(slots: Mapping[str, int], kind: Literal["disk", "nic"]) -> int:
    """Return the lowest free PCI slot for a ``kind``. Raises DriverError (TooManyDevices)."""
    allowed = DISK_SLOTS if kind == "disk" else NIC_SLOTS
    for slot in allowed:
        if slot not in slots.values():
            return slot
    raise DriverError("TooManyDevices", f"a machine has room for {len(allowed)} {kind}s; detach one first")


def command(spec: MachineSpec, files: OpenFiles, accelerator: str, slots: Mapping[str, int]) -> list[str]:
    """Return QEMU's arguments, the program first. ``slots`` as from ``plan_slots``. Source: qemu(1)."""
    return [
        *_base(spec, files, accelerator),
        *_consoles(files),
        *_channel(spec, files),
        *_boot(spec.boot, files),
        *_firmware(files),
        *_disks(spec, files, slots),
        *_seed(files),
        *_nics(spec, files, slots),
        *_rest(),
    ]


def disk_nodes(disk: DiskAttachment, fdsets: tuple[int, ...]) -> list[QmpArguments]:
    """Return the block nodes of a disk, lowest first; ``fdsets``: the set of the disk's file, then of each backing."""
    tag = _tag(disk.id)
    layers = [(disk.format, disk.read_only), *((layer.format, True) for layer in disk.backing)]
    nodes: list[QmpArguments] = []
    for depth in reversed(range(len(layers))):
        form, read_only = layers[depth]
        options: QmpArguments = {"read-only": read_only, "cache": {"direct": False, "no-flush": False}}
        if not read_only:
            options["discard"] = "unmap"
        file, node = f"f{depth}-{tag}", f"l{depth}-{tag}"
        nodes.append(
            {
                "driver": "file",
                "node-name": file,
                "filename": f"/dev/fdset/{fdsets[depth]}",
                "locking": "on",
                "aio": "threads",
                **options,
            }
        )
        layer: QmpArguments = {"driver": form, "node-name": node, "file": file, **options}
        if form == "qcow2":
            layer["backing"] = f"l{depth + 1}-{tag}" if depth + 1 < len(layers) else None
        nodes.append(layer)
    nodes.append(
        {
            "driver": "throttle",
            "node-name": f"top-{tag}",
            "throttle-group": throttle_group(disk.id),
            "file": f"l0-{tag}",
            "read-only": disk.read_only,
        }
    )
    return nodes


def disk_node_names(disk: DiskAttachment) -> list[str]:
    """Return the node names of a disk in the order in which they can be deleted."""
    return [str(node["node-name"]) for node in reversed(disk_nodes(disk, tuple(range(1 + len(disk.backing)))))]


def disk_node(disk: str) -> str:
    """Return the node that has the disk's content, below its limits."""
    return f"l0-{_tag(disk)}"


def copy_nodes(name: str, fdset: int) -> list[QmpArguments]:
    """Return the block nodes of an empty qcow2 that a copy goes into, lowest first; all have ``name`` before them.

    By name they are in the order in which they can be deleted.
    """
    file: QmpArguments = {"driver": "file", "filename": f"/dev/fdset/{fdset}", "locking": "on", "discard": "unmap"}
    return [
        {**file, "node-name": f"{name}.b"},
        {"driver": "qcow2", "file": f"{name}.b", "node-name": f"{name}.a", "backing": None, "discard": "unmap"},
    ]


def throttle_group(disk: str) -> str:
    """Return the id of the disk's throttle-group object."""
    return f"limit-{_tag(disk)}"


def throttle_limits(throttle: Throttle) -> QmpArguments:
    """Return the property ``limits`` of a throttle group; 0 is no limit there too."""
    return {"iops-total": throttle.iops, "bps-total": throttle.bytes_per_s}


def throttle_object(disk: DiskAttachment) -> QmpArguments:
    """Return the arguments of object-add for the disk's throttle group."""
    return {"qom-type": "throttle-group", "id": throttle_group(disk.id), "limits": throttle_limits(disk.throttle)}


def disk_plug(disk: DiskAttachment, slot: int, bootable: bool = False) -> QmpArguments:
    """Return the arguments of device_add for a disk."""
    plug: QmpArguments = {
        "driver": "virtio-blk-pci",
        "id": disk_device(disk.id),
        "drive": f"top-{_tag(disk.id)}",
        "serial": disk.id[-20:],
        "addr": f"{slot:#x}",
    }
    return plug | {"bootindex": 1} if bootable else plug


def netdev(nic: str) -> str:
    """Return the id of the host side of a NIC."""
    return f"net-{_tag(nic)}"


def nic_plug(nic: NicAttachment, slot: int) -> QmpArguments:
    """Return the arguments of device_add for a NIC; without a boot ROM, which costs start-up time."""
    return {
        "driver": "virtio-net-pci",
        "id": nic_device(nic.id),
        "netdev": netdev(nic.id),
        "mac": nic.mac,
        "romfile": "",
        "addr": f"{slot:#x}",
    }


def _tag(id_: str) -> str:
    return blake2s(id_.encode(), digest_size=8).hexdigest()


def _base(spec: MachineSpec, files: OpenFiles, accelerator: str) -> list[str]:
    accel, cpu = ("kvm", "host") if accelerator == "kvm" else ("tcg,tb-size=64", "max")
    # Without direct boot the firmware and boot loader write to the serial console: "no bootable disk" becomes visible.
    graphics = "" if spec.boot else ",graphics=off"
    flash = ",pflash0=firmware-0,pflash1=firmware-1" if files.firmware else ""
    identity = UUID(bytes=blake2s(spec.id.encode(), digest_size=16).digest(), version=4)
    return [
        QEMU, "-name", f"guest={spec.id}", "-uuid", str(identity),
        "-machine", f"pc,usb=off,vmport=off,dump-guest-core=off{graphics}{flash}", "-accel", accel, "-cpu", cpu,
        "-smp", str(spec.vcpus), "-m", str(spec.memory_mib),
        "-nodefaults", "-no-user-config", "-display", "none", "-sandbox", SANDBOX, "-action", ON_END,
        # A node reads its deadlines off this clock: it goes on while the machine is paused.
        "-rtc", "base=utc,clock=host",
    ]  # fmt: skip


def _consoles(files: OpenFiles) -> list[str]:
    console = f"/dev/fdset/{_CONSOLE_SET}"
    return [
        "-chardev", f"socket,id=qmp,fd={files.qmp},server=on,wait=off", "-mon", "chardev=qmp,mode=control",
        "-add-fd", f"fd={files.console_log},set={_CONSOLE_SET},opaque=console",
        "-chardev", f"socket,id=console,fd={files.console},server=on,wait=off,logfile={console},logappend=on",
        "-serial", "chardev:console",
    ]  # fmt: skip


def _channel(spec: MachineSpec, files: OpenFiles) -> list[str]:
    if not spec.channel:
        return []
    port = f"id={CHANNEL_PORT},bus=channels.0,nr=1,chardev=channel,name={CHANNEL_NAMES[spec.channel]}"
    return [
        "-device", f"virtio-serial-pci,id=channels,max_ports=2,addr={CHANNEL_SLOT:#x}",
        "-chardev", f"socket,id=channel,fd={files.channel},server=on,wait=off",
        "-device", f"virtserialport,{port}",
    ]  # fmt: skip


def _boot(boot: DirectBoot | None, files: OpenFiles) -> list[str]:
    if boot is None:
        return []
    # The magic link opens the file itself, whatever the folders above it allow.
    return [
        "-kernel",
        f"/proc/self/fd/{files.kernel}",
        "-initrd",
        f"/proc/self/fd/{files.initrd}",
        "-append",
        boot.append,
    ]


def _firmware(files: OpenFiles) -> list[str]:
    """Return the two flash devices. Source: QEMU, docs/system/i386/pc.rst; OvmfPkg/README."""
    arguments: list[str] = []
    for number, fd in enumerate(files.firmware or ()):
        fdset, read_only = _FIRMWARE_SET + number, number == 0
        file: QmpArguments = {"driver": "file", "node-name": f"firmware-file-{number}", "read-only": read_only}
        node: QmpArguments = {"driver": "raw", "node-name": f"firmware-{number}", "read-only": read_only}
        arguments += ["-add-fd", f"fd={fd},set={fdset},opaque=firmware"]
        arguments += ["-blockdev", json.dumps(file | {"filename": f"/dev/fdset/{fdset}", "locking": "on"})]
        arguments += ["-blockdev", json.dumps(node | {"file": f"firmware-file-{number}"})]
    return arguments


def _disks(spec: MachineSpec, files: OpenFiles, slots: Mapping[str, int]) -> list[str]:
    arguments: list[str] = []
    next_set = _FIRST_DISK_SET
    for index, disk in enumerate(spec.disks):
        fds = files.disks[disk.id]
        fdsets = tuple(range(next_set, next_set + len(fds)))
        next_set += len(fds)
        device = disk_device(disk.id)
        for fd, fdset in zip(fds, fdsets, strict=True):
            arguments += ["-add-fd", f"fd={fd},set={fdset},opaque={device}"]
        arguments += ["-object", json.dumps(throttle_object(disk))]
        for node in disk_nodes(disk, fdsets):
            arguments += ["-blockdev", json.dumps(node)]
        arguments += ["-device", json.dumps(disk_plug(disk, slots[device], bootable=index == 0))]
    return arguments


def _seed(files: OpenFiles) -> list[str]:
    if files.seed is None:
        return []
    file = {"driver": "file", "node-name": "seed-file", "filename": f"/dev/fdset/{_SEED_SET}", "read-only": True}
    node = {"driver": "raw", "node-name": "seed", "file": "seed-file", "read-only": True}
    plug = {"driver": "virtio-blk-pci", "id": "seed", "drive": "seed", "serial": "seed", "addr": f"{SEED_SLOT:#x}"}
    return [
        "-add-fd",
        f"fd={files.seed},set={_SEED_SET},opaque=seed",
        "-blockdev",
        json.dumps(file),
        "-blockdev",
        json.dumps(node),
        "-device",
        json.dumps(plug),
    ]


def _nics(spec: MachineSpec, files: OpenFiles, slots: Mapping[str, int]) -> list[str]:
    arguments: list[str] = []
    for nic in spec.nics:
        # Whether packets carry a virtio header is a property of the tap as it was opened (none: no offloads).
        arguments += ["-netdev", f"tap,id={netdev(nic.id)},fd={files.taps[nic.id]}"]
        arguments += ["-device", json.dumps(nic_plug(nic, slots[nic_device(nic.id)]))]
    return arguments


def _rest() -> list[str]:
    return [
        "-object", "rng-builtin,id=rng", "-device", f"virtio-rng-pci,rng=rng,addr={RNG_SLOT:#x}",
        "-device", f"virtio-balloon-pci,id=balloon,free-page-reporting=on,addr={BALLOON_SLOT:#x}",
        "-device", "pvpanic",
    ]  # fmt: skip
