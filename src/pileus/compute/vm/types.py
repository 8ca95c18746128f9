"""A VM: what a tenant asks for, what was decided, what its host has."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import ImageRef, NetworkRef, OfferingRef, Problem, VdcRef, VolumeRef
from pileus.kernel.kind import Column, Kind, Resource
from pileus.kernel.usage import Use
from pileus.network.port.types import Attachment, PortStation
from pileus.storage.image.types import Firmware

APPLIANCES = Meta(description="For the cloud's own appliances only.", extra={"internal": True})
Power = Literal["running", "stopped", "paused"]


class VmNic(Struct, frozen=True, kw_only=True):
    """A NIC of the VM."""

    network: Annotated[NetworkRef, Meta(description="Network it is on.")] = "default"
    address: Annotated[str, Meta(description="IPv4 address in the network's range; empty: the next free one.")] = ""
    extra_addresses: Annotated[
        tuple[str, ...], Meta(max_length=15, description="Further addresses that the guest may use on this NIC.")
    ] = ()
    attachment: Annotated[Attachment, APPLIANCES] = "network"
    addresses: Annotated[tuple[str, ...], APPLIANCES] = ()
    """Every address that an appliance may use on the NIC."""
    stations: Annotated[tuple[PortStation, ...], APPLIANCES] = ()
    """Machines of other sites that speak through an appliance's NIC."""


ChannelForm = Literal["serial", "nic", "qga"]


ASKED_ROLES = ("monitor",)
"""Roles of the cloud's appliances that are on the quota of an account that asked for them."""


class VmAppliance(Struct, frozen=True, kw_only=True):
    """What makes a VM an appliance: how it is reached, what it shall be, and where it may run.

    One of the cloud's own (a router) has no limits, goes to routing hosts, waits for no network and is told its
    addresses by its document; an account's is in all this like every VM of the account.
    """

    channel: ChannelForm
    role: str
    apart_from: str = ""
    """Another VM whose host it avoids when it can."""
    part_of: Literal["cloud", "account"] = "cloud"


class VmVolume(Struct, frozen=True, kw_only=True):
    """A further disk of the VM."""

    volume: Annotated[VolumeRef, Meta(description="A volume of the account that no other VM has.")]


class Sized(Struct, frozen=True, kw_only=True):
    """What a machine starts from, and how large it is."""

    image: Annotated[ImageRef, Meta(description="Image that the root volume starts from.")] = "tiny"
    offering: Annotated[OfferingRef, Meta(description="Named size; left out with vcpus and memory_mib.")] = ""
    vcpus: Annotated[int, Meta(ge=0, le=256, description="Virtual CPUs, instead of an offering.")] = 0
    memory_mib: Annotated[int, Meta(ge=0, le=4_194_304, description="Memory in MiB, instead of an offering.")] = 0
    function: Annotated[
        str, Meta(max_length=40, description="What it shall do, such as web-server, instead of an offering.")
    ] = ""
    load: Annotated[
        int, Meta(ge=0, le=1_000_000, description="How much of that, in the function's unit; 0: its usual load.")
    ] = 0
    disk_gib: Annotated[
        int,
        Meta(ge=0, le=65_536, description="Root volume in GiB; 0: what offering or function say, else the image."),
    ] = 0
    iops_limit: Annotated[
        int, Meta(ge=0, le=10_000_000, description="Operations per second of the root disk; 0: as the offering says.")
    ] = 0
    throughput_limit_kib_s: Annotated[
        int,
        Meta(ge=0, le=1_000_000_000, description="Throughput of the root disk in KiB/s; 0: as the offering says."),
    ] = 0
    rate_limit_kbps: Annotated[
        int,
        Meta(ge=0, le=1_000_000_000, description="Rate of each NIC in kilobits per second; 0: as the offering says."),
    ] = 0


class VmDesired(Sized, frozen=True, kw_only=True):
    """The wish. Size: an offering, ``vcpus`` with ``memory_mib``, or a function with its load; nothing: offering tiny."""

    nics: Annotated[tuple[VmNic, ...], Meta(max_length=8, description="NICs, in the order the guest sees them.")] = (
        VmNic(),
    )
    volumes: Annotated[tuple[VmVolume, ...], Meta(max_length=16, description="Further disks.")] = ()
    power: Annotated[Power, Meta(description="What the VM shall be.")] = "running"
    boot_serial: Annotated[
        int,
        Meta(ge=0, description="Raising it boots the VM once more, also after the guest powered off."),
    ] = 0
    restart: Annotated[
        Literal["always", "on-failure", "never"],
        Meta(description="When the VM ends by itself; on-failure: a guest that powered itself off stays off."),
    ] = "on-failure"
    isolated: Annotated[
        Literal["no", "yes"],
        Meta(description="yes: nothing passes its NICs in either direction; consoles and the backchannel go on."),
    ] = "no"
    shutdown_timeout_s: Annotated[
        int, Meta(ge=0, le=3600, description="How long a guest may take to power off before it is ended, in seconds.")
    ] = 30
    user_data: Annotated[
        str,
        Meta(max_length=65_536, description="Script or cloud-config for the first start.", extra={"file": True}),
    ] = ""
    ovf_environment: Annotated[
        str,
        Meta(
            max_length=262_144,
            description="OVF environment: properties that the guest finds as ovf-env.xml on its seed CD.",
            extra={"file": True},
        ),
    ] = ""
    ssh_keys: Annotated[
        tuple[str, ...], Meta(max_length=32, description="Public keys that may log in.", extra={"flag": "ssh-key"})
    ] = ()
    appliance: Annotated[VmAppliance | None, APPLIANCES] = None
    vdc: Annotated[VdcRef, Meta(description="The account's vdc; left out: the only one.")] = ""


class VmBar(Struct, frozen=True, kw_only=True):
    """Why a VM may not run though that is wished. Who put it there takes it away; its host honours it."""

    reason: str
    message: str
    forbids: Literal["start", "run"] = "start"
    """``start``: one that runs goes on. ``run``: it is shut down, too, and starts again when the bar is lifted."""


class VmAssigned(Struct, frozen=True, kw_only=True):
    """The decisions. ``volumes[0]`` is the root volume; volumes and ports in the order of the guest's devices."""

    zone: str
    vdc: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    host: str = ""
    volumes: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    image: str = ""
    append: str = ""
    """Kernel arguments when the image is booted directly; empty: from its disk."""
    firmware: Firmware = "bios"
    """The image's, by which it starts from its disk."""
    iops_limit: int = 0
    throughput_limit_kib_s: int = 0
    rate_limit_kbps: int = 0
    channel: ChannelForm | Literal[""] = ""
    """Of a tenant's VM that became a manager's node: how it is reached, from its next start on."""
    hold: str = ""
    """Why the VM may not start yet: what its networks still wait for; a running one goes on."""
    bar: VmBar | None = None
    """What forbids the VM to start, or to run, whatever its power is wished to be."""
    cleared_generation: int = -1
    """Where a start needs leave: the newest wish that was looked at for that; the host starts no newer one. -1: none."""
    isolated_by: str = ""
    """Who isolated the VM: the kind of caller and its name, such as ``user ann``; empty: nobody."""


class VmExit(Struct, frozen=True, kw_only=True):
    """How the VM last ended; ``at`` is RFC 3339. ``started_at``: since when it had been on, as its host noted; or empty."""

    reason: str
    at: str
    message: str = ""
    started_at: str = ""


class VmObserved(Struct, frozen=True, kw_only=True):
    """What the host has. ``boots`` counts starts and resets; ``failures`` the ends in a row that nobody asked for."""

    power: Literal["running", "stopped", "paused", "absent", "unknown"]
    """``unknown``: its host could not look since its agent started, and then nothing else here says anything."""
    vcpus: int = 0
    memory_mib: int = 0
    boots: int = 0
    boot_serial: int = 0
    failures: int = 0
    started_at: str = ""
    former_exit_at: str = ""
    """When the last process ended that came up before that, or before a start that failed; empty: there was none."""
    addresses: tuple[str, ...] = ()
    exit: VmExit | None = None
    volumes: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    """Volumes and ports that the host was told to plug in when it looked: what left this list comes back no more."""
    isolated: Literal["no", "yes"] = "no"
    """``yes``: the switch lets nothing pass any of its NICs. While one is to be isolated, all of them; before, any."""
    rests: Literal["no", "yes"] = "no"
    """``yes``: it is off, and its host starts it for no other reason than another wish."""
    problem: Problem | None = None


def node_space() -> str:
    """Return the claim space of tenants' VMs that became nodes: value the VM's id, owner the node."""
    return "node/vm"


def is_of_cloud(vm: Resource) -> bool:
    """Tell whether the VM is one of the cloud's own appliances."""
    desired: VmDesired = vm.desired
    return desired.appliance is not None and desired.appliance.part_of == "cloud"


def is_free(vm: Resource) -> bool:
    """Tell whether no account pays for the VM: one of the cloud's own appliances that no account asked for."""
    return is_of_cloud(vm) and vm.desired.appliance.role not in ASKED_ROLES


def channel_of(vm: Resource) -> str:
    """Return the form of the VM's backchannel; empty for none."""
    desired: VmDesired = vm.desired
    return desired.appliance.channel if desired.appliance is not None else str(vm.assigned.channel)


def is_hung(vm: Resource) -> bool:
    """Tell whether the VM's process is on its host and does not answer, as its host said last."""
    observed: VmObserved | None = vm.observed
    return observed is not None and observed.problem is not None and observed.problem.reason == "Hung"


def _ready(resource: Resource) -> Condition:
    desired: VmDesired = resource.desired
    observed: VmObserved | None = resource.observed
    if resource.assigned is None or not resource.assigned.host:
        return unready("Deciding", "no host has been chosen yet")
    if resource.deleting or observed is None:
        reason = "Deleting" if resource.deleting else "Starting"
        return unready(reason, f"the VM is {observed.power if observed else 'not reported yet'}")
    if observed.problem is not None:
        return unready(observed.problem.reason, observed.problem.message)
    if observed.power != desired.power or _is_forbidden(resource.assigned, desired):
        return _not_as_wished(resource.assigned, desired, observed)
    if observed.isolated != desired.isolated:
        return unready("Isolating" if desired.isolated == "yes" else "Converging", "its NICs are being switched")
    unplugged = _unplugged(resource.assigned, desired, observed) if observed.power == "running" else None
    return unplugged or _as_wished(resource.assigned, desired)


def _as_wished(assigned: VmAssigned, desired: VmDesired) -> Condition:
    if desired.isolated == "yes":
        who = assigned.isolated_by or "somebody"
        return ready("Isolated", f"nothing passes its NICs; isolated by {who}")
    if assigned.bar is not None and desired.power != "stopped":
        return ready(assigned.bar.reason, f"it goes on until it ends, and is held then: {assigned.bar.message}")
    return ready() if desired.power == "running" else ready(message=f"the VM is {desired.power}, as wished")


def _unplugged(assigned: VmAssigned, desired: VmDesired, observed: VmObserved) -> Condition | None:
    """Say why the running guest has not just the NICs and disks that are wished; None: it has."""
    are_decided = (len(assigned.ports), len(assigned.volumes)) == (len(desired.nics), 1 + len(desired.volumes))
    decided, there = {*assigned.volumes, *assigned.ports}, {*observed.volumes, *observed.ports}
    if are_decided and decided == there:
        return None
    if assigned.hold:
        return unready("NetworkNotServed", assigned.hold)
    return unready("Converging", "its NICs and disks are being plugged")


def _is_forbidden(assigned: VmAssigned, desired: VmDesired) -> bool:
    return assigned.bar is not None and assigned.bar.forbids == "run" and desired.power != "stopped"


def _not_as_wished(assigned: VmAssigned, desired: VmDesired, observed: VmObserved) -> Condition:
    if assigned.bar is not None and desired.power != "stopped":
        return unready(assigned.bar.reason, f"held: {assigned.bar.message}")
    if observed.power == "stopped" and observed.exit is not None and desired.power != "stopped":
        if observed.exit.reason == "guest-shutdown":
            return unready("GuestShutdown", "the guest powered itself off; `pileus start vm` starts it again")
        return unready("Ended", f"the VM ended ({observed.exit.reason}) {observed.exit.message}".rstrip())
    return unready("Converging", f"the VM is {observed.power}, wished {desired.power}")


def _meter(vm: Resource) -> Use | None:
    """Say what the VM uses: its root disk from when a host has it; CPUs and memory as it was started, while it is on.

    Its host also tells when the process before this one ended: a restart may be heard of once it is over.
    """
    observed: VmObserved | None = vm.observed
    if is_free(vm) or not vm.host:
        return Use()
    disk = {"disk_mib": 1024 * vm.assigned.disk_gib}
    if observed is None:
        return Use(disk)
    if observed.power == "unknown":
        return None
    size = {"vcpus": observed.vcpus, "memory_mib": observed.memory_mib}
    if observed.power in ("running", "paused"):
        former = Use(disk, observed.former_exit_at) if observed.former_exit_at else None
        return Use(size | disk, observed.started_at, vm.host, ran=former)
    if observed.exit is None:
        return Use(disk)
    started_at, ended_at = observed.exit.started_at, observed.former_exit_at or observed.exit.at
    return Use(disk, ended_at, ran=Use(size | disk, started_at, vm.host) if started_at else None)


KIND = Kind(
    name="compute.vm",
    summary="A virtual machine of an account.",
    desired=VmDesired,
    assigned=VmAssigned,
    observed=VmObserved,
    ready=_ready,
    meter=_meter,
    aliases=("virtualmachine",),
    immutable=frozenset({"image", "vdc", "user_data", "ovf_environment", "ssh_keys"}),
    host_bound=True,
    lists="own",
    columns=(
        Column("POWER", "observed.power"),
        Column("ADDRESS", "observed.addresses.0"),
        Column("IMAGE", "desired.image"),
        Column("VCPUS", "assigned.vcpus"),
        Column("MEMORY", "assigned.memory_mib"),
        Column("VDC", "vdc", wide=True, ref="tenancy.vdc"),
        Column("HOST", "host", wide=True, ref="infra.host"),
    ),
)
