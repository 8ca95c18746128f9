"""What a descriptor means for Pileus: its VMs as machines, for one deployment option and given properties.

Required hardware that a VM cannot have here is refused by name; what says that it is not required is passed over.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from msgspec import Struct, structs

from pileus.ovf import controllers, units
from pileus.ovf.controllers import CDROM, CPU, DISK, DVD, ETHERNET, FLOPPY, LOGICAL_DISK, MEMORY
from pileus.ovf.faults import Faults, shown
from pileus.ovf.limits import DEFAULT, Limits
from pileus.ovf.model import (
    Bus,
    Config,
    Content,
    Disk,
    Envelope,
    Firmware,
    HardwareSection,
    Item,
    Machine,
    MachineDisk,
    MachineNic,
    Property,
    VirtualSystem,
)
from pileus.ovf.properties import by_key, capacity_bytes
from pileus.ovf.resources import resource_of
from pileus.ovf.startup import startups

_MIB = 1 << 20
_BUS_ORDER: tuple[Bus, ...] = ("ide", "sata", "scsi", "nvme", "virtio", "usb", "floppy")
_KINDS: dict[int, Literal["disk", "cdrom", "floppy"]] = {
    DISK: "disk", LOGICAL_DISK: "disk", CDROM: "cdrom", DVD: "cdrom", FLOPPY: "floppy"
}  # fmt: skip
_SECURE_BOOT = "bootoptions.efisecurebootenabled"


class Choice(Struct, frozen=True, kw_only=True):
    """What the one who deploys a package chooses."""

    configuration: str = ""
    """A deployment option; empty: the default one."""
    properties: Mapping[str, str] = {}


def machines(
    envelope: Envelope, faults: Faults, *, choice: Choice | None = None, limits: Limits = DEFAULT
) -> tuple[Machine, ...]:
    """Return the VMs of a package, in its order; what cannot be is in ``faults``. Raises: OvfFault for an unknown option."""
    chosen = choice or Choice()
    option = chosen_configuration(envelope, chosen.configuration, faults)
    starts = startups(envelope.content)
    package = _Package(envelope=envelope, option=option, given=chosen.properties, known=by_key(envelope),
                       disks={disk.id: disk for disk in envelope.disks})  # fmt: skip
    made = tuple(
        structs.replace(_Machine(package, system, faults).built(limits), startup=starts[system.id], collections=around)
        for system, around in _systems(envelope.content)
        if system.hardware
    )
    _note_copies(made, faults)
    return made


def _note_copies(made: Sequence[Machine], faults: Faults) -> None:
    """Note disks that several VMs have, each its own copy, because nothing says that they share it."""
    owners: dict[str, str] = {}
    for machine in made:
        for disk in machine.disks:
            owner = owners.setdefault(disk.disk_id, machine.id)
            if disk.disk_id and owner != machine.id and not disk.shared:
                text = f"disk {shown(disk.disk_id)} of VM {shown(machine.id)} is also VM {shown(owner)}'s; each gets a copy"
                faults.note("copied-disk", text, line=disk.line)


def chosen_configuration(envelope: Envelope, wanted: str, faults: Faults) -> str:
    """Return the id of the deployment option that counts; empty when there are none. Raises: OvfFault."""
    known = [option.id for option in envelope.configurations]
    if wanted and wanted not in known:
        faults.stop(
            "no-configuration", f"there is no configuration {shown(wanted)}; there are {', '.join(known) or 'none'}"
        )
    default = next((option.id for option in envelope.configurations if option.default), known[0] if known else "")
    return wanted or default


def _systems(part: Content, around: tuple[str, ...] = ()) -> list[tuple[VirtualSystem, tuple[str, ...]]]:
    if isinstance(part, VirtualSystem):
        return [(part, around)]
    return [found for member in part.members for found in _systems(member, (*around, part.id))]


class _Package(Struct, frozen=True, kw_only=True):
    """What all VMs of a package have in common."""

    envelope: Envelope
    option: str
    given: Mapping[str, str]
    known: Mapping[str, Property]
    disks: Mapping[str, Disk]


class _Machine:
    """One VM while it is made out of its items."""

    def __init__(self, package: _Package, system: VirtualSystem, faults: Faults) -> None:
        self._package = package
        self._system = system
        self._faults = faults
        self._hardware = self._chosen_hardware()
        self._items = _in_option(self._hardware.items, package.option)
        self._by_id = {item.id: item for item in self._items if item.bound == "normal"}

    def built(self, limits: Limits) -> Machine:
        """Return the machine."""
        named = shown(self._system.id)
        for item in self._items:
            self._judge(item)
        cpu, memory = (self._amounts(kind) for kind in (CPU, MEMORY))
        vcpus, memory_mib = cpu.get("normal", 1), memory.get("normal", 0)
        if not 0 < vcpus <= limits.vcpus:
            self._faults.error("bad-cpu", f"VM {named} has {vcpus} CPUs", line=self._hardware.line)
        if not 0 < memory_mib <= limits.memory_mib:
            self._faults.error("bad-memory", f"VM {named} has {memory_mib} MiB of memory", line=self._hardware.line)
        os = self._system.os
        return Machine(
            id=self._system.id,
            name=self._system.name or self._system.id,
            vcpus=vcpus,
            cores_per_socket=self._cores_per_socket(),
            memory_mib=memory_mib,
            vcpus_min=cpu.get("min"),
            vcpus_max=cpu.get("max"),
            memory_mib_min=memory.get("min"),
            memory_mib_max=memory.get("max"),
            cpu_reserved_mhz=self._reserved(CPU, units.hertz_per_unit) // 10**6,
            memory_reserved_mib=self._reserved(MEMORY, units.bytes_per_unit) // _MIB,
            firmware=self._firmware(),
            secure_boot=_is_set(self._hardware.config, _SECURE_BOOT),
            tpm=any("tpm" in item.resource_subtype.lower() for item in self._items),
            disks=self._disks(),
            nics=tuple(self._nic(item) for item in self._items if item.resource_type == ETHERNET and _counts(item)),
            transports=self._hardware.transports,
            os_id=os.id if os else 0,
            os=(os.description or os.vendor_type) if os else "",
            hardware_line=self._hardware.line,
        )

    def _chosen_hardware(self) -> HardwareSection:
        sections = self._system.hardware
        if len(sections) > 1:
            types = "; ".join(" ".join(section.system_types) or "no type" for section in sections[:5])
            self._faults.note(
                "other-hardware",
                f"VM {shown(self._system.id)} has hardware for {shown(types)}; the first is taken", line=sections[1].line,
            )  # fmt: skip
        return sections[0]

    def _judge(self, item: Item) -> None:
        """Say what is passed over, refuse what cannot be left out."""
        kind = item.resource_type
        if kind in (CPU, MEMORY, ETHERNET, *controllers.DRIVES) or self._is_controller(item):
            return
        subtype = item.resource_subtype
        what = f"{controllers.NAMES.get(kind, f'hardware of type {kind}')} {shown(subtype or item.name)}"
        is_given = kind in controllers.GIVEN or subtype.lower() in controllers.GIVEN_OTHERS or "tpm" in subtype.lower()
        if is_given or not item.required:
            self._faults.note("item-passed-over", f"{what} of VM {shown(self._system.id)} is left out", line=item.line)
            return
        self._faults.error(
            "unknown-hardware",
            f"VM {shown(self._system.id)} requires {what}, which a VM cannot have here", line=item.line,
        )  # fmt: skip

    def _is_controller(self, item: Item) -> bool:
        return (
            item.resource_type in controllers.CONTROLLERS
            and controllers.controller(item.resource_type, item.resource_subtype) is not None
        )

    def _amounts(self, kind: int) -> dict[str, int]:
        """Return how much of CPUs or memory (MiB) there is, by bound; several normal items add up."""
        found: dict[str, int] = {}
        for item in self._items:
            if item.resource_type != kind:
                continue
            amount = item.quantity
            if amount is None:
                amount = 0
                self._faults.error("missing-element", f"item {shown(item.id)} has no VirtualQuantity", line=item.line)
            if kind == MEMORY:
                amount = self._mebibytes(item, amount)
            found[item.bound] = found.get(item.bound, 0) + amount
        return found

    def _reserved(self, kind: int, per_unit: Callable[[str], int | None]) -> int:
        """Return what the items of a kind reserve, in hertz or bytes; units that are none are said where they count."""
        reserved = [item for item in self._items if item.resource_type == kind and _counts(item) and item.reservation]
        return sum((item.reservation or 0) * (per_unit(item.units) or 0) for item in reserved)

    def _mebibytes(self, item: Item, amount: int) -> int:
        # Without units it is MiB, as tools before OVF 1.0 wrote it.
        unit = units.bytes_per_unit(item.units) if item.units else _MIB
        if unit is None:
            self._faults.error(
                "bad-units", f"{shown(item.units)} is no unit of memory, such as byte * 2^20", line=item.line
            )
            return 0
        return -(-amount * unit // _MIB)

    def _cores_per_socket(self) -> int:
        for item in self._items:
            for one in item.config if item.resource_type == CPU else ():
                if one.key == "CoresPerSocket":
                    return units.number(one.value, most=4096) or 0
        return 0

    def _firmware(self) -> Firmware:
        if self._hardware.firmware is not None:
            return self._hardware.firmware
        return "uefi" if _is_set(self._hardware.config, _SECURE_BOOT) else "bios"

    def _nic(self, item: Item) -> MachineNic:
        model = controllers.nic_model(item.resource_subtype)
        if model is None:
            self._faults.warn(
                "unknown-nic",
                f"NIC model {shown(item.resource_subtype)} is not known; another is taken",
                line=item.line,
            )
        if len(item.connections) > 1:
            self._faults.warn(
                "several-networks", f"NIC {shown(item.id)} names several networks; the first is taken", line=item.line
            )
        return MachineNic(
            model=model or "unspecified",
            network=item.connections[0] if item.connections else "",
            mac=_mac(item.address),
            connected=item.automatic_allocation is not False,
            item_id=item.id,
            line=item.line,
        )

    def _disks(self) -> tuple[MachineDisk, ...]:
        found = [
            self._drive(item) for item in self._items if item.resource_type in controllers.DRIVES and _counts(item)
        ]
        found = self._placed(found)
        order = {number: place for place, number in enumerate(self._system.boot_order)}
        return tuple(sorted(found, key=lambda disk: (
            order.get(disk.item_id, len(order)), _BUS_ORDER.index(disk.bus), disk.bus_number, disk.unit
        )))  # fmt: skip

    def _placed(self, disks: list[MachineDisk]) -> list[MachineDisk]:
        """Return the disks, a CD drive that is where a disk is moved; two disks in one place are refused."""
        places: dict[tuple[str, int, int], MachineDisk] = {}
        for disk in sorted(disks, key=lambda disk: disk.kind != "disk"):
            place = (disk.bus, disk.bus_number, disk.unit)
            if place in places and disk.kind == "disk":
                self._faults.error(
                    "same-place",
                    f"disk {shown(disk.item_id)} is where {shown(places[place].item_id)} is",
                    line=disk.line,
                )
            free = next(unit for unit in itertools.count(disk.unit) if (*place[:2], unit) not in places)
            places[(*place[:2], free)] = structs.replace(disk, unit=free)
        return list(places.values())

    def _drive(self, item: Item) -> MachineDisk:
        bus, model, bus_number = self._controller_of(item)
        disk, file_id = self._medium(item)
        capacity = 0
        if disk is not None:
            file_id = disk.file_id
            capacity = self._capacity(disk)
        elif item.resource_type in (DISK, LOGICAL_DISK) and not item.host_resources:
            self._faults.error("no-disk", f"disk drive {shown(item.id)} has no HostResource", line=item.line)
        unit = units.number(item.address_on_parent, most=1023)
        return MachineDisk(
            kind=_KINDS[item.resource_type],
            disk_id=disk.id if disk else "",
            file_id=file_id,
            capacity_bytes=capacity,
            bus=bus,
            controller=model,
            bus_number=bus_number,
            unit=unit if unit is not None else self._free_unit(item),
            shared=disk.shared if disk else False,
            item_id=item.id,
            line=item.line,
        )

    def _free_unit(self, item: Item) -> int:
        """Return the place of a drive that names none: after its elders on the same controller."""
        elders = [one for one in self._items if one.parent == item.parent and one.resource_type in controllers.DRIVES]
        return elders.index(item)

    def _medium(self, item: Item) -> tuple[Disk | None, str]:
        for text in item.host_resources:
            found = resource_of(text)
            if found is not None and found[0] == "disk":
                return self._package.disks.get(found[1]), ""
            if found is not None:
                return None, found[1]
        return None, ""

    def _capacity(self, disk: Disk) -> int:
        package = self._package
        capacity = capacity_bytes(
            package.envelope, disk, package.given, configuration=package.option, known=package.known
        )
        if capacity is None:
            self._faults.error(
                "bad-capacity", f"capacity {shown(disk.capacity)} of disk {shown(disk.id)} has no value; give the property one",
                line=disk.line,
            )  # fmt: skip
        return capacity or 0

    def _controller_of(self, item: Item) -> tuple[Bus, str, int]:
        """Return bus, model and number of the controller that a drive hangs on."""
        if item.resource_type == FLOPPY:
            return "floppy", "", 0
        parent = self._by_id.get(item.parent)
        if parent is None:
            if item.parent:
                self._faults.error(
                    "no-controller",
                    f"drive {shown(item.id)} hangs on item {shown(item.parent)}, which does not exist",
                    line=item.line,
                )
            own = controllers.controller(controllers.SATA_OR_OTHER, item.resource_subtype)
            return (*own, 0) if own is not None else ("ide", "piix4", 0)
        found = controllers.controller(parent.resource_type, parent.resource_subtype)
        if found is None:
            if parent.required:
                return "scsi", "", 0  # refused where the controller itself was judged
            self._faults.warn(
                "other-controller", f"drive {shown(item.id)} gets a controller that is known", line=item.line
            )
            return "scsi", "lsilogic", 0
        return (*found, self._bus_number(parent, found[0]))

    def _bus_number(self, controller: Item, bus: Bus) -> int:
        """Return a controller's number: its address, unless another has the same; then its place among its like."""
        same = [
            one for one in self._items
            if one.resource_type in controllers.CONTROLLERS
            and (known := controllers.controller(one.resource_type, one.resource_subtype)) is not None and known[0] == bus
        ]  # fmt: skip
        number = units.number(controller.address, most=255)
        if number is None or sum(one.address == controller.address for one in same) > 1:
            return same.index(controller)
        return number


def _in_option(items: Sequence[Item], option: str) -> tuple[Item, ...]:
    """Return the items of a deployment option: of those with one id and bound, the option's own before a general one."""
    found: dict[tuple[str, str], Item] = {}
    for item in items:
        if item.configurations and option not in item.configurations:
            continue
        place = (item.id, item.bound)
        if place not in found or (item.configurations and not found[place].configurations):
            found[place] = item
    return tuple(found.values())


def _counts(item: Item) -> bool:
    return item.bound == "normal"


def _is_set(config: Sequence[Config], key: str) -> bool:
    return any(one.key.lower() == key and one.value.lower() in ("true", "1") for one in config)


def _mac(address: str) -> str:
    """Return a MAC in lower case with colons; empty when the address is none."""
    digits = address.replace(":", "").replace("-", "").replace(".", "").lower()
    if len(digits) != 12 or any(digit not in "0123456789abcdef" for digit in digits):
        return ""
    return ":".join(digits[place : place + 2] for place in range(0, 12, 2))
