"""The host half of a VM: QEMU follows the wish; what must be remembered is kept beside the machine."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from pileus.compute.vm.plan import (
    DISK_RETRY_S,
    STABLE_S,
    Fact,
    Step,
    Wish,
    forbidden,
    plan,
    power_of,
    stays_off,
)
from pileus.compute.vm.types import VmAssigned, VmDesired, VmExit, VmObserved, channel_of, is_of_cloud
from pileus.drivers.host.disk.base import DiskPool, ImageFile, VolumeFact
from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import Guest, Seed, SeedNic
from pileus.drivers.host.notes import Notes
from pileus.drivers.host.ovs.base import Switch
from pileus.drivers.host.qemu.base import (
    BackingFile,
    DirectBoot,
    DiskAttachment,
    Hypervisor,
    MachineFact,
    MachineSpec,
    NicAttachment,
    Throttle,
)
from pileus.drivers.host.snapshot import Snapshot
from pileus.kernel.clock import iso
from pileus.kernel.fields import Problem
from pileus.kernel.half import Half, Peers
from pileus.kernel.kind import Resource
from pileus.network.port.types import PortAssigned
from pileus.storage.volume.plan import limits_of


class Note(Struct, frozen=True, kw_only=True):
    """What must survive the agent: the last boot asked for, ends in a row, and when the guest was asked to power off."""

    boot_serial: int = 0
    failures: int = 0
    counted_exit_at: float = 0.0
    shutdown_asked_at: float | None = None
    shutdown_pressed_at: float | None = None
    started_at: float = 0.0
    ended_at: float = 0.0  # of a process that came up: the machine's exit may be of a later start that failed
    stopped_as_wished: bool = False
    """The machine was seen stopped while it should be; whoever then wishes it running means a new start."""


class Seen(Struct, frozen=True):
    """A machine as found, and what is noted about it."""

    machine: MachineFact | None
    note: Note
    noted: bool = False
    addresses: tuple[str, ...] = ()
    slack: tuple[str, ...] = ()
    """Disks whose limits are other than wished."""
    disk_tried_at: float = 0.0
    """When it was resumed last after a write to its disk failed; 0: its disk is well."""
    isolated: Literal["no", "yes"] = "no"


class VmHalf(Half[Seen, Step]):
    """Drives one hypervisor for all VMs of the host."""

    kind = "compute.vm"

    def __init__(self, hypervisor: Hypervisor, guest: Guest, disks: DiskPool, switch: Switch, notes: Notes) -> None:
        self._hypervisor = hypervisor
        self._guest = guest
        self._disks = disks
        self._switch = switch
        self._notes = notes
        self._machines = Snapshot(hypervisor.observe)
        # Not among the notes: the disk that they would be written to may be the full one.
        self._disk_tried: dict[str, float] = {}
        self._removed: dict[str, VmObserved] = {}
        """What machines were that are gone: until their VMs have been reported so."""
        # A hint may come within the age of the last look: that look is of before.
        hypervisor.on_change(lambda machine: self._machines.changed())

    async def observe(self, resource: Resource, peers: Peers) -> Seen:
        """Find the machine, and count an end that nobody asked for once."""
        machine = (await self._machines.get()).get(resource.id)
        note = self._note(resource.id)
        counted = _note_stop(resource, machine, _count_exit(machine, note), peers.now())
        tried_at = self._disk_tried_at(resource.id, machine, peers.now())
        if counted != note:
            self._save(resource.id, counted)
        noted = self._notes.get(resource.id) is not None
        addresses, isolated = _addresses(resource, peers), _isolated(resource, peers)
        return Seen(machine, counted, noted, addresses, _slack(machine, peers), tried_at, isolated)

    def plan(self, resource: Resource, fact: Seen, peers: Peers) -> Step | None:
        """Return the next step of the VM."""
        return plan(_wish(resource, _missing(resource, peers)), _fact(fact), peers.now())

    async def do(self, step: Step, resource: Resource, peers: Peers) -> None:
        """Do one step with the hypervisor."""
        note = self._note(resource.id)
        try:
            match step.verb:
                case "start":
                    self._save(resource.id, note)  # first of all: whatever a start leaves behind is found by its note
                    await self._start(resource, peers)
                    started = replace(note, shutdown_asked_at=None, started_at=peers.now(), stopped_as_wished=False)
                    self._save(resource.id, replace(started, boot_serial=_serial(resource)))
                case "reset":
                    await self._hypervisor.reset(resource.id)
                    self._save(resource.id, replace(note, boot_serial=_serial(resource)))
                case "shutdown":
                    asked = note.shutdown_asked_at or peers.now()
                    pressed = replace(note, shutdown_asked_at=asked, shutdown_pressed_at=peers.now())
                    self._save(resource.id, pressed)
                    await self._hypervisor.shutdown(resource.id)
                case "power_off":
                    await self._hypervisor.power_off(resource.id)
                case "pause":
                    await self._hypervisor.pause(resource.id)
                case "resume":
                    await self._resume(resource, peers)
                case "remove":
                    await self._end(resource.id, peers)
                case _:
                    await self._plug(step, resource, peers)
        finally:
            self._machines.changed()

    async def _resume(self, resource: Resource, peers: Peers) -> None:
        machine = (await self._machines.get()).get(resource.id)
        if machine is not None and machine.paused_by == "disk-error":
            self._disk_tried[resource.id] = peers.now()
        await self._hypervisor.resume(resource.id)

    def _disk_tried_at(self, id: str, machine: MachineFact | None, now: float) -> float:
        """Return when the machine was resumed last after a failed write; 0 once it ran on for long enough."""
        tried_at = self._disk_tried.get(id, 0.0)
        is_paused = machine is not None and machine.state == "paused"
        is_running = machine is not None and machine.state == "running"
        if is_paused or (is_running and now - tried_at < DISK_RETRY_S):
            return tried_at
        self._disk_tried.pop(id, None)
        return 0.0

    async def _plug(self, step: Step, resource: Resource, peers: Peers) -> None:
        match step.verb:
            case "attach_volume":
                await self._hypervisor.attach_disk(resource.id, await self._disk(step.target, resource, peers))
            case "detach_volume":
                await self._hypervisor.detach_disk(resource.id, step.target)
            case "attach_port":
                await self._hypervisor.attach_nic(resource.id, await self._nic(step.target, peers))
            case "throttle":
                await self._hypervisor.set_throttle(resource.id, step.target, _throttle(peers.peer(step.target)))
            case "detach_port":
                await self._hypervisor.detach_nic(resource.id, step.target)

    async def _start(self, resource: Resource, peers: Peers) -> None:
        assigned: VmAssigned = resource.assigned
        disks = tuple([await self._disk(id, resource, peers) for id in assigned.volumes])
        nics = tuple([await self._nic(id, peers) for id in assigned.ports])
        seed = await self._guest.write_seed(resource.id, _seed(resource, peers))
        await self._hypervisor.start(
            MachineSpec(
                id=resource.id,
                name=resource.name,
                vcpus=assigned.vcpus,
                memory_mib=assigned.memory_mib,
                disks=disks,
                nics=nics,
                boot=await self._boot(assigned),
                firmware=assigned.firmware,
                seed=seed,
                channel=_port_form(resource),
            )
        )

    async def _boot(self, assigned: VmAssigned) -> DirectBoot | None:
        if not assigned.append:
            return None
        image = (await self._disks.images()).get(assigned.image)
        if image is None or image.kernel is None or image.initrd is None:
            return None
        return DirectBoot(kernel=image.kernel, initrd=image.initrd, append=assigned.append)

    async def _disk(self, id: str, resource: Resource, peers: Peers) -> DiskAttachment:
        fact: VolumeFact | None = (await self._disks.volumes()).get(id)
        if fact is None:
            raise DriverError("VolumeMissing", "a volume of the VM is not on its host yet")
        backing: ImageFile | None = (await self._disks.images()).get(fact.image) if fact.image else None
        if fact.image and backing is None:
            raise DriverError("ImageMissing", "the image below a volume is not on the host")
        return DiskAttachment(
            id=id,
            path=fact.path,
            format=fact.format,
            throttle=_throttle(peers.peer(id)),
            backing=(BackingFile(path=backing.path, format=backing.format),) if backing else (),
        )

    async def _nic(self, id: str, peers: Peers) -> NicAttachment:
        fact = (await self._switch.observe()).get(id)
        if fact is None:
            raise DriverError("PortMissing", "a port of the VM is not plugged yet")
        return NicAttachment(id=id, mac=fact.mac, tap=fact.tap)

    def report(self, resource: Resource, fact: Seen | None, problem: Problem | None) -> Struct:
        """Return the VM's observed section."""
        machine = fact.machine if fact is not None else None
        previous: VmObserved | None = resource.observed
        told = (*resource.assigned.volumes, *resource.assigned.ports)
        if fact is None:
            return replace(previous or VmObserved(power="unknown"), rests="no", problem=problem)
        rests: Literal["no", "yes"] = "yes" if stays_off(_wish(resource), _fact(fact)) else "no"
        if machine is None:
            absent = resource.deleting or resource.desired.power != "stopped"
            power: Literal["absent", "stopped"] = "absent" if absent else "stopped"
            failures = fact.note.failures
            was = replace(self._was(resource.id, previous), problem=problem)
            return replace(was, power=power, failures=failures, told=told, isolated=fact.isolated, rests=rests)
        live = machine.state in ("running", "paused")
        return VmObserved(
            power=machine.state,
            vcpus=machine.vcpus,
            memory_mib=machine.memory_mib,
            boots=machine.boots,
            boot_serial=fact.note.boot_serial,
            failures=fact.note.failures,
            started_at=iso(machine.started_at) if machine.started_at else "",
            former_exit_at=_ended_at(machine, fact.note),
            addresses=fact.addresses,
            exit=_exit(machine, fact.note),
            volumes=machine.disks if live else (),
            ports=machine.nics if live else (),
            told=told,
            isolated=fact.isolated,
            rests=rests,
            problem=problem or _hung_problem(machine) or _disk_problem(machine, fact.disk_tried_at),
        )

    async def inventory(self) -> Collection[str]:
        """Return every machine on the host, and all that a note was made of."""
        return {*(await self._hypervisor.observe()), *self._notes.ids()}

    async def remove(self, id: str) -> None:
        """Remove the machine, its seed, log and note."""
        await self._hypervisor.remove(id)
        await self._forget(id)

    async def _end(self, id: str, peers: Peers) -> None:
        machine, note = (await self._machines.get()).get(id), self._note(id)
        await self._hypervisor.remove(id)
        if machine is not None:
            self._removed[id] = _removed(machine, note, peers.now())
        await self._forget(id)

    async def _forget(self, id: str) -> None:
        await self._guest.remove(id)
        self._notes.remove(id)

    def _was(self, id: str, previous: VmObserved | None) -> VmObserved:
        """Return what is still told of a machine that is gone: how large it was, and how it ended."""
        was = previous if previous is not None and previous.power == "absent" else VmObserved(power="absent")
        return self._removed.pop(id, was)

    async def counters(self) -> dict[str, dict[str, Any]]:
        """Return CPU, memory and disk counters of every running VM."""
        return {id: asdict(counters) for id, counters in (await self._hypervisor.counters()).items()}

    def _note(self, id: str) -> Note:
        text = self._notes.get(id)
        return msgspec.json.decode(text, type=Note) if text else Note()

    def _save(self, id: str, note: Note) -> None:
        self._notes.put(id, msgspec.json.encode(note))


def _port_form(resource: Resource) -> Literal["", "serial", "qga"]:
    """Return what the VM's virtio-serial port is for; a channel through its NIC needs none."""
    match channel_of(resource):
        case "serial":
            return "serial"
        case "qga":
            return "qga"
        case _:
            return ""


def _addresses(resource: Resource, peers: Peers) -> tuple[str, ...]:
    ports = [peers.peer(id) for id in resource.assigned.ports]
    found = (port.assigned.address for port in ports if port is not None and port.assigned is not None)
    return tuple(address for address in found if address)


def _isolated(resource: Resource, peers: Peers) -> Literal["no", "yes"]:
    """Tell what holds of all NICs when all shall be isolated, and of any when none shall."""
    desired: VmDesired = resource.desired
    ports = [port.observed if port is not None else None for port in map(peers.peer, resource.assigned.ports)]
    isolated = [port is not None and port.isolated == "yes" for port in ports]
    return "yes" if (all(isolated) if desired.isolated == "yes" else any(isolated)) else "no"


def _serial(resource: Resource) -> int:
    desired: VmDesired = resource.desired
    return desired.boot_serial


def _wish(resource: Resource, missing: str = "") -> Wish:
    desired: VmDesired = resource.desired
    assigned: VmAssigned = resource.assigned
    return Wish(
        deleting=resource.deleting,
        power=desired.power,
        boot_serial=desired.boot_serial,
        restart=desired.restart,
        shutdown_timeout_s=desired.shutdown_timeout_s,
        volumes=assigned.volumes,
        ports=assigned.ports,
        missing=missing,
        forbids=forbidden(resource),
    )


def _fact(seen: Seen) -> Fact:
    machine, note = seen.machine, seen.note
    if machine is None:
        return Fact(state="absent", boot_serial=note.boot_serial, failures=note.failures, noted=seen.noted)
    live = machine.state in ("running", "paused")
    return Fact(
        state=machine.state,
        volumes=machine.disks if live else (),
        ports=machine.nics if live else (),
        exit_reason=_exit_reason(machine, note),
        paused_by=machine.paused_by,
        process=machine.process,
        disk_tried_at=seen.disk_tried_at,
        slack=seen.slack,
        exit_at=machine.exit.at if machine.exit else 0.0,
        boot_serial=note.boot_serial,
        failures=note.failures,
        shutdown_asked_at=note.shutdown_asked_at,
        shutdown_pressed_at=note.shutdown_pressed_at,
    )


def _count_exit(machine: MachineFact | None, note: Note) -> Note:
    """Return the note with the machine's end counted; one that ran long enough starts the count anew."""
    if machine is None or machine.state != "stopped" or machine.exit is None or machine.exit.at <= note.counted_exit_at:
        return note
    if machine.exit.reason != "failed" or note.started_at > note.ended_at:
        note = replace(note, ended_at=machine.exit.at)
    if machine.exit.reason in ("powered-off", "guest-shutdown"):
        asked = note.stopped_as_wished or note.shutdown_asked_at is not None
        counted = replace(note, failures=0, counted_exit_at=machine.exit.at)
        return replace(counted, shutdown_asked_at=None, stopped_as_wished=asked)
    ran_s = machine.exit.at - (note.started_at or machine.exit.at)
    failures = 1 if ran_s >= STABLE_S else note.failures + 1
    return replace(note, failures=failures, counted_exit_at=machine.exit.at, shutdown_asked_at=None)


def _note_stop(resource: Resource, machine: MachineFact | None, note: Note, now: float) -> Note:
    """Return the note, which remembers that a wish to stop was fulfilled, however the machine came to its end.

    A guest that was asked to power off, and need not any more, is forgiven when it did not in time.
    """
    desired: VmDesired = resource.desired
    if machine is None or (machine.state == "stopped") != (power_of(resource) == "stopped"):
        return note
    if machine.state == "stopped":
        return replace(note, stopped_as_wished=True)
    asked = note.shutdown_asked_at
    late = asked is not None and now - asked > desired.shutdown_timeout_s
    return replace(note, shutdown_asked_at=None) if late else note


def _hung_problem(machine: MachineFact) -> Problem | None:
    if machine.process == "answers":
        return None
    message = "its process on the host is there and does not answer; `pileus reboot vm` ends it and starts it anew"
    return Problem(reason="Hung", message=message)


def _disk_problem(machine: MachineFact, tried_at: float) -> Problem | None:
    if not machine.paused_by and not tried_at:
        return None
    message = "a write to its disk failed on the host, which may be full; it is tried again every few seconds"
    return Problem(reason="DiskError", message=message)


def _exit_reason(machine: MachineFact, note: Note) -> str:
    """Return why the machine ended, for the plan; a guest that shut down on our wish did not do so by itself."""
    if machine.exit is None:
        return ""
    return "powered-off" if note.stopped_as_wished else machine.exit.reason


def _missing(resource: Resource, peers: Peers) -> str:
    """Return what a start still waits for, or an empty text."""
    assigned: VmAssigned = resource.assigned
    if assigned.hold:
        return assigned.hold
    if not assigned.volumes or len(assigned.ports) != len(resource.desired.nics):
        return "parts"
    for id in (*assigned.volumes, *assigned.ports):
        peer = peers.peer(id)
        ready = peer.ready if peer is not None else None
        if ready is None or ready.status != "true":
            return id
    return ""


def _seed(resource: Resource, peers: Peers) -> Seed:
    desired: VmDesired = resource.desired
    nics: list[SeedNic] = []
    # One of the cloud's own is told its addresses by its document.
    for id in () if is_of_cloud(resource) else resource.assigned.ports:
        port = peers.peer(id)
        if port is None:
            continue
        decided: PortAssigned = port.assigned
        is_ours = desired.appliance is not None and desired.appliance.channel != "qga"
        if decided.served == "yes" and not decided.extra_addresses and not is_ours:
            nics.append(SeedNic(mac=decided.mac, addresses=()))  # its router tells it everything, by DHCP
            continue
        addresses = tuple(f"{each}/{decided.prefix_length}" for each in (decided.address, *decided.extra_addresses))
        gateway = decided.gateway if not nics else None  # one default route, by the first NIC
        nics.append(SeedNic(mac=decided.mac, addresses=addresses, gateway=gateway, dns=decided.dns))
    return Seed(
        instance_id=resource.id,
        hostname=resource.name,
        ssh_keys=desired.ssh_keys,
        user_data=desired.user_data,
        ovf_environment=desired.ovf_environment,
        nics=tuple(nics),
        channel=_node_form(resource),
        role=desired.appliance.role if desired.appliance is not None else "",
    )


def _node_form(resource: Resource) -> Literal["", "serial", "nic"]:
    """Return the form in which a node of ours in the VM is reached; a foreign guest has no key for it."""
    match channel_of(resource):
        case "serial":
            return "serial"
        case "nic":
            return "nic"
        case _:
            return ""


def _throttle(volume: Resource | None) -> Throttle:
    if volume is None:
        return Throttle()
    limits = limits_of(volume)
    return Throttle(iops=limits.iops_limit, bytes_per_s=limits.throughput_limit_kib_s * 1024)


def _slack(machine: MachineFact | None, peers: Peers) -> tuple[str, ...]:
    """Return the disks of a machine whose limits are not those of their volumes."""
    if machine is None:
        return ()
    pairs = zip(machine.disks, machine.throttles, strict=False)
    return tuple(
        disk for disk, throttle in pairs if (volume := peers.peer(disk)) is not None and throttle != _throttle(volume)
    )


def _exit(machine: MachineFact, note: Note) -> VmExit | None:
    if machine.exit is None or machine.state != "stopped":
        return None
    end = VmExit(reason=machine.exit.reason, at=iso(machine.exit.at), message=machine.exit.message)
    return replace(end, started_at=iso(note.started_at)) if 0 < note.started_at < machine.exit.at else end


def _ended_at(machine: MachineFact, note: Note) -> str:
    """Return when the last process ended that had come up; empty: there was none."""
    if machine.exit is None:
        return ""
    return iso(note.ended_at if machine.exit.reason == "failed" and note.ended_at else machine.exit.at)


def _removed(machine: MachineFact, note: Note, now: float) -> VmObserved:
    """Return what is told of a machine that was removed now."""
    was = VmObserved(power="absent", vcpus=machine.vcpus, memory_mib=machine.memory_mib)
    if machine.started_at and machine.state != "stopped":
        return replace(was, exit=VmExit(reason="powered-off", at=iso(now), started_at=iso(machine.started_at)))
    return replace(was, exit=_exit(machine, note), former_exit_at=_ended_at(machine, note))
