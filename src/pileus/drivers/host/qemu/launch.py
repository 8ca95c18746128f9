"""Opens everything a machine needs, as root, and starts its QEMU with nothing but these descriptors."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.paths import HostPaths
from pileus.drivers.host.qemu.base import DiskAttachment, MachineSpec
from pileus.drivers.host.qemu.command import OpenFiles, command
from pileus.drivers.host.qemu.firmware import UEFI_CODE, uefi_variables
from pileus.drivers.host.qemu.folder import MachineFolder
from pileus.drivers.host.qemu.jail import Descriptors, claim_uid, jail, kvm_groups, spawn
from pileus.drivers.host.qemu.procfs import ProcessId, identify


class Launcher:
    """Starts processes for machines of one host; ``open_tap`` gives a descriptor of a tap without a virtio header."""

    def __init__(self, paths: HostPaths, open_tap: Callable[[str], Awaitable[int]]) -> None:
        # Next to the run folders, because hosts of one computer (a lab) share its user ids.
        self._uids = paths.run.parent / "uid"
        self._open_tap = open_tap
        self.accelerator = "tcg"

    async def launch(self, folder: MachineFolder, spec: MachineSpec, lock: int) -> ProcessId:
        """Start the machine's process, which gets ``lock``, and return it. Raises DriverError (StartFailed, NoUser)."""
        with Descriptors() as fds:
            fds.keep(lock)
            try:
                uid, claim = claim_uid(self._uids)
                fds.keep(claim)
                files = await self._open(folder, spec, fds)
                groups = kvm_groups() or () if self.accelerator == "kvm" else ()
                argv = [*jail(uid, groups), *command(spec, files, self.accelerator, folder.record.slots)]
                pid = spawn(argv, fds.fds, folder.pid_file, folder.log)
            except OSError as error:
                message = f"machine {spec.id} cannot be prepared: {error.strerror or error}"
                raise DriverError("StartFailed", message) from error
        process = identify(pid)
        assert process is not None  # our child, and nobody has waited for it yet
        return process

    def open_disk(self, disk: DiskAttachment, fds: Descriptors) -> tuple[int, ...]:
        """Open the disk and the files below it. Raises DriverError (StartFailed)."""
        top = _open(fds, f"disk {disk.id}", disk.path, os.O_RDONLY if disk.read_only else os.O_RDWR)
        return (top, *(_open(fds, f"image under disk {disk.id}", layer.path) for layer in disk.backing))

    async def open_tap(self, tap: str, fds: Descriptors) -> int:
        """Open a tap of the switch."""
        return fds.keep(await self._open_tap(tap))

    async def _open(self, folder: MachineFolder, spec: MachineSpec, fds: Descriptors) -> OpenFiles:
        kernel = initrd = seed = firmware = None
        if spec.boot is not None:
            kernel = _public(_open(fds, "kernel", spec.boot.kernel))
            initrd = _public(_open(fds, "initrd", spec.boot.initrd))
        elif spec.firmware == "uefi":
            variables = uefi_variables(folder.firmware)
            firmware = (_open(fds, "firmware", UEFI_CODE), _open(fds, "firmware variables", variables, os.O_RDWR))
        if spec.seed is not None:
            seed = _open(fds, "seed", spec.seed)
        return OpenFiles(
            qmp=fds.listen(folder.qmp_socket),
            console=fds.listen(folder.console_socket),
            channel=fds.listen(folder.channel_socket) if spec.channel else None,
            console_log=fds.open(folder.console_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
            seed=seed, kernel=kernel, initrd=initrd, firmware=firmware,
            disks={disk.id: self.open_disk(disk, fds) for disk in spec.disks},
            taps={nic.id: await self.open_tap(nic.tap, fds) for nic in spec.nics},
        )  # fmt: skip


def _open(fds: Descriptors, what: str, path: str | Path, flags: int = os.O_RDONLY) -> int:
    try:
        fd = fds.open(path, flags)
    except OSError as error:
        raise DriverError("StartFailed", f"{what} cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise DriverError("StartFailed", f"{what} is not a regular file")
    return fd


def _public(fd: int) -> int:
    # QEMU opens kernel and initrd anew, as a user that owns nothing; the folders above still protect them.
    mode = os.fstat(fd).st_mode
    if not mode & stat.S_IROTH:
        os.fchmod(fd, stat.S_IMODE(mode) | stat.S_IROTH)
    return fd
