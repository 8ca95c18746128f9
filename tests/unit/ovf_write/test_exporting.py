"""Packages as they are written: what tar, qemu-img, an XML parser and the reading half find in them."""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.unit.ovf_write.vmdks import MIB, qemu_img, sparse_disk

from pileus.ovf.archiving import Entry, manifest_text, text_entry, write_archive, write_folder
from pileus.ovf.describing import Appliance, describe
from pileus.ovf.descriptor import read_descriptor
from pileus.ovf.exporting import PackedDisk, file_stem, pack_disk, package
from pileus.ovf.faults import Faults
from pileus.ovf.manifest import read_manifest
from pileus.ovf.model import (
    Envelope,
    Machine,
    MachineDisk,
    MachineNic,
    Network,
    Product,
    Property,
    PropertyValue,
    Startup,
    VirtualSystemCollection,
)

WEB = Machine(
    id="web", name="Web & <more>", vcpus=4, cores_per_socket=2, memory_mib=1536, firmware="uefi", secure_boot=True,
    disks=(
        MachineDisk(disk_id="root", capacity_bytes=70 * MIB, bus="virtio"),
        MachineDisk(disk_id="blank", capacity_bytes=1 << 30, bus="virtio", unit=7),
        MachineDisk(kind="cdrom", bus="ide", bus_number=1),
        MachineDisk(disk_id="fast", capacity_bytes=512 * MIB, bus="nvme"),
    ),
    nics=(MachineNic(model="virtio", network="front"), MachineNic(model="vmxnet3", network="back", mac="02:00:00:00:00:01")),
    os="Debian 12",
)  # fmt: skip
PROPERTIES = (
    Property(key="name", full_key="app.name.1", values=(PropertyValue(value='a "b" & <c>\nd'),), user_configurable=True,
             length_min=1, length_max=20, allowed=("a,b", 'c"d')),
    Property(key="secret", full_key="app.secret.1", values=(PropertyValue(value="never written"),), password=True),
    Property(key="count", full_key="app.count.1", type="uint16", description="How many"),
)  # fmt: skip
PRODUCT = Product(class_id="app", instance_id="1", name="App", vendor="Acme", version="1.2", properties=PROPERTIES)


def read_back(text: bytes) -> Envelope:
    """Return what the reading half makes of a descriptor, which has nothing to complain of."""
    faults = Faults("x.ovf")
    envelope = read_descriptor([text], faults)
    assert [str(fault) for fault in faults.found if fault.severity != "note"] == []
    return envelope


def descriptor(appliance: Appliance) -> bytes:
    """Return the descriptor of a package whose disks are all blank."""
    return b"".join(package(appliance, {})[0].chunks())


def packed(tmp_path: Path, name: str = "root") -> PackedDisk:
    raw = sparse_disk(tmp_path / f"{name}.raw")
    return pack_disk(raw, tmp_path / f"{name}.vmdk")


def test_a_machine_comes_back_from_its_descriptor(tmp_path: Path) -> None:
    appliance = Appliance(id="web", machines=(WEB,), products={"web": (PRODUCT,)}, eulas=("You & we <agree>.",))
    entries = package(appliance, {"root": packed(tmp_path)})
    envelope = read_back(b"".join(entries[0].chunks()))
    (system,) = envelope.systems()
    assert (system.id, system.name) == ("web", "Web & <more>")
    assert [(disk.id, disk.capacity_bytes, disk.file_id) for disk in envelope.disks] == [
        ("root", 70 * MIB, "file1"), ("blank", 1 << 30, ""), ("fast", 512 * MIB, ""),
    ]  # fmt: skip
    assert envelope.disks[0].stream_optimized
    assert [(file.href, file.size_bytes) for file in envelope.files] == [(entries[2].name, entries[2].size_bytes)]
    assert {network.name for network in envelope.networks} == {"front", "back"}
    (hardware,) = system.hardware
    assert (hardware.firmware, hardware.transports) == ("uefi", ("iso",))
    kinds = [item.resource_type for item in hardware.items]
    assert kinds == [3, 4, 6, 17, 17, 5, 15, 20, 17, 10, 10]
    assert system.eulas[0].text == "You & we <agree>."


def test_units_at_a_controller_differ_and_are_never_its_own() -> None:
    disks = tuple(MachineDisk(disk_id=f"d{number}", capacity_bytes=MIB) for number in range(12))
    machine = Machine(id="m", name="m", memory_mib=64, disks=disks)
    (system,) = read_back(descriptor(Appliance(id="m", machines=(machine,)))).systems()
    units = [item.address_on_parent for item in system.hardware[0].items if item.resource_type == 17]
    assert units == [str(unit) for unit in range(13) if unit != 7]


def test_properties_come_back_and_passwords_are_not_written() -> None:
    text = descriptor(Appliance(id="web", machines=(WEB,), products={"web": (PRODUCT,)}))
    assert b"never written" not in text
    (system,) = read_back(text).systems()
    (product,) = system.products
    assert (product.name, product.vendor, product.version) == ("App", "Acme", "1.2")
    name, secret, count = product.properties
    assert name.values[0].value == 'a "b" & <c>\nd'
    assert (name.length_min, name.length_max, name.allowed) == (1, 20, ("a,b", 'c"d'))
    assert secret.password
    assert (count.type, count.description, count.full_key) == ("uint16", "How many", "app.count.1")


def test_several_machines_are_a_collection_in_their_order_of_start() -> None:
    machines = tuple(
        Machine(id=name, name=name, memory_mib=64, startup=Startup(stage=stage, start_delay_s=stage * 10))
        for stage, name in enumerate(("db", "app", "web"))
    )
    networks = (Network(name="back", description="Between them"),)
    envelope = read_back(describe(Appliance(id="shop", machines=machines, networks=networks)))
    assert isinstance(envelope.content, VirtualSystemCollection)
    assert [system.id for system in envelope.systems()] == ["db", "app", "web"]
    assert [(item.id, item.order, item.start_delay_s) for item in envelope.content.startup] == [
        ("db", 1, 0), ("app", 2, 10), ("web", 3, 20),
    ]  # fmt: skip
    assert envelope.networks[0].description == "Between them"


def test_an_archive_has_its_members_in_order_with_right_digests_and_the_same_disk(tmp_path: Path) -> None:
    archive = io.BytesIO()
    write_archive(archive.write, package(Appliance(id="My appliance", machines=(WEB,)), {"root": packed(tmp_path)}))
    archive.seek(0)
    with tarfile.open(fileobj=archive, mode="r:") as opened:
        names = opened.getnames()
        opened.extractall(tmp_path / "out", filter="data")
    assert names == ["My-appliance.ovf", "My-appliance.mf", "My-appliance-disk1.vmdk"]
    assert len(archive.getvalue()) % 10_240 == 0
    faults = Faults()
    manifest = read_manifest("My-appliance.mf", (tmp_path / "out" / names[1]).read_bytes(), faults)
    assert faults.found == ()
    for name in (names[0], names[2]):
        digest = hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest()
        assert [(one.algorithm, one.digest) for one in manifest.listed(name)] == [("SHA256", digest)]
    qemu_img("compare", "-f", "raw", "-F", "vmdk", tmp_path / "root.raw", tmp_path / "out" / names[2])
    ElementTree.parse(tmp_path / "out" / names[0])


def test_a_package_as_a_folder_has_the_same_files(tmp_path: Path) -> None:
    entries = package(Appliance(id="x", machines=(WEB,)), {"root": packed(tmp_path)})
    (tmp_path / "folder").mkdir()
    write_folder(tmp_path / "folder", entries)
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["x-disk1.vmdk", "x.mf", "x.ovf"]


def test_the_same_disk_gives_the_same_bytes(tmp_path: Path) -> None:
    first = packed(tmp_path)
    again = pack_disk(tmp_path / "root.raw", tmp_path / "again.vmdk")
    assert first.sha256 == again.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()
    assert 0 < first.populated_bytes < MIB


def test_only_a_member_of_8_gib_or_more_has_a_header_of_gnu() -> None:
    def zeros(size: int) -> Iterator[bytes]:
        whole, rest = divmod(size, 64 * MIB)
        yield from itertools.repeat(bytes(64 * MIB), whole)
        yield bytes(rest)

    sizes = {"small": 5, "largest": 8 * 1024**3 - 1, "huge": 8 * 1024**3}
    entries = [Entry(name=name, size_bytes=size, chunks=partial(zeros, size)) for name, size in sizes.items()]
    headers: dict[str, bytes] = {}

    def write(content: bytes) -> None:
        if len(content) == 512 and content[257:262] == b"ustar":
            headers[content[:100].rstrip(b"\0").decode()] = content

    write_archive(write, entries)
    assert {name: header[257:265] for name, header in headers.items()} == {
        "small": b"ustar\x0000", "largest": b"ustar\x0000", "huge": b"ustar  \x00",
    }  # fmt: skip
    assert headers["huge"][124] == 0x80
    assert tarfile.TarInfo.frombuf(headers["huge"], "utf-8", "strict").size == sizes["huge"]


@pytest.mark.parametrize("found", [b"", b"1234", b"123456"])
def test_a_part_that_changed_its_length_is_an_error(found: bytes) -> None:
    with pytest.raises(ValueError, match="changed while it was packed"):
        write_archive(lambda content: None, [Entry(name="x", size_bytes=5, chunks=lambda: [found])])


def test_long_names_and_foreign_letters_are_carried() -> None:
    names = ["é" * 100, "a/" * 80 + "x", "ü.ovf"]
    archive = io.BytesIO()
    write_archive(archive.write, [text_entry(name, name.encode()) for name in names])
    archive.seek(0)
    with tarfile.open(fileobj=archive) as opened:
        assert opened.getnames() == names


def test_a_name_for_people_becomes_one_for_files() -> None:
    assert file_stem("My VM (old)/2") == "My-VM-old-2"
    assert file_stem("../..") == "package"
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,80}", file_stem("x" * 300))
    assert manifest_text({"a": "b"}) == b"SHA256(a)= b\n"
