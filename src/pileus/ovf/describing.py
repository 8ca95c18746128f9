"""Writes an OVF 1.1 descriptor: the words and the order that VMware, VirtualBox and virt-v2v read.

Devices that only KVM has are written as what all of them have: a virtio disk stands at an LSI Logic controller, a
virtio NIC is an E1000. Source: DSP0243 1.1.0; CIM_ResourceAllocationSettingData for the items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from xml.sax.saxutils import escape, quoteattr

from msgspec import Struct

from pileus.ovf.model import Bus, Disk, File, Machine, MachineDisk, MachineNic, Network, Product, Property

NAMESPACES = {
    "xmlns": "http://schemas.dmtf.org/ovf/envelope/1",
    "xmlns:ovf": "http://schemas.dmtf.org/ovf/envelope/1",
    "xmlns:rasd": "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData",
    "xmlns:vssd": "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData",
    "xmlns:vmw": "http://www.vmware.com/schema/ovf",
}
STREAMED_VMDK = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
SYSTEM_TYPE = "vmx-13"
"""VMware's least virtual hardware with UEFI and secure boot (ESXi 6.5); others ignore it."""

OTHER_OS = 1
CPU, MEMORY, IDE, SCSI, NIC, FLOPPY, CDROM, DISK, SATA = 3, 4, 5, 6, 10, 14, 15, 17, 20
RESERVED_SCSI_UNIT = 7
"""The controller's own."""

_CONTROLLERS: dict[str, tuple[int, str]] = {
    "lsilogic": (SCSI, "lsilogic"),
    "lsilogicsas": (SCSI, "lsilogicsas"),
    "buslogic": (SCSI, "buslogic"),
    "pvscsi": (SCSI, "VirtualSCSI"),
    "ahci": (SATA, "vmware.sata.ahci"),
    "piix4": (IDE, "PIIX4"),
    "nvme": (SATA, "vmware.nvme.controller"),
}
_USUAL: dict[Bus, str] = {"scsi": "lsilogic", "sata": "ahci", "ide": "piix4", "nvme": "nvme"}
_NICS = {"e1000e": "E1000e", "vmxnet3": "VmxNet3", "pcnet": "PCNet32"}
_ITEM_ORDER = (
    "Address", "AddressOnParent", "AllocationUnits", "AutomaticAllocation", "Connection", "Description", "ElementName",
    "HostResource", "InstanceID", "Parent", "ResourceSubType", "ResourceType", "VirtualQuantity",
)  # fmt: skip
"""The schema has them in the order of the alphabet."""


class Appliance(Struct, frozen=True, kw_only=True):
    """What is written: one VM, or several as a collection. Files and disks are those that the machines name."""

    id: str
    machines: tuple[Machine, ...]
    files: tuple[File, ...] = ()
    disks: tuple[Disk, ...] = ()
    """``capacity_bytes`` and ``format_uri`` are written."""
    networks: tuple[Network, ...] = ()
    """Those that are not here are written without a description."""
    products: Mapping[str, tuple[Product, ...]] = {}
    """By machine."""
    eulas: tuple[str, ...] = ()


def describe(appliance: Appliance) -> bytes:
    """Return the descriptor. Raises: ValueError when there is no machine."""
    if not appliance.machines:
        raise ValueError("an appliance has at least one machine")
    text = _Text()
    text.open("Envelope", NAMESPACES)
    _write_references(text, appliance)
    _write_networks(text, appliance)
    if len(appliance.machines) == 1:
        _write_machine(text, appliance.machines[0], appliance, appliance.eulas)
    else:
        _write_collection(text, appliance)
    text.close()
    return text.finish()


class _Text:
    """XML, line by line."""

    def __init__(self) -> None:
        self._lines = ['<?xml version="1.0" encoding="UTF-8"?>']
        self._opened: list[str] = []

    def open(self, name: str, attributes: Mapping[str, str] | None = None, *, about: str = "") -> None:
        """Begin an element; ``about`` is its Info."""
        self._add(f"<{name}{_attributes(attributes)}>")
        self._opened.append(name)
        if about:
            self.leaf("Info", about)

    def close(self) -> None:
        """End the element begun last."""
        name = self._opened.pop()
        self._add(f"</{name}>")

    def leaf(self, name: str, text: str = "", attributes: Mapping[str, str] | None = None) -> None:
        """Add an element without children."""
        if text:
            self._add(f"<{name}{_attributes(attributes)}>{escape(text)}</{name}>")
        else:
            self._add(f"<{name}{_attributes(attributes)}/>")

    def finish(self) -> bytes:
        return "\n".join([*self._lines, ""]).encode()

    def _add(self, line: str) -> None:
        self._lines.append("  " * len(self._opened) + line)


def _attributes(attributes: Mapping[str, str] | None) -> str:
    escapes = {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"}
    return "".join(f" {key}={quoteattr(value, escapes)}" for key, value in (attributes or {}).items())


def _write_references(text: _Text, appliance: Appliance) -> None:
    """Write files and disks."""
    text.open("References")
    for file in appliance.files:
        size = {} if file.size_bytes is None else {"ovf:size": str(file.size_bytes)}
        text.leaf("File", attributes={"ovf:href": file.href, "ovf:id": file.id, **size})
    text.close()
    if not appliance.disks:
        return
    text.open("DiskSection", about="Virtual disks")
    for disk in appliance.disks:
        fields = {
            "ovf:diskId": disk.id,
            "ovf:capacity": str(disk.capacity_bytes),
            "ovf:capacityAllocationUnits": "byte",
        }
        if disk.file_id:
            fields["ovf:fileRef"] = disk.file_id
        fields["ovf:format"] = disk.format_uri or STREAMED_VMDK
        if disk.populated_bytes is not None:
            fields["ovf:populatedSize"] = str(disk.populated_bytes)
        text.leaf("Disk", attributes=fields)
    text.close()


def _write_networks(text: _Text, appliance: Appliance) -> None:
    described = {network.name: network.description for network in appliance.networks}
    names = dict.fromkeys([*described, *(nic.network for vm in appliance.machines for nic in vm.nics if nic.network)])
    if not names:
        return
    text.open("NetworkSection", about="Networks")
    for name in names:
        text.open("Network", {"ovf:name": name})
        text.leaf("Description", described.get(name) or name)
        text.close()
    text.close()


def _write_collection(text: _Text, appliance: Appliance) -> None:
    """Write all machines and the order in which they start."""
    text.open("VirtualSystemCollection", {"ovf:id": appliance.id}, about="VMs that belong together")
    text.leaf("Name", appliance.id)
    _write_eulas(text, appliance.eulas)
    text.open("StartupSection", about="Order of start")
    for machine in appliance.machines:
        startup = machine.startup
        fields = {
            "ovf:id": machine.id, "ovf:order": str(startup.stage + 1), "ovf:startDelay": str(startup.start_delay_s),
            "ovf:startAction": startup.start_action, "ovf:stopDelay": str(startup.stop_delay_s),
            "ovf:stopAction": startup.stop_action, "ovf:waitingForGuest": str(startup.waiting_for_guest).lower(),
        }  # fmt: skip
        text.leaf("Item", attributes=fields)
    text.close()
    for machine in appliance.machines:
        _write_machine(text, machine, appliance, ())
    text.close()


def _write_eulas(text: _Text, eulas: tuple[str, ...]) -> None:
    for eula in eulas:
        text.open("EulaSection", about="Licence")
        text.leaf("License", eula)
        text.close()


def _write_machine(text: _Text, machine: Machine, appliance: Appliance, eulas: tuple[str, ...]) -> None:
    products = appliance.products.get(machine.id, ())
    text.open("VirtualSystem", {"ovf:id": machine.id}, about="A VM")
    text.leaf("Name", machine.name or machine.id)
    text.open("OperatingSystemSection", {"ovf:id": str(machine.os_id or OTHER_OS)}, about="What runs inside")
    if machine.os:
        text.leaf("Description", machine.os)
    text.close()
    _write_eulas(text, eulas)
    for product in products:
        _write_product(text, product)
    told = any(product.properties for product in products)
    transports = machine.transports or (("iso",) if told else ())
    text.open(
        "VirtualHardwareSection",
        {"ovf:transport": " ".join(transports)} if transports else {},
        about="Virtual hardware",
    )
    _write_system(text, machine)
    for item in _items(machine):
        _write_item(text, item)
    if machine.firmware == "uefi":
        _write_config(text, "firmware", "efi")
    if machine.secure_boot:
        _write_config(text, "bootOptions.efiSecureBootEnabled", "true")
    text.close()
    text.close()


def _write_system(text: _Text, machine: Machine) -> None:
    text.open("System")
    text.leaf("vssd:ElementName", "Virtual Hardware Family")
    text.leaf("vssd:InstanceID", "0")
    text.leaf("vssd:VirtualSystemIdentifier", machine.name or machine.id)
    text.leaf("vssd:VirtualSystemType", SYSTEM_TYPE)
    text.close()


def _write_config(text: _Text, key: str, value: str) -> None:
    text.leaf("vmw:Config", attributes={"ovf:required": "false", "vmw:key": key, "vmw:value": value})


def _write_product(text: _Text, product: Product) -> None:
    named = {"ovf:class": product.class_id, "ovf:instance": product.instance_id}
    text.open("ProductSection", {key: value for key, value in named.items() if value}, about="Product")
    words = {
        "Product": product.name, "Vendor": product.vendor, "Version": product.version,
        "FullVersion": product.full_version, "ProductUrl": product.product_url, "VendorUrl": product.vendor_url,
        "AppUrl": product.app_url,
    }  # fmt: skip
    for name, value in words.items():
        if value:
            text.leaf(name, value)
    category = ""
    for each in product.properties:
        if each.category and each.category != category:
            text.leaf("Category", each.category)
            category = each.category
        _write_property(text, each)
    text.close()


def _write_property(text: _Text, each: Property) -> None:
    default = next((value.value for value in each.values if not value.configuration), None)
    fields = {"ovf:key": each.key, "ovf:type": each.type, "ovf:userConfigurable": str(each.user_configurable).lower()}
    if default is not None and not each.password:
        fields["ovf:value"] = default
    if each.password:
        fields["ovf:password"] = "true"
    qualifiers = _qualifiers(each)
    if qualifiers:
        fields["ovf:qualifiers"] = qualifiers
    text.open("Property", fields)
    text.leaf("Label", each.label or each.key)
    if each.description:
        text.leaf("Description", each.description)
    text.close()


def _qualifiers(each: Property) -> str:
    """Return what restricts the value, as CIM writes it (DSP0243, table of qualifiers)."""
    numbers = {
        "MinLen": each.length_min, "MaxLen": each.length_max, "MinValue": each.value_min, "MaxValue": each.value_max,
    }  # fmt: skip
    said = [f"{name}({value})" for name, value in numbers.items() if value is not None]
    if each.allowed:
        values = ", ".join('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in each.allowed)
        said.append(f"ValueMap{{{values}}}")
    return " ".join(said)


Item = dict[str, str]


def _items(machine: Machine) -> Iterator[Item]:
    """Yield the items of the hardware, numbered from 1."""
    ids = count(1)
    cpus = {
        "AllocationUnits": "hertz * 10^6",
        "Description": "Number of virtual CPUs",
        "VirtualQuantity": machine.vcpus,
    }
    sockets = {"vmw:CoresPerSocket": machine.cores_per_socket} if machine.cores_per_socket else {}
    yield _item(next(ids), CPU, f"{machine.vcpus} virtual CPU(s)", {**cpus, **sockets})
    memory = {"AllocationUnits": "byte * 2^20", "Description": "Memory size", "VirtualQuantity": machine.memory_mib}
    yield _item(next(ids), MEMORY, f"{machine.memory_mib} MiB of memory", memory)
    yield from _disk_items(machine.disks, ids)
    for number, nic in enumerate(machine.nics):
        yield _nic_item(next(ids), number, nic)


def _disk_items(disks: tuple[MachineDisk, ...], ids: Iterator[int]) -> Iterator[Item]:
    """Yield controllers, each before what stands at it."""
    controllers: dict[tuple[int, str, int], int] = {}
    taken: dict[int, set[int]] = {}
    for number, disk in enumerate(disks, 1):
        kind, model = _CONTROLLERS.get(disk.controller) or _CONTROLLERS[_USUAL.get(disk.bus, "lsilogic")]
        place = (kind, model, disk.bus_number)
        if disk.kind != "floppy" and place not in controllers:
            address = sum(other[0] == kind for other in controllers)
            controllers[place] = next(ids)
            fields = {"Address": address, "Description": "Controller of disks", "ResourceSubType": model}
            yield _item(controllers[place], kind, f"Controller {controllers[place]}", fields)
            taken[controllers[place]] = {RESERVED_SCSI_UNIT} if kind == SCSI else set()
        yield _drive_item(next(ids), number, disk, controllers.get(place), taken)


def _drive_item(id: int, number: int, disk: MachineDisk, parent: int | None, taken: dict[int, set[int]]) -> Item:
    kind, name = {"disk": (DISK, "Hard disk"), "cdrom": (CDROM, "CD/DVD drive"), "floppy": (FLOPPY, "Floppy drive")}[
        disk.kind
    ]
    fields: dict[str, object] = {"AddressOnParent": disk.unit}
    if parent is not None:
        unit = disk.unit if disk.unit not in taken[parent] else next(n for n in count() if n not in taken[parent])
        taken[parent].add(unit)
        fields = {"AddressOnParent": unit, "Parent": parent}
    if disk.disk_id:
        fields["HostResource"] = f"ovf:/disk/{disk.disk_id}"
    elif disk.file_id:
        fields["HostResource"] = f"ovf:/file/{disk.file_id}"
    if kind != DISK:
        fields["AutomaticAllocation"] = "true" if disk.file_id else "false"
    return _item(id, kind, f"{name} {number}", fields)


def _nic_item(id: int, number: int, nic: MachineNic) -> Item:
    fields: dict[str, object] = {
        "AddressOnParent": number,
        "AutomaticAllocation": str(nic.connected).lower(),
        "Description": "Network adapter",
        "ResourceSubType": _NICS.get(nic.model, "E1000"),
    }
    if nic.network:
        fields["Connection"] = nic.network
    if nic.mac:
        fields["Address"] = nic.mac
    return _item(id, NIC, f"Network adapter {number + 1}", fields)


def _item(id: int, kind: int, name: str, fields: Mapping[str, object]) -> Item:
    every = {"ElementName": name, "InstanceID": id, "ResourceType": kind, **fields}
    return {key: str(value) for key, value in every.items()}


def _write_item(text: _Text, item: Item) -> None:
    text.open("Item")
    for name in _ITEM_ORDER:
        if name in item:
            text.leaf(f"rasd:{name}", item[name])
    if "vmw:CoresPerSocket" in item:
        text.leaf("vmw:CoresPerSocket", item["vmw:CoresPerSocket"], {"ovf:required": "false"})
    text.close()
