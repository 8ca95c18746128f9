"""What other tools write is understood, and nothing of it is an error."""

from __future__ import annotations

import pytest
from tests.unit.ovf import styles

from pileus.ovf.descriptor import read_descriptor
from pileus.ovf.faults import Faults
from pileus.ovf.machines import Choice, machines
from pileus.ovf.model import Envelope, Machine
from pileus.ovf.properties import capacity_bytes


def understood(text: str, configuration: str = "") -> tuple[Envelope, tuple[Machine, ...], list[str]]:
    faults = Faults("x.ovf")
    found = read_descriptor([text.encode()], faults)
    made = machines(found, faults, choice=Choice(configuration=configuration))
    assert not faults.refused, faults.found
    return found, made, [fault.code for fault in faults.found]


def test_as_vsphere_writes() -> None:
    found, (machine,), odd = understood(styles.VSPHERE)
    assert (machine.vcpus, machine.cores_per_socket, machine.memory_mib, machine.firmware, machine.secure_boot) == (
        4,
        2,
        8192,
        "uefi",
        True,
    )
    assert [(disk.controller, disk.unit, disk.capacity_bytes >> 30, disk.file_id) for disk in machine.disks] == [
        ("pvscsi", 0, 40, "file1"), ("pvscsi", 1, 200, ""),
    ]  # fmt: skip
    assert [(nic.model, nic.network) for nic in machine.nics] == [("vmxnet3", "VM Network")]
    assert (machine.transports, machine.os_id) == (("iso", "com.vmware.guestInfo"), 96)
    assert sorted(odd) == ["item-passed-over", "item-passed-over", "section-passed-over"]
    assert found.disks[0].populated_bytes == 1622540288


def test_as_virtualbox_writes() -> None:
    _, (machine,), odd = understood(styles.VIRTUALBOX)
    assert (machine.vcpus, machine.memory_mib, machine.firmware) == (1, 1024, "uefi")
    assert [(disk.bus, disk.controller, disk.disk_id) for disk in machine.disks] == [("sata", "ahci", "vmdisk1")]
    assert [(nic.model, nic.network) for nic in machine.nics] == [("e1000", "NAT")]
    assert sorted(odd) == ["item-passed-over", "item-passed-over", "no-size", "section-passed-over"]


def test_as_xen_tools_write() -> None:
    found, (machine,), odd = understood(styles.XEN)
    assert (machine.vcpus, machine.memory_mib) == (2, 512)
    assert (found.disks[0].format, found.disks[0].capacity_bytes) == ("vhd", 1 << 30)
    assert [(nic.mac, nic.model) for nic in machine.nics] == [("00:16:3e:01:02:03", "unspecified")]
    assert odd == []


@pytest.mark.parametrize(("configuration", "vcpus"), [("", 4), ("large", 4), ("small", 1)])
def test_as_those_write_who_compose_by_hand(configuration: str, vcpus: int) -> None:
    found, (db, web), odd = understood(styles.COMPOSED, configuration)
    assert (db.vcpus, db.memory_mib, web.vcpus, web.memory_mib) == (vcpus, 2048, 2, 512)
    assert capacity_bytes(found, found.disks[0]) == 20 << 30
    assert (db.disks[0].controller, db.disks[0].capacity_bytes) == ("virtio-scsi", 20 << 30)
    assert (db.startup.stage, db.startup.start_delay_s, db.startup.waiting_for_guest, web.startup.stage) == (
        0,
        60,
        True,
        1,
    )
    assert [nic.network for nic in web.nics] == ["data"]
    assert found.configurations[0].label == "Small size"
    assert odd == []
