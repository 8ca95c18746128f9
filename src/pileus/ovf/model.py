"""What an OVF descriptor says, as it says it: every version and spelling reduced to one shape, with line numbers.

Texts with a msgid are already in the wanted language. What it means for a VM is in ``Machine`` (see ``machines.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

Version = Literal["0.9", "1", "2"]
Compression = Literal["identity", "gzip", "bzip2"]
DiskFormat = Literal["vmdk", "raw", "qcow2", "vhd", "vhdx", "vdi", "iso", "unknown"]
Firmware = Literal["bios", "uefi"]
Bus = Literal["scsi", "sata", "ide", "nvme", "virtio", "usb", "floppy"]


class File(Struct, frozen=True, kw_only=True):
    """A file of the package, by a name relative to its root."""

    id: str
    href: str
    size_bytes: int | None = None
    """Of the stored, compressed file; all chunks together."""
    compression: Compression = "identity"
    chunk_bytes: int | None = None
    """Set when the file is stored as ``href.000000000``, ``href.000000001``, … of this size each, the last shorter."""
    line: int = 0


class Disk(Struct, frozen=True, kw_only=True):
    """A virtual disk."""

    id: str
    file_id: str = ""
    """Empty: a blank disk, to be made."""
    capacity: str = ""
    """As written: a number of ``capacity_units``, or ``${property}``."""
    capacity_units: str = "byte"
    capacity_bytes: int | None = None
    """None when ``capacity`` is a property: see ``properties.capacity_bytes``."""
    format: DiskFormat = "unknown"
    format_uri: str = ""
    stream_optimized: bool = False
    populated_bytes: int | None = None
    parent_id: str = ""
    shared: bool = False
    line: int = 0


class Network(Struct, frozen=True, kw_only=True):
    """A network that NICs name, which the importer maps to one of its own."""

    name: str
    description: str = ""
    line: int = 0


class Config(Struct, frozen=True, kw_only=True):
    """A vendor's extra setting (``vmw:Config``, ``vmw:ExtraConfig``)."""

    key: str
    value: str
    required: bool = False
    line: int = 0


class Item(Struct, frozen=True, kw_only=True):
    """A piece of virtual hardware: an ``Item``, ``EthernetPortItem`` or ``StorageItem``."""

    id: str
    """InstanceID."""
    resource_type: int
    """CIM_ResourceAllocationSettingData.ResourceType."""
    resource_subtype: str = ""
    """Of several, separated by blanks, the first that is known is meant."""
    name: str = ""
    description: str = ""
    parent: str = ""
    address: str = ""
    address_on_parent: str = ""
    quantity: int | None = None
    units: str = ""
    reservation: int | None = None
    limit: int | None = None
    weight: int | None = None
    connections: tuple[str, ...] = ()
    """Names of networks."""
    host_resources: tuple[str, ...] = ()
    """``ovf:/disk/ID`` or ``ovf:/file/ID``."""
    automatic_allocation: bool | None = None
    config: tuple[Config, ...] = ()
    required: bool = True
    configurations: tuple[str, ...] = ()
    """The deployment options in which it exists; empty: all."""
    bound: Literal["normal", "min", "max"] = "normal"
    line: int = 0


class HardwareSection(Struct, frozen=True, kw_only=True):
    """The virtual hardware that a system expects."""

    id: str = ""
    transports: tuple[str, ...] = ()
    """How properties reach the guest: ``iso``, ``com.vmware.guestInfo``."""
    system_types: tuple[str, ...] = ()
    """Such as ``vmx-13`` or ``virtualbox-2.2``."""
    items: tuple[Item, ...] = ()
    config: tuple[Config, ...] = ()
    firmware: Firmware | None = None
    """None when nothing says so."""
    line: int = 0


class PropertyValue(Struct, frozen=True, kw_only=True):
    """A value; ``configuration`` empty: of every deployment option without one of its own."""

    value: str
    configuration: str = ""


class Property(Struct, frozen=True, kw_only=True):
    """A setting of the software inside."""

    key: str
    full_key: str
    """``class.key.instance``, as the guest is told it."""
    type: str = "string"
    values: tuple[PropertyValue, ...] = ()
    label: str = ""
    description: str = ""
    category: str = ""
    user_configurable: bool = False
    password: bool = False
    length_min: int | None = None
    length_max: int | None = None
    value_min: int | None = None
    value_max: int | None = None
    allowed: tuple[str, ...] = ()
    """ValueMap; empty: any."""
    unknown_qualifiers: tuple[str, ...] = ()
    line: int = 0


class Product(Struct, frozen=True, kw_only=True):
    """What is inside, and its settings."""

    class_id: str = ""
    instance_id: str = ""
    name: str = ""
    vendor: str = ""
    version: str = ""
    full_version: str = ""
    product_url: str = ""
    vendor_url: str = ""
    app_url: str = ""
    properties: tuple[Property, ...] = ()
    line: int = 0


class Eula(Struct, frozen=True, kw_only=True):
    """A licence text that the user has to accept."""

    text: str
    line: int = 0


class OperatingSystem(Struct, frozen=True, kw_only=True):
    """What runs inside."""

    id: int
    """CIM_OperatingSystem.OsType."""
    version: str = ""
    description: str = ""
    vendor_type: str = ""
    """Such as ``debian12_64Guest``."""
    line: int = 0


class StartupItem(Struct, frozen=True, kw_only=True):
    """When a member of a collection is started and how it is stopped."""

    id: str
    order: int = 0
    """Lower is earlier; members with the same are started together; 0: whenever."""
    start_delay_s: int = 0
    waiting_for_guest: bool = False
    """Whether the next may start as soon as the guest says that it is ready."""
    stop_delay_s: int = 0
    start_action: Literal["powerOn", "none"] = "powerOn"
    stop_action: Literal["powerOff", "guestShutdown", "none"] = "powerOff"
    line: int = 0


class Configuration(Struct, frozen=True, kw_only=True):
    """A deployment option."""

    id: str
    label: str = ""
    description: str = ""
    default: bool = False
    line: int = 0


class EnvironmentFile(Struct, frozen=True, kw_only=True):
    """A file of the package that goes onto the guest's environment disk (OVF 2)."""

    file_id: str
    path: str
    line: int = 0


class UnknownSection(Struct, frozen=True, kw_only=True):
    """A section that was passed over, because it says that it may be."""

    name: str
    line: int = 0


class VirtualSystem(Struct, frozen=True, kw_only=True, tag="system", tag_field="content"):
    """A VM."""

    id: str
    name: str = ""
    about: str = ""
    """Its Info and its annotation."""
    os: OperatingSystem | None = None
    hardware: tuple[HardwareSection, ...] = ()
    """Alternatives; at least one in a VM that can be made."""
    products: tuple[Product, ...] = ()
    eulas: tuple[Eula, ...] = ()
    boots_to_install: bool = False
    """Whether it has to be booted once to finish its installation (InstallSection)."""
    install_stop_delay_s: int = 0
    boot_order: tuple[str, ...] = ()
    """InstanceIDs to boot from, first to last (OVF 2)."""
    environment_files: tuple[EnvironmentFile, ...] = ()
    unknown: tuple[UnknownSection, ...] = ()
    line: int = 0


class VirtualSystemCollection(Struct, frozen=True, kw_only=True, tag="collection", tag_field="content"):
    """VMs that belong together, and collections of them."""

    id: str
    name: str = ""
    about: str = ""
    members: tuple[VirtualSystem | VirtualSystemCollection, ...] = ()
    startup: tuple[StartupItem, ...] = ()
    products: tuple[Product, ...] = ()
    eulas: tuple[Eula, ...] = ()
    resources: tuple[Item, ...] = ()
    """What all members together may use (ResourceAllocationSection)."""
    environment_files: tuple[EnvironmentFile, ...] = ()
    unknown: tuple[UnknownSection, ...] = ()
    line: int = 0


Content = VirtualSystem | VirtualSystemCollection


class Envelope(Struct, frozen=True, kw_only=True):
    """A whole descriptor."""

    version: Version
    language: str = ""
    """Of its texts, as it says; the languages of its bundles are in ``languages``."""
    languages: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    disks: tuple[Disk, ...] = ()
    networks: tuple[Network, ...] = ()
    configurations: tuple[Configuration, ...] = ()
    unknown: tuple[UnknownSection, ...] = ()
    content: Content

    def systems(self) -> Iterator[VirtualSystem]:
        """Yield all VMs, in the descriptor's order."""
        for part in self.contents():
            if isinstance(part, VirtualSystem):
                yield part

    def contents(self) -> Iterator[Content]:
        """Yield all VMs and collections, a collection before its members."""
        waiting: list[Content] = [self.content]
        while waiting:
            part = waiting.pop()
            yield part
            if isinstance(part, VirtualSystemCollection):
                waiting.extend(reversed(part.members))

    def file(self, file_id: str) -> File | None:
        """Return the file of this id."""
        return next((file for file in self.files if file.id == file_id), None)

    def disk(self, disk_id: str) -> Disk | None:
        """Return the disk of this id."""
        return next((disk for disk in self.disks if disk.id == disk_id), None)


class MachineDisk(Struct, frozen=True, kw_only=True):
    """A disk or a drive of a VM."""

    kind: Literal["disk", "cdrom", "floppy"] = "disk"
    disk_id: str = ""
    """Of the descriptor's disk; empty for a drive."""
    file_id: str = ""
    """What it holds at first; empty: blank, or a drive without a medium."""
    capacity_bytes: int = 0
    bus: Bus = "scsi"
    controller: str = ""
    """Model of its controller: lsilogic, lsilogicsas, pvscsi, buslogic, virtio-scsi, ahci, piix4, nvme, …"""
    bus_number: int = 0
    unit: int = 0
    shared: bool = False
    item_id: str = ""
    line: int = 0


class MachineNic(Struct, frozen=True, kw_only=True):
    """A NIC of a VM."""

    model: Literal["virtio", "e1000", "e1000e", "vmxnet3", "pcnet", "rtl8139", "unspecified"] = "unspecified"
    network: str = ""
    mac: str = ""
    """Empty: whatever the cloud gives."""
    connected: bool = True
    item_id: str = ""
    line: int = 0


class Startup(Struct, frozen=True, kw_only=True):
    """When a VM of a collection is started."""

    stage: int = 0
    """Over all collections: 0 is first, equal ones start together; delays count before the next stage."""
    start_delay_s: int = 0
    waiting_for_guest: bool = False
    stop_delay_s: int = 0
    start_action: Literal["powerOn", "none"] = "powerOn"
    stop_action: Literal["powerOff", "guestShutdown", "none"] = "powerOff"


class Machine(Struct, frozen=True, kw_only=True):
    """A VM in Pileus's terms, for one deployment option."""

    id: str
    name: str
    collections: tuple[str, ...] = ()
    """Ids of the collections around it, outermost first."""
    vcpus: int = 1
    cores_per_socket: int = 0
    """0: nothing said."""
    memory_mib: int = 0
    vcpus_min: int | None = None
    vcpus_max: int | None = None
    memory_mib_min: int | None = None
    memory_mib_max: int | None = None
    cpu_reserved_mhz: int = 0
    """Of all CPUs together; 0: nothing is asked for."""
    memory_reserved_mib: int = 0
    firmware: Firmware = "bios"
    secure_boot: bool = False
    tpm: bool = False
    disks: tuple[MachineDisk, ...] = ()
    """In the order in which a BIOS would see them."""
    nics: tuple[MachineNic, ...] = ()
    startup: Startup = Startup()
    transports: tuple[str, ...] = ()
    os_id: int = 0
    os: str = ""
    hardware_line: int = 0
