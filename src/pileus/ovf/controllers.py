"""Models of hardware by ResourceType and ResourceSubType, as VMware, VirtualBox, oVirt, libvirt and Xen name them."""

from __future__ import annotations

from typing import Literal

from pileus.ovf.model import Bus

CPU, MEMORY = 3, 4
IDE, SCSI, SATA_OR_OTHER = 5, 6, 20
ETHERNET = 10
FLOPPY, CDROM, DVD, DISK, LOGICAL_DISK = 14, 15, 16, 17, 31
OTHER = 1
DRIVES = (FLOPPY, CDROM, DVD, DISK, LOGICAL_DISK)
CONTROLLERS = (IDE, SCSI, SATA_OR_OTHER)

NAMES = {
    0: "no type", 1: "other", 2: "computer system", 3: "processor", 4: "memory", 5: "IDE controller",
    6: "SCSI controller", 7: "Fibre Channel adapter", 8: "iSCSI adapter", 9: "InfiniBand adapter", 10: "NIC",
    11: "other network adapter", 12: "I/O slot", 13: "I/O device", 14: "floppy drive", 15: "CD drive", 16: "DVD drive",
    17: "disk drive", 18: "tape drive", 19: "storage extent", 20: "storage controller", 21: "serial port",
    22: "parallel port", 23: "USB controller", 24: "graphics controller", 25: "FireWire controller", 31: "logical disk",
    35: "sound card",
}  # fmt: skip
"""CIM_ResourceAllocationSettingData.ResourceType."""

GIVEN = (13, 21, 22, 23, 24, 25, 35)
"""Kinds that a VM here has anyway, or does without: input, ports, USB, graphics, sound."""

GIVEN_OTHERS = ("vmware.vmci", "vmware.pointingdevice", "vmware.keyboard", "vmware.soundcard", "vmware.videocard")

NicModel = Literal["virtio", "e1000", "e1000e", "vmxnet3", "pcnet", "rtl8139", "unspecified"]

_NICS: tuple[tuple[str, NicModel], ...] = (
    ("virtio", "virtio"),
    ("vmxnet3", "vmxnet3"),
    ("e1000e", "e1000e"),
    ("e1000", "e1000"),
    ("82574", "e1000e"),
    ("82540", "e1000"),
    ("82543", "e1000"),
    ("82545", "e1000"),
    ("pcnet", "pcnet"),
    ("am79c97", "pcnet"),
    ("vlance", "pcnet"),
    ("flexible", "pcnet"),
    ("vmxnet", "vmxnet3"),
    ("rtl8139", "rtl8139"),
)

_SCSI = (
    ("virtio", "virtio-scsi"),
    ("virtualscsi", "pvscsi"),
    ("pvscsi", "pvscsi"),
    ("lsilogicsas", "lsilogicsas"),
    ("lsilogic", "lsilogic"),
    ("buslogic", "buslogic"),
)

_OTHERS: tuple[tuple[str, Bus, str], ...] = (
    ("nvme", "nvme", "nvme"),
    ("ahci", "sata", "ahci"),
    ("sata", "sata", "ahci"),
    ("virtio", "virtio", "virtio-blk"),
    ("usb", "usb", "usb"),
)


def nic_model(subtype: str) -> NicModel | None:
    """Return the NIC's model, of several the first that is known; None when none is, ``unspecified`` when none is named."""
    if not subtype.strip():
        return "unspecified"
    for word in subtype.replace(",", " ").split():
        plain = word.lower().replace("-", "").replace("_", "")
        found = next((model for part, model in _NICS if part in plain), None)
        if found is not None:
            return found
    return None


def controller(resource_type: int, subtype: str) -> tuple[Bus, str] | None:
    """Return a controller's bus and model; None when there is no such model here."""
    plain = subtype.lower().replace("-", "").replace("_", "")
    if resource_type == IDE:
        return "ide", "piix3" if "piix3" in plain else "piix4"
    if resource_type == SCSI:
        if not plain.strip():
            return "scsi", "lsilogic"
        return next((("scsi", model) for part, model in _SCSI if part in plain), None)
    return next(((bus, model) for part, bus, model in _OTHERS if part in plain), None)
