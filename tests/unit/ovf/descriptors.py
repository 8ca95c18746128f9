"""Descriptors for tests, in the styles of the tools that write them; each test changes what it is about."""

from __future__ import annotations

OVF1 = "http://schemas.dmtf.org/ovf/envelope/1"
OVF2 = "http://schemas.dmtf.org/ovf/envelope/2"
BEFORE = "http://www.vmware.com/schema/ovf/1/envelope"
STREAM = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
RASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
EPASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_EthernetPortAllocationSettingData"
SASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_StorageAllocationSettingData"
VSSD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"


def item(
    number: int, resource_type: int, attributes: str = "", prefix: str = "rasd", tag: str = "Item", **said: object
) -> str:
    """Return an item; ``said``: CIM's elements, several of a name as a list."""
    parts = {"ElementName": f"item {number}", "InstanceID": number, "ResourceType": resource_type, **said}
    lines = "".join(
        f"<{prefix}:{name}>{value}</{prefix}:{name}>"
        for name, values in parts.items()
        for value in (values if isinstance(values, list) else [values])
    )
    return f"<{tag} {attributes}>{lines}</{tag}>\n"


CPU = item(1, 3, VirtualQuantity=2)
MEMORY = item(2, 4, AllocationUnits="byte * 2^20", VirtualQuantity=1024)
SCSI = item(3, 6, ResourceSubType="lsilogic", Address=0)
NIC = item(5, 10, ResourceSubType="VmxNet3", Connection="lan", AutomaticAllocation="true")


def drive(number: int, unit: int = 0, disk: str = "d1", parent: int = 3) -> str:
    """Return a disk drive's item."""
    return item(number, 17, HostResource=f"ovf:/disk/{disk}", Parent=parent, AddressOnParent=unit)


ITEMS = CPU + MEMORY + SCSI + drive(4) + NIC


def hardware(items: str = ITEMS, attributes: str = "", system_type: str = "vmx-13") -> str:
    """Return a VirtualHardwareSection."""
    system = (
        "<System><vssd:ElementName>hardware</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID>"
        f"<vssd:VirtualSystemType>{system_type}</vssd:VirtualSystemType></System>"
    )
    return f"<VirtualHardwareSection {attributes}><Info>hardware</Info>{system}\n{items}</VirtualHardwareSection>\n"


def system(name: str = "vm", sections: str | None = None, *, more: str = "") -> str:
    """Return a VirtualSystem."""
    inner = hardware() if sections is None else sections
    return f'<VirtualSystem ovf:id="{name}"><Info>a VM</Info><Name>{name}</Name>\n{inner}{more}</VirtualSystem>\n'


def collection(name: str, inner: str) -> str:
    """Return a VirtualSystemCollection."""
    return f'<VirtualSystemCollection ovf:id="{name}"><Info>some VMs</Info>\n{inner}</VirtualSystemCollection>\n'


FILE = '<File ovf:id="f1" ovf:href="disk1.vmdk" ovf:size="3"/>\n'
DISK = (
    '<Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="16" ovf:capacityAllocationUnits="byte * 2^20" '
    f'ovf:format="{STREAM}"/>\n'
)
NETWORK = '<Network ovf:name="lan"><Description>the LAN</Description></Network>\n'


def envelope(
    content: str | None = None,
    *,
    files: str = FILE,
    disks: str = DISK,
    networks: str = NETWORK,
    sections: str = "",
    strings: str = "",
    namespace: str = OVF1,
) -> bytes:
    """Return a descriptor of one VM with one disk and one NIC, unless told otherwise."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Envelope xmlns="{namespace}" xmlns:ovf="{namespace}" xmlns:rasd="{RASD}" xmlns:vssd="{VSSD}" '
        f'xmlns:epasd="{EPASD}" xmlns:sasd="{SASD}" xmlns:vmw="http://www.vmware.com/schema/ovf" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">\n'
        f"<References>\n{files}</References>\n"
        f"<DiskSection><Info>disks</Info>\n{disks}</DiskSection>\n"
        f"<NetworkSection><Info>networks</Info>\n{networks}</NetworkSection>\n"
        f"{sections}{system() if content is None else content}{strings}</Envelope>\n"
    ).encode()
