"""OVF packages for tests, in the style of other tools: disks by qemu-img, descriptors by hand, digests, no library of ours.

Their disks hold a boot sector that says a line on the first serial port and stops: the smallest system that a BIOS starts.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

from msgspec import Struct

MIB = 1 << 20
SECTOR_BYTES = 512
_PROGRAM = bytes.fromhex(
    "fa31c08ed8fcbe237c"  # cli; ds = 0; si = text
    "ac84c0740f88c4"  # next: al = [si++]; none left: stop
    "bafd03eca82074fb"  # until the port takes a byte (16550, line status)
    "baf80388e0eeebe9"  # out; next
    "f4ebfd"  # stop: hlt
)
_CIM = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM"


def boot_disk(path: Path, line: str, size_bytes: int = 16 * MIB) -> Path:
    """Write a raw disk that says ``line`` when it is started."""
    sector = (_PROGRAM + f"{line}\r\n".encode() + b"\0").ljust(SECTOR_BYTES - 2, b"\0") + b"\x55\xaa"
    with path.open("wb") as disk:
        disk.write(sector)
        disk.truncate(size_bytes)
    return path


def vmdk_of(raw: Path, *, subformat: str = "streamOptimized") -> bytes:
    """Return the disk as qemu-img makes a VMDK of it."""
    target = raw.with_suffix(".vmdk")
    words = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", str(raw), str(target)]
    subprocess.run(words, check=True)
    content = target.read_bytes()
    target.unlink()
    return content


class System(Struct, frozen=True, kw_only=True):
    """A VM of a descriptor. ``disks``: ids; the first is started from."""

    name: str
    disks: tuple[str, ...]
    network: str = "VM Network"
    memory_mib: int = 128
    order: int = 0
    delay_s: int = 0
    sections: str = ""
    items: str = ""
    firmware: str = ""


def descriptor(files: dict[str, int], disks: dict[str, tuple[str, int]], systems: tuple[System, ...]) -> bytes:
    """Return a descriptor in VMware's manner. ``disks``: file (empty: blank) and capacity by id."""
    references = "".join(f'<File ovf:href="{n}" ovf:id="{n}" ovf:size="{s}"/>\n' for n, s in files.items())
    listed = "".join(
        f'<Disk ovf:diskId="{id}" ovf:capacity="{capacity}" ' + (f'ovf:fileRef="{file}" ' if file else "")
        + 'ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>\n'
        for id, (file, capacity) in disks.items()
    )  # fmt: skip
    networks = "".join(f'<Network ovf:name="{name}"/>' for name in dict.fromkeys(one.network for one in systems))
    content = "".join(_system(one) for one in systems)
    if len(systems) > 1:
        startup = "".join(
            f'<Item ovf:id="{one.name}" ovf:order="{one.order}" ovf:startDelay="{one.delay_s}" '
            'ovf:startAction="powerOn" ovf:stopAction="powerOff"/>\n'
            for one in systems
        )
        content = (
            f'<VirtualSystemCollection ovf:id="shop"><Info>All</Info>'
            f"<StartupSection><Info>Order</Info>{startup}</StartupSection>{content}</VirtualSystemCollection>"
        )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="{_CIM}_ResourceAllocationSettingData" xmlns:vssd="{_CIM}_VirtualSystemSettingData"
  xmlns:vmw="http://www.vmware.com/schema/ovf">
<References>
{references}</References>
<DiskSection><Info>Disks</Info>
{listed}</DiskSection>
<NetworkSection><Info>Networks</Info>{networks}</NetworkSection>
{content}
</Envelope>
""".encode()


def _system(one: System) -> str:
    drives = "".join(
        f"<Item><rasd:AddressOnParent>{unit}</rasd:AddressOnParent><rasd:ElementName>Hard disk {unit}</rasd:ElementName>"
        f"<rasd:HostResource>ovf:/disk/{disk}</rasd:HostResource><rasd:InstanceID>{10 + unit}</rasd:InstanceID>"
        "<rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>\n"
        for unit, disk in enumerate(one.disks)
    )
    firmware = (
        f'<vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="{one.firmware}"/>' if one.firmware else ""
    )
    return f"""<VirtualSystem ovf:id="{one.name}"><Info>A VM</Info><Name>{one.name}</Name>
{one.sections}
<VirtualHardwareSection ovf:transport="iso"><Info>Hardware</Info>
<System><vssd:ElementName>Hardware</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID>
<vssd:VirtualSystemType>vmx-13</vssd:VirtualSystemType></System>
<Item><rasd:ElementName>1 CPU</rasd:ElementName><rasd:InstanceID>1</rasd:InstanceID>
<rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>1</rasd:VirtualQuantity></Item>
<Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ElementName>Memory</rasd:ElementName>
<rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType>
<rasd:VirtualQuantity>{one.memory_mib}</rasd:VirtualQuantity></Item>
<Item><rasd:Address>0</rasd:Address><rasd:ElementName>SCSI</rasd:ElementName><rasd:InstanceID>3</rasd:InstanceID>
<rasd:ResourceSubType>lsilogic</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType></Item>
{drives}<Item><rasd:AddressOnParent>7</rasd:AddressOnParent><rasd:AutomaticAllocation>true</rasd:AutomaticAllocation>
<rasd:Connection>{one.network}</rasd:Connection><rasd:ElementName>NIC</rasd:ElementName>
<rasd:InstanceID>4</rasd:InstanceID><rasd:ResourceSubType>E1000</rasd:ResourceSubType>
<rasd:ResourceType>10</rasd:ResourceType></Item>
{one.items}{firmware}</VirtualHardwareSection></VirtualSystem>
"""


def packed(stem: str, text: bytes, files: dict[str, bytes], *, spoil: str = "") -> dict[str, bytes]:
    """Return the package's files with their manifest; the digest of the file ``spoil`` is a wrong one."""
    listed = {f"{stem}.ovf": text, **files}
    lines = [
        f"SHA256({name})= {hashlib.sha256(content + (b'!' if name == spoil else b'')).hexdigest()}\n"
        for name, content in listed.items()
    ]
    return {f"{stem}.ovf": text, f"{stem}.mf": "".join(lines).encode(), **files}


def ova(path: Path, files: dict[str, bytes]) -> Path:
    """Write the archive."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
