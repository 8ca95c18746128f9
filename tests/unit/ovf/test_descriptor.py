"""What a descriptor says, in every version and spelling, and the line of what is wrong with it."""

from __future__ import annotations

import pytest
from tests.unit.ovf.descriptors import (
    BEFORE,
    DISK,
    FILE,
    ITEMS,
    NETWORK,
    NIC,
    OVF1,
    OVF2,
    collection,
    drive,
    envelope,
    hardware,
    item,
    system,
)

from pileus.ovf.descriptor import read_descriptor
from pileus.ovf.faults import Faults, OvfFault
from pileus.ovf.limits import DEFAULT
from pileus.ovf.model import Envelope, VirtualSystem, VirtualSystemCollection
from pileus.ovf.qualifiers import qualifiers
from pileus.ovf.scope import Scope
from pileus.ovf.tree import Element


def read(text: bytes, language: str = "") -> tuple[Envelope, Faults]:
    faults = Faults("x.ovf")
    return read_descriptor([text], faults, language=language), faults


def errors(text: bytes) -> list[tuple[str, int]]:
    """Return code and line of each error."""
    try:
        _, faults = read(text)
        found = faults.found
    except OvfFault as fault:
        found = fault.faults
    return [(fault.code, fault.line) for fault in found if fault.severity == "error"]


def line_of(text: bytes, word: str) -> int:
    """Return the line in which a word is for the first time."""
    return text[: text.index(word.encode())].count(b"\n") + 1


def only(found: Envelope) -> VirtualSystem:
    (system,) = found.systems()
    return system


@pytest.mark.parametrize(("namespace", "version"), [(OVF1, "1"), (OVF2, "2")])
def test_a_simple_descriptor_is_read(namespace: str, version: str) -> None:
    found, faults = read(envelope(namespace=namespace))
    assert faults.found == ()
    assert found.version == version
    (disk,) = found.disks
    assert (disk.id, disk.file_id, disk.capacity_bytes, disk.format, disk.stream_optimized) == (
        "d1",
        "f1",
        16 << 20,
        "vmdk",
        True,
    )
    assert [one.resource_type for one in only(found).hardware[0].items] == [3, 4, 6, 17, 10]
    assert only(found).hardware[0].items[0].line == line_of(envelope(), "<Item ")


def test_any_prefix_will_do() -> None:
    text = envelope().decode()
    for prefix, other in (("ovf:", "o:"), ("xmlns:ovf", "xmlns:o"), ("rasd:", "r:"), ("xmlns:rasd", "xmlns:r")):
        text = text.replace(prefix, other)
    found, faults = read(text.encode())
    assert faults.found == ()
    assert found.disks[0].id == "d1"


def test_the_envelope_from_before_the_standard_is_read() -> None:
    hardware_section = (
        '<Section xsi:type="ovf:VirtualHardwareSection_Type"><Info/>'
        "<Item><rasd:Caption>2 CPUs</rasd:Caption><rasd:InstanceId>1</rasd:InstanceId><rasd:ResourceType>3</rasd:ResourceType>"
        "<rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>"
        "<Item><rasd:Caption>disk</rasd:Caption><rasd:InstanceId>2</rasd:InstanceId><rasd:ResourceType>17</rasd:ResourceType>"
        "<rasd:HostResource>disk/d1</rasd:HostResource></Item></Section>"
    )
    text = (
        f'<ovf:Envelope xmlns:ovf="{BEFORE}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        'xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">'
        '<References><File ovf:id="f1" ovf:href="disk1.vmdk" ovf:size="3"/></References>'
        '<Section xsi:type="ovf:DiskSection_Type"><Info/><Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="2147483648" '
        'ovf:format="http://www.vmware.com/specifications/vmdk.html#sparse"/></Section>'
        '<Content ovf:id="old" xsi:type="ovf:VirtualSystem_Type"><Info/>'
        '<Section ovf:id="95" xsi:type="ovf:OperatingSystemSection_Type"><Info/><Description>Debian</Description></Section>'
        f"{hardware_section}</Content></ovf:Envelope>"
    )
    found, faults = read(text.encode())
    assert faults.found == ()
    assert found.version == "0.9"
    assert found.disks[0].capacity_bytes == 2 << 30
    (first, second) = only(found).hardware[0].items
    assert (first.id, first.name, first.quantity, second.host_resources) == ("1", "2 CPUs", 2, ("disk/d1",))
    os = only(found).os
    assert os is not None
    assert (os.id, os.description) == (95, "Debian")


def test_collections_in_collections_are_read() -> None:
    startup = (
        "<StartupSection><Info/>"
        '<Item ovf:id="db" ovf:order="1" ovf:startDelay="30" ovf:waitingForGuest="true" ovf:stopAction="guestShutdown"/>'
        '<Item ovf:id="front" ovf:order="2" ovf:startAction="none"/></StartupSection>'
    )
    inner = collection("front", system("web1") + system("web2"))
    found, faults = read(envelope(collection("all", startup + system("db") + inner)))
    assert [fault.code for fault in faults.found] == []
    assert [one.id for one in found.systems()] == ["db", "web1", "web2"]
    assert [one.id for one in found.contents()] == ["all", "db", "front", "web1", "web2"]
    assert isinstance(found.content, VirtualSystemCollection)
    first, second = found.content.startup
    assert (first.order, first.start_delay_s, first.waiting_for_guest, first.stop_action) == (
        1,
        30,
        True,
        "guestShutdown",
    )
    assert (second.start_action, second.stop_action) == ("none", "powerOff")


STRINGS = (
    '<Strings xml:lang="de-DE"><Msg ovf:msgid="net">Das Netz</Msg></Strings>'
    '<Strings xml:lang="en-US"><Msg ovf:msgid="net">The network</Msg></Strings>'
)


@pytest.mark.parametrize(
    ("language", "expected"), [("", "The network"), ("de-DE", "Das Netz"), ("de-AT", "Das Netz"), ("fr", "The network")]
)
def test_texts_are_in_the_wanted_language(language: str, expected: str) -> None:
    networks = '<Network ovf:name="lan"><Description ovf:msgid="net">default</Description></Network>'
    found, _ = read(envelope(networks=networks, strings=STRINGS), language)
    assert found.networks[0].description == expected
    assert found.languages == ("de-DE", "en-US")
    found, _ = read(envelope(networks=networks))
    assert found.networks[0].description == "default"


def test_products_properties_and_licences_are_read() -> None:
    sections = (
        '<ProductSection ovf:class="org.x" ovf:instance="1"><Info/><Product>Firewall</Product><Vendor>X</Vendor>'
        "<Version>1.2</Version><Category>Network</Category>"
        '<Property ovf:key="ip" ovf:type="string" ovf:userConfigurable="true" ovf:value="10.0.0.1" '
        'ovf:qualifiers="MinLen(7) MaxLen(15)"><Label>Address</Label><Description>of it</Description></Property>'
        '<Property ovf:key="size" ovf:type="uint8">'
        '<Value ovf:value="1" ovf:configuration="small"/><Value ovf:value="3"/></Property>'
        "</ProductSection><EulaSection><Info/><License>Be nice.</License></EulaSection>"
        '<InstallSection ovf:initialBootStopDelay="300"><Info/></InstallSection>'
        "<AnnotationSection><Info/><Annotation>Good.</Annotation></AnnotationSection>"
    )
    options = (
        "<DeploymentOptionSection><Info/>"
        '<Configuration ovf:id="small"><Label>Small</Label><Description>less</Description></Configuration>'
        '<Configuration ovf:id="big" ovf:default="true"><Label>Big</Label><Description/></Configuration>'
        "</DeploymentOptionSection>"
    )
    found, faults = read(envelope(system("vm", hardware(), more=sections), sections=options))
    assert faults.found == ()
    vm = only(found)
    (product,) = vm.products
    assert (product.name, product.vendor, product.version) == ("Firewall", "X", "1.2")
    address, size = product.properties
    assert (address.full_key, address.label, address.category, address.length_min) == (
        "org.x.ip.1",
        "Address",
        "Network",
        7,
    )
    assert [(value.value, value.configuration) for value in size.values] == [("1", "small"), ("3", "")]
    assert (vm.eulas[0].text, vm.boots_to_install, vm.install_stop_delay_s) == ("Be nice.", True, 300)
    assert vm.about == "Good.\na VM"
    assert [(one.id, one.default) for one in found.configurations] == [("small", False), ("big", True)]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized", "vmdk"),
        ("http://www.vmware.com/specifications/vmdk.html#sparse", "vmdk"),
        ("http://www.gnome.org/~markmc/qcow-image-format.html", "qcow2"),
        ("http://technet.microsoft.com/en-us/virtualserver/bb676673.aspx#monolithic", "vhd"),
        ("http://www.virtualbox.org/ovf/machine#vdi", "vdi"),
        ("http://example.org/raw", "raw"),
        ("http://example.org/other", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_disks_format_is_told_by_its_uri(uri: str, expected: str) -> None:
    disk = f'<Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="1" ovf:format="{uri}"/>'
    found, faults = read(envelope(disks=disk))
    assert found.disks[0].format == expected
    assert [fault.code for fault in faults.found] == (["unknown-format"] if expected == "unknown" else [])


def test_the_second_edition_has_items_and_sections_of_its_own() -> None:
    nic = item(9, 10, "", "epasd", "EthernetPortItem", Connection="lan", Address="00:11:22:33:44:55")
    store = item(8, 17, "", "sasd", "StorageItem", HostResource="ovf:/disk/d1", Parent=3)
    sections = (
        '<EnvironmentFilesSection ovf:required="false"><Info/>'
        '<File ovf:fileRef="f1" ovf:path="setup/x.cfg"/></EnvironmentFilesSection>'
        "<BootDeviceSection><Info/><CIM_BootConfigSetting><CIM_BootSourceSetting><InstanceID>8</InstanceID>"
        "</CIM_BootSourceSetting></CIM_BootConfigSetting></BootDeviceSection>"
    )
    shared_disk = '<SharedDisk ovf:diskId="d2" ovf:capacity="1" ovf:format="http://x/raw"/>'
    shared = f"<SharedDiskSection><Info/>{shared_disk}</SharedDiskSection>"
    text = envelope(
        system("vm", hardware(ITEMS.replace(drive(4), store) + nic), more=sections), sections=shared, namespace=OVF2
    )
    found, faults = read(text)
    assert faults.found == ()
    vm = only(found)
    assert [one.resource_type for one in vm.hardware[0].items] == [3, 4, 6, 17, 10, 10]
    assert vm.environment_files[0].path == "setup/x.cfg"
    assert vm.boot_order == ("8",)
    assert [(disk.id, disk.shared) for disk in found.disks] == [("d1", False), ("d2", True)]


@pytest.mark.parametrize("place", ["envelope", "system", "collection"])
@pytest.mark.parametrize("required", ["", 'ovf:required="true"', 'ovf:required="false"'])
def test_a_section_that_is_not_known_is_refused_by_name_unless_it_is_not_required(place: str, required: str) -> None:
    unknown = f'<vmw:OddSection xmlns:vmw="http://www.vmware.com/schema/ovf" {required}><Info/></vmw:OddSection>\n'
    text = {
        "envelope": envelope(sections=unknown),
        "system": envelope(system("vm", hardware(), more=unknown)),
        "collection": envelope(collection("all", unknown + system())),
    }[place]
    found, faults = read(text)
    (fault,) = faults.found
    assert fault.line == line_of(text, "<vmw:OddSection")
    assert "OddSection" in fault.message
    assert fault.severity == ("note" if "false" in required else "error")
    passed = [*found.unknown, *(section for part in found.contents() for section in part.unknown)]
    assert len(passed) == ("false" in required)


def with_items(items: str) -> bytes:
    return envelope(system("vm", hardware(ITEMS + items)))


def with_cpu(attributes: str, quantity: str = "4") -> bytes:
    return with_items(item(8, 3, attributes, VirtualQuantity=quantity))


TYPE_OF_NIC = b"<rasd:ResourceType>10</rasd:ResourceType>"
AGAIN = system().replace("<Name>vm", "<Name>again")
BLANK = DISK.replace('ovf:fileRef="f1"', "")
GHOST = '<StartupSection><Item ovf:id="ghost" ovf:order="1"/></StartupSection>'
FIRMWARE = '<vmw:Config vmw:key="firmware" vmw:value="openfirmware"/>'
WRONG: dict[str, tuple[str, str, bytes]] = {
    "a second file of an id": ("duplicate-id", "again.vmdk", envelope(files=FILE + FILE.replace("disk1", "again"))),
    "a second disk of an id": ("duplicate-id", 'capacity="17"', envelope(disks=DISK + DISK.replace('"16"', '"17"'))),
    "a second network of a name": ("duplicate-id", "again", envelope(networks=NETWORK + NETWORK.replace("the LAN", "again"))),
    "a second VM of an id": ("duplicate-id", "again", envelope(collection("all", system() + AGAIN))),
    "a disk without its file": ("no-file", '"f9"', envelope(disks=DISK.replace('"f1"', '"f9"'))),
    "a disk without a capacity": ("missing-attribute", "<Disk ", envelope(disks=DISK.replace('ovf:capacity="16"', ""))),
    "a capacity that is none": ("bad-capacity", '"1x"', envelope(disks=DISK.replace('"16"', '"1x"'))),
    "a negative capacity": ("bad-capacity", '"-1"', envelope(disks=DISK.replace('"16"', '"-1"'))),
    "a capacity of a property that is not there": ("no-property", "${x}", envelope(disks=DISK.replace('"16"', '"${x}"'))),
    "units that are none": ("bad-units", "furlong", envelope(disks=DISK.replace("byte * 2^20", "furlong"))),
    "a delta disk": ("delta-disk", "parentRef", envelope(disks=DISK.replace("<Disk ", '<Disk ovf:parentRef="d1" '))),
    "a blank disk of no capacity": ("bad-capacity", '"0"', envelope(disks=BLANK.replace('"16"', '"0"'))),
    "a NIC of a network that is not there": ("no-network", "VmxNet3", envelope(networks="")),
    "a drive of a disk that is not there": ("bad-reference", "disk/d9", with_items(drive(9, 1, "d9"))),
    "a drive of nothing": ("bad-reference", "nothing", envelope().replace(b"ovf:/disk/d1", b"nothing")),
    "an item without a type": ("missing-element", "item 5", envelope().replace(TYPE_OF_NIC, b"")),
    "a configuration that is not there": ("no-configuration", "big", with_cpu('ovf:configuration="big"')),
    "a bound that is none": ("bad-value", "huge", with_cpu('ovf:bound="huge"')),
    "a quantity that is none": ("bad-value", "many", with_cpu("", "many")),
    "a boolean that is none": ("bad-value", "maybe", with_cpu('ovf:required="maybe"')),
    "a VM without hardware": ("no-hardware", "<VirtualSystem ", envelope(system("vm", ""))),
    "a VM in a VM": ("nested-system", 'ovf:id="in"', envelope(system("vm", hardware(), more=system("in")))),
    "a startup of no member": ("no-member", "ghost", envelope(collection("all", system() + GHOST))),
    "no VM": ("no-content", "<Envelope", envelope("")),
    "two VMs outside a collection": ("no-content", 'id="vm2"', envelope(system("vm") + system("vm2"))),
    "a compression that is none": ("bad-value", "lzma", envelope(files=FILE.replace("<File", '<File ovf:compression="lzma"'))),
    "a firmware that is none": ("unknown-firmware", "openfirmware", with_items(FIRMWARE)),
    "an end that is missing": ("bad-xml", "</Envelope>", envelope().replace(b"</VirtualSystem>", b"")),
}  # fmt: skip


@pytest.mark.parametrize("case", list(WRONG))
def test_what_is_wrong_is_told_with_its_line(case: str) -> None:
    code, word, text = WRONG[case]
    assert (code, line_of(text, word)) in errors(text), errors(text)


def test_all_that_is_wrong_is_told_at_once() -> None:
    text = envelope(disks=DISK.replace('"f1"', '"f9"'), networks="", files=FILE.replace("disk1", "../disk1"))
    assert {code for code, _ in errors(text)} == {"no-file", "no-network", "climbing-name"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MinLen(1) MaxLen(64)", (1, 64, None, None, ())),
        ("MinValue(-1),MaxValue(5)", (None, None, -1, 5, ())),
        ('ValueMap{"a, b", "c\\"d"} Values{"A", "B"}', (None, None, None, None, ("a, b", 'c"d'))),
        ('ValueMap("x","y")', (None, None, None, None, ("x", "y"))),
        ("Values(1,2)", (None, None, None, None, ("1", "2"))),
    ],
)
def test_qualifiers_are_read(text: str, expected: tuple[object, ...]) -> None:
    element = Element(OVF1, "Property", {f"{OVF1} qualifiers": text}, 1)
    found = qualifiers(Scope(Faults(), DEFAULT, element, ""), element)
    assert (found.length_min, found.length_max, found.value_min, found.value_max, found.allowed) == expected
    assert found.unknown == ()


def test_a_qualifier_that_is_not_known_is_noted() -> None:
    element = Element(OVF1, "Property", {f"{OVF1} qualifiers": 'Ip("lan") MinLen(2)'}, 7)
    faults = Faults()
    found = qualifiers(Scope(faults, DEFAULT, element, ""), element)
    assert (found.unknown, found.length_min) == (("Ip",), 2)
    assert [(fault.code, fault.severity, fault.line) for fault in faults.found] == [("unknown-qualifier", "note", 7)]


def test_a_nic_may_have_no_network() -> None:
    text = envelope(system("vm", hardware(ITEMS.replace(NIC, item(5, 10)))), networks="")
    assert errors(text) == []
