"""What a descriptor means for a VM: disks and their places, NICs, firmware, deployment options, startup."""

from __future__ import annotations

import pytest
from tests.unit.ovf.descriptors import (
    CPU,
    DISK,
    ITEMS,
    MEMORY,
    NIC,
    SCSI,
    collection,
    drive,
    envelope,
    hardware,
    item,
    system,
)

from pileus.ovf.descriptor import read_descriptor
from pileus.ovf.faults import Faults, OvfFault
from pileus.ovf.machines import Choice, machines
from pileus.ovf.model import Machine
from pileus.ovf.tree import parse

OPTIONS = (
    "<DeploymentOptionSection><Info/>"
    '<Configuration ovf:id="small"><Label>S</Label><Description/></Configuration>'
    '<Configuration ovf:id="big" ovf:default="true"><Label>B</Label><Description/></Configuration></DeploymentOptionSection>'
)


def made(text: bytes, choice: Choice | None = None) -> tuple[tuple[Machine, ...], Faults]:
    read, faults = Faults("x.ovf"), Faults("x.ovf")
    found = machines(read_descriptor([text], read), faults, choice=choice)
    assert not read.refused, read.found
    return found, faults


def one(items: str = ITEMS, choice: Choice | None = None, more: str = "", **parts: str) -> tuple[Machine, Faults]:
    (machine,), faults = made(envelope(system("vm", hardware(items), more=more), **parts), choice)
    return machine, faults


def codes(faults: Faults, severity: str = "error") -> list[str]:
    return [fault.code for fault in faults.found if fault.severity == severity]


def test_a_simple_machine() -> None:
    machine, faults = one()
    assert faults.found == ()
    assert (machine.vcpus, machine.memory_mib, machine.firmware) == (2, 1024, "bios")
    (disk,) = machine.disks
    assert (disk.disk_id, disk.file_id, disk.capacity_bytes, disk.bus, disk.controller) == (
        "d1",
        "f1",
        16 << 20,
        "scsi",
        "lsilogic",
    )
    (nic,) = machine.nics
    assert (nic.model, nic.network, nic.connected) == ("vmxnet3", "lan", True)


@pytest.mark.parametrize(
    ("kind", "subtype", "expected"),
    [
        (5, "", ("ide", "piix4")), (5, "PIIX4", ("ide", "piix4")), (5, "PIIX3", ("ide", "piix3")),
        (6, "", ("scsi", "lsilogic")), (6, "lsilogic", ("scsi", "lsilogic")), (6, "lsilogicsas", ("scsi", "lsilogicsas")),
        (6, "VirtualSCSI", ("scsi", "pvscsi")), (6, "virtio-scsi", ("scsi", "virtio-scsi")),
        (6, "buslogic", ("scsi", "buslogic")),
        (20, "AHCI", ("sata", "ahci")), (20, "vmware.sata.ahci", ("sata", "ahci")),
        (20, "vmware.nvme.controller", ("nvme", "nvme")),
    ],
)  # fmt: skip
def test_controllers(kind: int, subtype: str, expected: tuple[str, str]) -> None:
    machine, faults = one(CPU + MEMORY + item(3, kind, ResourceSubType=subtype, Address=1) + drive(4, 2))
    assert codes(faults) == []
    (disk,) = machine.disks
    assert (disk.bus, disk.controller, disk.bus_number, disk.unit) == (*expected, 1, 2)


@pytest.mark.parametrize(
    ("subtype", "expected"),
    [
        ("E1000", "e1000"), ("E1000e", "e1000e"), ("VmxNet3", "vmxnet3"), ("VMXNET3", "vmxnet3"), ("PCNet32", "pcnet"),
        ("virtio", "virtio"), ("VirtIO-net", "virtio"), ("", "unspecified"), ("VirtualE1000Unknown E1000", "e1000"),
        ("82540EM", "e1000"), ("rtl8139", "rtl8139"), ("foo virtio", "virtio"), ("sr-iov", "unspecified"),
    ],
)  # fmt: skip
def test_nics(subtype: str, expected: str) -> None:
    machine, faults = one(CPU + MEMORY + item(5, 10, ResourceSubType=subtype, Connection="lan"))
    assert machine.nics[0].model == expected
    assert codes(faults, "warning") == (["unknown-nic"] if subtype == "sr-iov" else [])


def test_a_nics_address_and_connection() -> None:
    machine, _ = one(
        CPU + MEMORY + item(5, 10, Connection="lan", Address="00-50-56-AB-CD-EF", AutomaticAllocation="false")
    )
    assert (machine.nics[0].mac, machine.nics[0].connected) == ("00:50:56:ab:cd:ef", False)
    machine, _ = one(CPU + MEMORY + item(5, 10, Connection="lan", Address="PCI:0:1"))
    assert machine.nics[0].mac == ""


def test_disks_are_in_the_order_in_which_a_bios_sees_them() -> None:
    disks = "".join(DISK.replace('"d1"', f'"d{number}"') for number in range(1, 5)).replace(' ovf:fileRef="f1"', "")
    items = (
        CPU + MEMORY + SCSI + item(7, 6, ResourceSubType="lsilogic", Address=1) + item(8, 5, Address=0)
        + drive(20, 0, "d1", 7) + drive(21, 1, "d2") + drive(22, 0, "d3") + drive(23, 0, "d4", 8)
        + item(24, 15, Parent=8, AddressOnParent=1) + item(25, 14)
    )  # fmt: skip
    machine, faults = one(items, disks=disks)
    assert codes(faults) == []
    assert [disk.disk_id for disk in machine.disks if disk.kind == "disk"] == ["d4", "d3", "d2", "d1"]
    assert [disk.kind for disk in machine.disks] == ["disk", "cdrom", "disk", "disk", "disk", "floppy"]
    boot = (
        "<BootDeviceSection><Info/><CIM_BootConfigSetting><CIM_BootSourceSetting><InstanceID>20</InstanceID>"
        "</CIM_BootSourceSetting></CIM_BootConfigSetting></BootDeviceSection>"
    )
    machine, _ = one(items, disks=disks, more=boot)
    assert machine.disks[0].disk_id == "d1"


def test_places_that_lack_are_given_and_those_taken_twice_refused() -> None:
    items = CPU + MEMORY + SCSI + "".join(item(n, 17, HostResource="ovf:/disk/d1", Parent=3) for n in (4, 5))
    machine, faults = one(items)
    assert [disk.unit for disk in machine.disks] == [0, 1]
    _, faults = one(CPU + MEMORY + SCSI + drive(4) + drive(5))
    assert codes(faults) == ["same-place"]


def test_a_drive_without_its_controller_or_disk_is_refused() -> None:
    assert codes(one(CPU + MEMORY + drive(4))[1]) == ["no-controller"]
    assert codes(one(CPU + MEMORY + SCSI + item(4, 17, Parent=3))[1]) == ["no-disk"]


def test_a_medium_in_a_drive() -> None:
    machine, _ = one(CPU + MEMORY + item(3, 5) + item(4, 15, Parent=3, HostResource="ovf:/file/f1"))
    assert (machine.disks[0].kind, machine.disks[0].file_id) == ("cdrom", "f1")


def test_a_blank_disk_and_one_as_long_as_a_property_says() -> None:
    product = (
        '<ProductSection><Info/><Property ovf:key="size" ovf:type="uint32" ovf:userConfigurable="true" ovf:value="8"/>'
        "</ProductSection>"
    )
    disks = '<Disk ovf:diskId="d1" ovf:capacity="${size}" ovf:capacityAllocationUnits="byte * 2^30"/>'
    machine, _ = one(disks=disks, more=product)
    assert (machine.disks[0].file_id, machine.disks[0].capacity_bytes) == ("", 8 << 30)
    machine, _ = one(choice=Choice(properties={"size": "20"}), disks=disks, more=product)
    assert machine.disks[0].capacity_bytes == 20 << 30
    _, faults = one(disks=disks, more=product.replace('ovf:value="8"', ""))
    assert codes(faults) == ["bad-capacity"]


@pytest.mark.parametrize(
    ("units", "quantity", "expected"),
    [("byte * 2^20", 512, 512), ("MegaBytes", 512, 512), ("byte * 2^30", 2, 2048), ("", 512, 512), ("byte*1024*1024", 3, 3),
     ("byte * 2^10", 1025, 2)],
)  # fmt: skip
def test_memory(units: str, quantity: int, expected: int) -> None:
    machine, _ = one(CPU + item(2, 4, AllocationUnits=units, VirtualQuantity=quantity))
    assert machine.memory_mib == expected


def test_a_machine_needs_cpus_and_memory() -> None:
    assert codes(one(CPU)[1]) == ["bad-memory"]
    assert codes(one(MEMORY + item(1, 3, VirtualQuantity=0))[1]) == ["bad-cpu"]
    assert codes(one(CPU + item(2, 4, AllocationUnits="furlong", VirtualQuantity=1))[1]) == ["bad-units", "bad-memory"]


def test_firmware() -> None:
    config = '<vmw:Config ovf:required="false" vmw:key="{}" vmw:value="{}"/>'
    assert one(ITEMS + config.format("firmware", "efi"))[0].firmware == "uefi"
    assert one(ITEMS + config.format("firmware", "bios"))[0].firmware == "bios"
    secure, _ = one(ITEMS + config.format("bootOptions.efiSecureBootEnabled", "true"))
    assert (secure.firmware, secure.secure_boot) == ("uefi", True)
    box = (
        '<vbox:Machine xmlns:vbox="http://www.virtualbox.org/ovf/machine" ovf:required="false"><Info/><Hardware>'
        '<Firmware type="EFI"/></Hardware></vbox:Machine>'
    )
    assert one(more=box)[0].firmware == "uefi"


def test_hardware_that_a_vm_cannot_have_is_refused_by_name_unless_it_is_not_required() -> None:
    adapter = item(9, 7, "", ElementName="FC HBA 1")
    _, faults = one(ITEMS + adapter)
    (fault,) = faults.found
    assert fault.code == "unknown-hardware"
    assert "Fibre Channel adapter" in fault.message
    assert "FC HBA 1" in fault.message
    assert fault.line > 15
    _, faults = one(ITEMS + adapter.replace("<Item ", '<Item ovf:required="false"'))
    assert codes(faults, "note") == ["item-passed-over"]
    _, faults = one(ITEMS + item(9, 24) + item(10, 23) + item(11, 1, ResourceSubType="vmware.vmci") + item(12, 35))
    assert codes(faults) == []
    assert codes(faults, "note") == ["item-passed-over"] * 4
    _, faults = one(ITEMS.replace(SCSI, item(3, 6, ResourceSubType="quantum")))
    assert codes(faults) == ["unknown-hardware"]
    _, faults = one(ITEMS.replace(SCSI, item(3, 6, 'ovf:required="false"', ResourceSubType="quantum")))
    assert (codes(faults), codes(faults, "warning")) == ([], ["other-controller"])


def test_deployment_options_choose_items_and_bounds() -> None:
    items = (
        CPU + item(1, 3, 'ovf:configuration="big"', VirtualQuantity=8) + item(1, 3, 'ovf:bound="min"', VirtualQuantity=1)
        + item(1, 3, 'ovf:bound="max"', VirtualQuantity=16) + MEMORY
        + item(7, 10, 'ovf:configuration="small big"', Connection="lan")
        + item(8, 10, 'ovf:configuration="big"', Connection="lan")
    )  # fmt: skip
    small, _ = one(items, Choice(configuration="small"), sections=OPTIONS)
    assert (small.vcpus, small.vcpus_min, small.vcpus_max, len(small.nics)) == (2, 1, 16, 1)
    big, _ = one(items, sections=OPTIONS)
    assert (big.vcpus, len(big.nics)) == (8, 2)
    with pytest.raises(OvfFault, match="there are small, big"):
        one(items, Choice(configuration="huge"), sections=OPTIONS)


def test_the_first_of_several_kinds_of_hardware_is_taken() -> None:
    both = hardware(ITEMS, 'ovf:id="a"', "vmx-13") + hardware(CPU + MEMORY, 'ovf:id="b"', "xen-3")
    (machine,), faults = made(envelope(system("vm", both)))
    assert len(machine.nics) == 1
    assert codes(faults, "note") == ["other-hardware"]


def test_startup_of_nested_collections_is_put_in_line() -> None:
    def order(*items: tuple[str, int, int]) -> str:
        lines = "".join(
            f'<Item ovf:id="{name}" ovf:order="{place}" ovf:startDelay="{delay}"/>' for name, place, delay in items
        )
        return f"<StartupSection><Info/>{lines}</StartupSection>"

    inner = collection("web", order(("w2", 1, 5), ("w1", 2, 6)) + system("w1") + system("w2"))
    text = envelope(collection("all", order(("web", 2, 1), ("db", 1, 30)) + inner + system("db") + system("any")))
    found, faults = made(text)
    assert codes(faults) == []
    assert {machine.id: machine.startup.stage for machine in found} == {"db": 0, "w2": 1, "w1": 2, "any": 3}
    assert {machine.id: machine.startup.start_delay_s for machine in found} == {"db": 30, "w2": 5, "w1": 6, "any": 0}
    assert [machine.collections for machine in found] == [("all", "web"), ("all", "web"), ("all",), ("all",)]


def test_sockets_and_a_tpm() -> None:
    cpu = CPU.replace("</Item>", '<vmw:CoresPerSocket ovf:required="false">2</vmw:CoresPerSocket></Item>')
    machine, faults = one(cpu + MEMORY + NIC + item(9, 1, ResourceSubType="vmware.vtpm"))
    assert (machine.cores_per_socket, machine.tpm) == (2, True)
    assert codes(faults) == []


def test_a_tree_keeps_lines() -> None:
    root = parse([b"<a>\n<b>\n", b"x</b>\n<c d='1'/></a>"], Faults())
    assert [(child.name, child.line, child.text) for child in root.children] == [("b", 2, "x"), ("c", 4, "")]


def test_a_disk_of_several_vms_is_copied_unless_it_is_shared() -> None:
    text = envelope(collection("all", system("a") + system("b")))
    assert codes(made(text)[1], "note") == ["copied-disk"]
    (first, second), faults = made(text.replace(b"<Disk ", b'<Disk vmw:shared="true" '))
    assert faults.found == ()
    assert first.disks[0].shared
    assert second.disks[0].shared


def test_a_cd_drive_where_a_disk_is_moves() -> None:
    machine, faults = one(CPU + MEMORY + item(3, 5) + item(5, 15, Parent=3, AddressOnParent=0) + drive(4))
    assert codes(faults) == []
    assert [(disk.kind, disk.unit) for disk in machine.disks] == [("disk", 0), ("cdrom", 1)]


def test_reservations_are_in_units_of_their_own() -> None:
    cpu = item(1, 3, AllocationUnits="hertz * 10^6", VirtualQuantity=2, Reservation=1500, Limit=-1)
    machine, faults = one(cpu + item(2, 4, AllocationUnits="byte * 2^30", VirtualQuantity=4, Reservation=1))
    assert faults.found == ()
    assert (machine.cpu_reserved_mhz, machine.memory_reserved_mib) == (1500, 1024)
    machine, _ = one(cpu.replace("hertz * 10^6", "Hertz*10^9") + MEMORY)
    assert machine.cpu_reserved_mhz == 1_500_000
