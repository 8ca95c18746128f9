"""What becomes of a machine's specification on QEMU's command line, and what never does."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.qemu.base import (
    BackingFile,
    DirectBoot,
    DiskAttachment,
    MachineSpec,
    NicAttachment,
    Throttle,
)
from pileus.drivers.host.qemu.command import (
    DISK_SLOTS,
    NIC_SLOTS,
    ROOT_SLOT,
    SEED_SLOT,
    OpenFiles,
    check,
    command,
    disk_device,
    disk_node_names,
    disk_nodes,
    disk_plug,
    free_slot,
    nic_device,
    plan_slots,
)

IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}", fullmatch=True)


def disk(id_: str, **fields: Any) -> DiskAttachment:
    return DiskAttachment(id=id_, path=f"/pool/{id_}", format="qcow2", **fields)


def nic(id_: str) -> NicAttachment:
    return NicAttachment(id=id_, mac="52:54:00:00:00:01", tap=f"tap-{id_}")


def machine(disks: int = 1, nics: int = 0, **fields: Any) -> MachineSpec:
    return MachineSpec(
        id="m1", name="a tenant's name, with=options", vcpus=2, memory_mib=512,
        disks=tuple(disk(f"disk{one}") for one in range(disks)), nics=tuple(nic(f"nic{one}") for one in range(nics)),
        **fields,
    )  # fmt: skip


def argv(spec: MachineSpec, accelerator: str = "tcg") -> list[str]:
    disks = {one.id: tuple(range(30, 31 + len(one.backing))) for one in spec.disks}
    files = OpenFiles(qmp=20, console=21, console_log=22, seed=23 if spec.seed else None, kernel=24, initrd=25,
                      disks=disks, taps={one.id: 40 + index for index, one in enumerate(spec.nics)})  # fmt: skip
    return command(spec, files, accelerator, plan_slots(spec))


def options(arguments: list[str], name: str) -> list[str]:
    return [after for before, after in pairwise(arguments) if before == name]


def parsed(arguments: list[str], name: str) -> list[dict[str, Any]]:
    return [json.loads(one) for one in options(arguments, name) if one.startswith("{")]


def test_no_text_of_a_tenant_and_no_path_is_in_the_arguments() -> None:
    boot = DirectBoot(kernel="/pool/kernel", initrd="/pool/initrd", append="console=ttyS0")
    text = " ".join(argv(machine(disks=3, nics=2, seed="/state/seed.iso", boot=boot)))
    assert "tenant" not in text
    assert "/pool" not in text
    assert "/state" not in text
    assert "tap-" not in text


def test_the_device_list_is_fixed() -> None:
    arguments = argv(machine(disks=2, nics=1, seed="/seed.iso"))
    drivers = [one["driver"] for one in parsed(arguments, "-device")]
    plain = [one.split(",")[0] for one in options(arguments, "-device") if not one.startswith("{")]
    assert sorted(drivers + plain) == [
        "pvpanic", "virtio-balloon-pci", "virtio-blk-pci", "virtio-blk-pci", "virtio-blk-pci", "virtio-net-pci",
        "virtio-rng-pci",
    ]  # fmt: skip
    assert {"-nodefaults", "-no-user-config", "-sandbox"} <= set(arguments)
    assert arguments[arguments.index("-rtc") + 1] == "base=utc,clock=host", "a guest's clock goes on while it is paused"
    assert options(arguments, "-display") == ["none"]
    assert "spawn=deny" in options(arguments, "-sandbox")[0]


@pytest.mark.parametrize(("accelerator", "cpu"), [("tcg", "max"), ("kvm", "host")])
def test_the_processor_follows_the_accelerator(accelerator: str, cpu: str) -> None:
    arguments = argv(machine(), accelerator)
    assert options(arguments, "-accel")[0].startswith(accelerator)
    assert options(arguments, "-cpu") == [cpu]


def test_every_layer_of_a_disk_is_named_with_its_format_and_only_the_top_can_be_written() -> None:
    layers = (BackingFile(path="/pool/snapshot", format="qcow2"), BackingFile(path="/pool/image", format="raw"))
    nodes = disk_nodes(disk("disk0", backing=layers), (3, 4, 5))
    assert [node["driver"] for node in nodes] == ["file", "raw", "file", "qcow2", "file", "qcow2", "throttle"]
    assert [node.get("filename") for node in nodes if node["driver"] == "file"] == [
        "/dev/fdset/5", "/dev/fdset/4", "/dev/fdset/3",
    ]  # fmt: skip
    assert [node["read-only"] for node in nodes] == [True, True, True, True, False, False, False]
    assert [node["locking"] for node in nodes if node["driver"] == "file"] == ["on"] * 3
    qcow2 = [node for node in nodes if node["driver"] == "qcow2"]
    assert [node["backing"] for node in qcow2] == [nodes[1]["node-name"], nodes[3]["node-name"]]
    assert [node["node-name"] for node in reversed(nodes)] == disk_node_names(disk("disk0", backing=layers))


def test_a_disk_without_backing_says_so_instead_of_believing_its_header() -> None:
    (overlay,) = [node for node in disk_nodes(disk("disk0"), (3,)) if node["driver"] == "qcow2"]
    assert overlay["backing"] is None


def test_a_read_only_disk_is_read_only_in_every_node() -> None:
    assert all(node["read-only"] for node in disk_nodes(disk("disk0", read_only=True), (3,)))


def test_each_node_names_only_nodes_before_it() -> None:
    seen: set[str] = set()
    for node in parsed(argv(machine(disks=4, seed="/seed.iso")), "-blockdev"):
        for key in ("file", "backing"):
            assert node.get(key) is None or node[key] in seen
        seen.add(node["node-name"])


def test_limits_are_on_the_command_line_in_qemus_words() -> None:
    spec = replace(machine(), disks=(disk("disk0", throttle=Throttle(iops=100, bytes_per_s=1 << 20)),))
    (group,) = parsed(argv(spec), "-object")
    assert group["limits"] == {"iops-total": 100, "bps-total": 1 << 20}


def test_only_the_root_disk_is_booted_and_the_seed_comes_after_every_disk() -> None:
    plugs = parsed(argv(machine(disks=17, nics=8, seed="/seed.iso")), "-device")
    assert [one["serial"] for one in plugs if "bootindex" in one] == ["disk0"]
    slots = {one["id"]: int(one["addr"], 16) for one in plugs}
    assert slots[disk_device("disk0")] == min(slots.values()) == ROOT_SLOT
    assert slots["seed"] == max(slots.values()) == SEED_SLOT
    order = [slots[disk_device(f"disk{one}")] for one in range(17)]
    assert order == sorted(order)
    assert len(set(slots.values())) == len(slots)


def test_a_nic_keeps_its_slot_whatever_disks_there_are() -> None:
    assert plan_slots(machine(disks=1, nics=1))[nic_device("nic0")] == NIC_SLOTS[0]
    assert plan_slots(machine(disks=5, nics=1))[nic_device("nic0")] == NIC_SLOTS[0]


def test_a_machine_that_has_no_slot_left_says_so() -> None:
    full = plan_slots(machine(disks=1 + len(DISK_SLOTS), nics=len(NIC_SLOTS)))
    for kind in ("disk", "nic"):
        with pytest.raises(DriverError) as refused:
            free_slot(full, kind)
        assert refused.value.reason == "TooManyDevices"


def test_the_serial_number_is_the_end_of_the_volumes_id() -> None:
    assert disk_plug(disk("volume-01HXYZ0123456789ABCDEFGHJK"), 2)["serial"] == "0123456789ABCDEFGHJK"


@given(IDS, IDS)
def test_names_are_short_enough_for_qemu_and_differ_when_ids_differ(one: str, other: str) -> None:
    for name in (*disk_node_names(disk(one)), disk_device(one), nic_device(one)):
        assert re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name)
    assert (disk_device(one) == disk_device(other)) == (one == other)


@given(st.text(max_size=20))
def test_an_id_is_accepted_only_when_it_is_harmless(text: str) -> None:
    spec = replace(machine(), id=text)
    harmless = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text) is not None
    if harmless:
        check(spec)
    else:
        with pytest.raises(DriverError, match="is not an id"):
            check(spec)


@pytest.mark.parametrize(
    "wrong",
    [
        {"vcpus": 0},
        {"memory_mib": 0},
        {"disks": (disk("same"), disk("same"))},
        {"nics": (NicAttachment(id="nic", mac="52:54:00:00:00:01,romfile=x", tap="t"),)},
        {"disks": (disk("a,b"),)},
    ],
)
def test_a_specification_that_cannot_be_started_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DriverError) as refused:
        check(replace(machine(), **wrong))
    assert refused.value.reason == "BadSpec"


@pytest.mark.parametrize(("channel", "name"), [("serial", "pileus.0"), ("qga", "org.qemu.guest_agent.0"), ("", "")])
def test_a_channel_is_a_port_that_the_guest_finds_by_name(channel: Any, name: str) -> None:
    spec = machine(channel=channel)
    files = OpenFiles(qmp=1, console=2, console_log=3, channel=4, disks={"disk0": (5,)})
    ports = [word for word in command(spec, files, "tcg", plan_slots(spec)) if word.startswith("virtserialport")]
    assert [port.rpartition("name=")[2] for port in ports] == ([name] if name else [])


def test_uefi_is_two_flash_devices_of_which_the_machine_writes_its_own() -> None:
    files = OpenFiles(qmp=1, console=2, console_log=3, firmware=(6, 7), disks={"disk0": (5,)})
    arguments = command(machine(firmware="uefi"), files, "tcg", plan_slots(machine()))
    assert options(arguments, "-machine")[0].endswith(",pflash0=firmware-0,pflash1=firmware-1")
    nodes = {one["node-name"]: one for one in parsed(arguments, "-blockdev")}
    assert [nodes[f"firmware-{number}"]["read-only"] for number in (0, 1)] == [True, False]
    sets = [one.split(",")[1] for one in options(arguments, "-add-fd")]
    assert len(set(sets)) == len(sets)
    assert "pflash" not in options(argv(machine()), "-machine")[0]
