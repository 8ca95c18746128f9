"""What a descriptor says, in every version and spelling."""

from __future__ import annotations

from tests.unit.ovf.descriptors import envelope

from pileus.ovf.descriptor import read_descriptor
from pileus.ovf.faults import Faults
from pileus.ovf.model import Envelope


def read(text: bytes) -> tuple[Envelope, Faults]:
    faults = Faults("x.ovf")
    return read_descriptor([text], faults), faults


def test_a_simple_descriptor_is_read() -> None:
    found, faults = read(envelope())
    assert faults.found == ()
    assert found.version == "1"
    assert [(disk.id, disk.file_id, disk.capacity_bytes, disk.format) for disk in found.disks] == [
        ("d1", "f1", 16 << 20, "vmdk")
    ]
    (system,) = found.systems()
    assert [one.resource_type for one in system.hardware[0].items] == [3, 4, 6, 17, 10]
    assert system.hardware[0].items[0].line > 10
