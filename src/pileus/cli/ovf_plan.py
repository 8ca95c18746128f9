"""What an OVF package becomes in a cloud: its images, volumes and VMs, decided before anything is read or made. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from pileus.ovf.environment import Platform, environment_of, environment_xml
from pileus.ovf.faults import Faults, shown
from pileus.ovf.limits import GIB
from pileus.ovf.machines import Choice, chosen_configuration, machines
from pileus.ovf.model import Envelope, Firmware, Machine, MachineDisk, MachineNic, Startup
from pileus.ovf.properties import settings

NAME_CHARACTERS_MAX = 63
"""Of a resource's name; a prefix leaves room for what comes after it."""
PREFIX_CHARACTERS_MAX = 40

ANY = ""
"""The network of those that are not named by themselves."""

_ODD = re.compile(r"[^a-z0-9]+")


class Terms(Struct, frozen=True, kw_only=True):
    """What the one who imports says."""

    prefix: str = ""
    choice: Choice = Choice()
    networks: Mapping[str, str] = {}
    """Network of the cloud by that of the package; ``ANY``: of all others."""


class PlannedImage(Struct, frozen=True, kw_only=True):
    """What a disk with content becomes."""

    name: str
    firmware: Firmware = "bios"
    """By what the VMs start that have it as their first disk."""


class PlannedVolume(Struct, frozen=True, kw_only=True):
    """A further disk; a blank one has no image."""

    name: str
    size_gib: int
    image: str = ""


class PlannedVm(Struct, frozen=True, kw_only=True):
    """A VM; ``desired`` names its image and volumes."""

    name: str
    desired: dict[str, Any]
    startup: Startup


class Plan(Struct, frozen=True, kw_only=True):
    """All that is made of a package. ``images``: by the descriptor's disk."""

    images: dict[str, PlannedImage]
    volumes: tuple[PlannedVolume, ...]
    vms: tuple[PlannedVm, ...]


def plan(envelope: Envelope, terms: Terms, faults: Faults) -> Plan:
    """Return what the package becomes; what it cannot become is in ``faults``. Raises: OvfFault for an unknown option."""
    made = machines(envelope, faults, choice=terms.choice)
    for machine in made:
        _check(machine, faults)
    firmware = _firmware(made, faults)
    networks = _networks(made, terms.networks, faults)
    names = _Names()
    prefix = slug(terms.prefix or (made[0].name if len(made) == 1 else envelope.content.name or envelope.content.id))
    prefix = prefix[:PREFIX_CHARACTERS_MAX].rstrip("-")
    environments = _environments(envelope, terms, faults)
    images: dict[str, PlannedImage] = {}
    volumes: list[PlannedVolume] = []
    vms: list[PlannedVm] = []
    for machine in made:
        name = names.new(prefix if len(made) == 1 else f"{prefix}-{slug(machine.name)}")
        disks = [disk for disk in machine.disks if disk.kind == "disk"]
        for disk in disks:
            if disk.file_id and disk.disk_id not in images:
                images[disk.disk_id] = PlannedImage(
                    name=names.new(f"{prefix}-{slug(disk.disk_id)}"), firmware=firmware.get(disk.disk_id, "bios")
                )
        further = [
            PlannedVolume(
                name=names.new(f"{name}-disk{number}"),
                size_gib=_gib(disk),
                image=images[disk.disk_id].name if disk.file_id else "",
            )
            for number, disk in enumerate(disks[1:], 2)
        ]
        volumes += further
        desired = _desired(machine, disks, networks, environments.get(machine.id, ""))
        if disks:
            first = images.get(disks[0].disk_id)
            desired |= {"image": first.name if first else "", "volumes": [{"volume": one.name} for one in further]}
        vms.append(PlannedVm(name=name, desired=desired, startup=machine.startup))
    return Plan(images=images, volumes=tuple(volumes), vms=tuple(vms))


def slug(text: str) -> str:
    """Return the text as the name of a resource."""
    bare = _ODD.sub("-", text.lower()).strip("-")
    return (bare if bare[:1].isalpha() else f"vm-{bare}")[:NAME_CHARACTERS_MAX].strip("-") or "vm"


class _Names:
    """Names of which none is given twice."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def new(self, wanted: str) -> str:
        """Return the wanted name, or one like it."""
        name, number = wanted[:NAME_CHARACTERS_MAX].rstrip("-"), 1
        while name in self._given:
            number += 1
            ending = f"-{number}"
            name = wanted[: NAME_CHARACTERS_MAX - len(ending)].rstrip("-") + ending
        self._given.add(name)
        return name


def _gib(disk: MachineDisk) -> int:
    return max(1, -(-disk.capacity_bytes // GIB))


def _desired(
    machine: Machine, disks: Sequence[MachineDisk], networks: Mapping[str, str], environment: str
) -> dict[str, Any]:
    nics = [{"network": networks[nic.network]} for nic in _connected(machine) if nic.network in networks]
    said = {
        "vcpus": machine.vcpus, "memory_mib": machine.memory_mib, "disk_gib": _gib(disks[0]) if disks else 0,
        "nics": nics, "power": "stopped",
    }  # fmt: skip
    return said | ({"ovf_environment": environment} if environment else {})


def _connected(machine: Machine) -> list[MachineNic]:
    return [nic for nic in machine.nics if nic.connected]


def _check(machine: Machine, faults: Faults) -> None:
    """Say what a VM of the package needs and cannot have here."""
    named = shown(machine.name)
    if machine.secure_boot:
        faults.warn("secure-boot", f"VM {named} has secure boot, which is off here", line=machine.hardware_line)
    disks = [disk for disk in machine.disks if disk.kind == "disk"]
    if not disks or not disks[0].file_id:
        what = "its first disk is blank" if disks else "it has no disk"
        faults.error("nothing-to-start", f"VM {named} has nothing to start from: {what}", line=machine.hardware_line)
    for disk in machine.disks:
        if disk.shared:
            faults.error("shared-disk", f"disk {shown(disk.disk_id)} of VM {named} is shared; a volume has one VM here",
                         line=disk.line)  # fmt: skip
        if disk.kind != "disk" and disk.file_id:
            faults.error(
                "medium", f"the {disk.kind} drive of VM {named} has a medium, and VMs have no such drive here; take it out",
                line=disk.line,
            )  # fmt: skip


def _firmware(made: Sequence[Machine], faults: Faults) -> dict[str, Firmware]:
    """Return by what each disk starts that is the first of a VM."""
    found: dict[str, Firmware] = {}
    for machine in made:
        for disk in [disk for disk in machine.disks if disk.kind == "disk"][:1]:
            if found.setdefault(disk.disk_id, machine.firmware) != machine.firmware:
                faults.error(
                    "firmware", f"disk {shown(disk.disk_id)} starts one VM by BIOS and another one by UEFI; give each its own",
                    line=machine.hardware_line,
                )  # fmt: skip
    return found


def _networks(made: Sequence[Machine], given: Mapping[str, str], faults: Faults) -> dict[str, str]:
    """Return the cloud's network for each of the package that a NIC is on."""
    found: dict[str, str] = {}
    missing: dict[str, int] = {}
    for machine in made:
        for nic in _connected(machine):
            network = given.get(nic.network) or given.get(ANY, "")
            if network:
                found[nic.network] = network
            else:
                missing.setdefault(nic.network, nic.line)
    for name, line in missing.items():
        said = f"--network {_quoted(name)}=NETWORK" if name else "--network NETWORK"
        faults.error("network-not-said", f"which network is {shown(name)}? Say {said}", line=line)
    known = {nic.network for machine in made for nic in machine.nics}
    for name in given:
        if name not in known and name != ANY:
            there = ", ".join(shown(one) for one in sorted(known)) or "none"
            faults.error("no-network", f"no NIC is on a network {shown(name)}; there are {there}")
    return found


def _quoted(name: str) -> str:
    return f"'{name}'" if " " in name else name


def _environments(envelope: Envelope, terms: Terms, faults: Faults) -> dict[str, str]:
    """Return what each VM is told, by its id in the descriptor; a VM without properties is told nothing."""
    option = chosen_configuration(envelope, terms.choice.configuration, faults)
    found = settings(envelope, terms.choice.properties, faults, configuration=option)
    if not found:
        return {}
    told: dict[str, str] = {}
    for system in envelope.systems():
        environment = environment_of(envelope, found, system.id, Platform())
        if environment.properties or any(environment.siblings.values()):
            try:
                told[system.id] = environment_xml(environment).decode()
            except ValueError as error:
                faults.error("bad-property", str(error), line=system.line)
    return told
