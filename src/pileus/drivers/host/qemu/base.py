"""The contract of a hypervisor: machines by id, what they are, and the few things that can be done to them.

A driver knows no Pileus kind, no database and no policy. It keeps what it must remember in the machine's own folder, so
that a new agent process finds every machine again (re-adoption) by looking at the host.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal, Protocol

from msgspec import Struct

MachineState = Literal["running", "paused", "stopped"]
"""``stopped``: the machine's folder is there and no QEMU process runs."""

ExitReason = Literal["guest-shutdown", "guest-reset", "guest-panic", "powered-off", "killed", "failed"]
"""Why a machine stopped: its guest asked, we asked (``powered-off``), a signal we did not send, or an exit code."""


HUNG_S = 2.0
"""A process that has not answered for so long is hung: stopped by a signal, or stuck in the kernel."""


class Throttle(Struct, frozen=True, kw_only=True):
    """Limits of one disk; 0 means no limit."""

    iops: int = 0
    bytes_per_s: int = 0


class BackingFile(Struct, frozen=True, kw_only=True):
    """A read-only layer below a disk; its format is named by us, never taken from a header that a guest can write."""

    path: str
    format: Literal["qcow2", "raw"]


class DiskAttachment(Struct, frozen=True, kw_only=True):
    """A virtio-blk disk; ``id`` is the volume's id and (its last 20 characters) the serial number the guest sees.

    ``backing`` lists the layers below, nearest first; what the headers say about backing files is not followed.
    """

    id: str
    path: str
    format: Literal["qcow2", "raw"]
    read_only: bool = False
    throttle: Throttle = Throttle()
    backing: tuple[BackingFile, ...] = ()


class NicAttachment(Struct, frozen=True, kw_only=True):
    """A virtio-net NIC on an existing tap of the switch's network namespace; ``id`` is the port's id."""

    id: str
    mac: str
    tap: str


class DirectBoot(Struct, frozen=True, kw_only=True):
    """Start a kernel without a boot loader (half the boot time under TCG, measured)."""

    kernel: str
    initrd: str
    append: str


class MachineSpec(Struct, frozen=True, kw_only=True):
    """Everything needed to start a machine. ``disks[0]`` is the root disk; ``seed`` a read-only ISO 9660 or None."""

    id: str
    name: str
    vcpus: int
    memory_mib: int
    disks: tuple[DiskAttachment, ...]
    nics: tuple[NicAttachment, ...]
    boot: DirectBoot | None = None
    firmware: Literal["bios", "uefi"] = "bios"
    """What starts the root disk; a direct boot needs none."""
    seed: str | None = None
    channel: Literal["", "serial", "qga"] = ""
    """An appliance's backchannel, a virtio-serial port: ``serial`` for a node of ours, ``qga`` for QEMU's guest agent."""


class Exit(Struct, frozen=True, kw_only=True):
    """How the last QEMU process of a machine ended; ``message`` holds the last line QEMU printed, if any.

    ``at``: when it ended. Of one that ended while no driver was open: when one last had it in sight, not after its end.
    """

    reason: ExitReason
    at: float
    message: str = ""


class MachineFact(Struct, frozen=True, kw_only=True):
    """What is, read from the host now. ``started_at`` and ``Exit.at`` are Unix seconds.

    ``boots`` counts the starts and resets of this machine by the driver over its whole life (kept on disk).
    ``disks``/``nics`` are the ids attached to the running process (of the last spec when stopped).
    """

    id: str
    state: MachineState
    pid: int | None = None
    started_at: float | None = None
    boots: int = 0
    exit: Exit | None = None
    disks: tuple[str, ...] = ()
    nics: tuple[str, ...] = ()
    throttles: tuple[Throttle, ...] = ()
    """Limits in force, in the order of ``disks``."""
    vcpus: int = 0
    memory_mib: int = 0
    paused_by: Literal["", "disk-error"] = ""
    """``disk-error``: a write of the guest failed (a full disk), nothing is lost yet; ``resume`` tries it again."""
    process: Literal["answers", "hung"] = "answers"
    """``hung``: it is there and has not answered for ``HUNG_S``; ``state`` is as last known."""


class Pulse(Struct, frozen=True, kw_only=True):
    """What a machine shows of itself at one moment.

    ``hung``: see ``MachineFact.process``. ``unknown``: no answer came in the time that was given. ``disk_bytes`` and
    ``disk_operations``: read and written on all disks since the process started; as last known while it is silent.
    """

    state: Literal["running", "paused", "stopped", "hung", "unknown"]
    boots: int = 0
    nics: tuple[str, ...] = ()
    disk_bytes: int = 0
    disk_operations: int = 0


class MachineCounters(Struct, frozen=True, kw_only=True):
    """Totals since the process started. ``cpu_s``: seconds of host CPU; ``memory_bytes``: resident set now."""

    cpu_s: float
    memory_bytes: int
    disk_read_bytes: int
    disk_write_bytes: int
    disk_read_ops: int
    disk_write_ops: int


class Accelerator(Struct, frozen=True, kw_only=True):
    """What machines run under, and why: KVM only when a test guest really ran under it within a few seconds."""

    name: Literal["kvm", "tcg"]
    reason: str


class Hypervisor(Protocol):
    """Machines of one host. Every call is idempotent: asking for what is already so succeeds and changes nothing."""

    async def open(self) -> None:
        """Find the machines of earlier agent processes and watch them. Raises MissingTool without QEMU."""

    async def close(self) -> None:
        """Stop watching; machines go on."""

    def accelerator(self) -> Accelerator:
        """Return what was probed at ``open`` (kept on disk, so that the probe runs once per boot of the host)."""

    def on_change(self, callback: Callable[[str], None]) -> None:
        """Call ``callback(machine id)`` when a machine's state may have changed (exit, pause, guest shutdown).

        A hint only, within 1 s of the fact: whoever gets it looks with ``observe``.
        """

    async def observe(self) -> dict[str, MachineFact]:
        """Return every machine that has a folder or a process on this host.

        One whose process is slow is as last known after 0.3 s; ``on_change`` tells when it answers, or is found hung.
        """

    async def pulses(self, machines: Collection[str], timeout_s: float = HUNG_S) -> dict[str, Pulse]:
        """Return the pulse of each of these machines, all looked at together; one that is not there is stopped.

        Returns within about ``timeout_s``, however many are hung; with less than ``HUNG_S`` a hung one may be unknown.
        """

    async def start(self, spec: MachineSpec) -> None:
        """Start the machine; running already: nothing. Returns once QMP says ``running``.

        Raises: DriverError (StartFailed with QEMU's own last words; NoMemory), MissingTool.
        """

    async def shutdown(self, machine: str) -> None:
        """Ask the guest to power off (ACPI button); returns at once."""

    async def power_off(self, machine: str) -> None:
        """End the process, however it is, and return when it is gone; the exit reason becomes ``powered-off``.

        A hung one is killed. Raises: DriverError (NotGone) when it is stuck in the kernel; it ends when that lets it.
        """

    async def reset(self, machine: str) -> None:
        """Reset a running machine (``boots`` + 1). Raises: DriverError (NoAnswer) when it is hung: power it off."""

    async def pause(self, machine: str) -> None:
        """Stop the virtual CPUs."""

    async def resume(self, machine: str) -> None:
        """Let a paused machine go on."""

    async def attach_disk(self, machine: str, disk: DiskAttachment) -> None:
        """Plug a disk into a running machine."""

    async def detach_disk(self, machine: str, disk: str) -> None:
        """Unplug a disk; returns when the guest let go and the file is closed. Raises QmpRefused (guest did not)."""

    async def attach_nic(self, machine: str, nic: NicAttachment) -> None:
        """Plug a NIC into a running machine."""

    async def detach_nic(self, machine: str, nic: str) -> None:
        """Unplug a NIC; returns when the guest let go of it."""

    async def set_throttle(self, machine: str, disk: str, throttle: Throttle) -> None:
        """Change the limits of a disk while the machine runs."""

    async def copy_disk(self, machine: str, disk: str, target: str, bytes_per_s: int = 0) -> float:
        """Write the disk as it is at one moment into ``target``, and return that moment (Unix seconds).

        ``target`` is the path of an empty qcow2 of the disk's size; ``bytes_per_s``: not faster than that, 0: as fast as
        it goes. The machine goes on, running or paused; what it has
        in its memory only is not in the copy. One disk of a machine is copied at a time.
        Raises: QmpRefused, DriverError (NotRunning, NoDisk; CopyFailed: also when the machine ended meanwhile).
        """

    async def counters(self) -> dict[str, MachineCounters]:
        """Return the counters of every running machine."""

    async def remove(self, machine: str) -> None:
        """Power off and forget the machine: no process, socket, folder or file of it is left (disks are not its)."""
