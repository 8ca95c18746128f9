"""Where the drivers of one host keep their files: one folder per machine, named by its id, never by a user's text."""

from __future__ import annotations

import hashlib
from pathlib import Path

from msgspec import Struct


def digest(folder: Path) -> str:
    """Return eight digits for a folder: the same for the same folder, and for no other one of this computer."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]


class HostPaths(Struct, frozen=True):
    """``state`` survives a reboot of the host; ``run`` (sockets, pid files) does not and stays under 60 characters,

    because a unix socket's path may have 107 (unix(7)).
    """

    state: Path
    run: Path
    network: str = ""
    """A network namespace that somebody prepared for the host, with its NICs; empty: one of its own."""

    @classmethod
    def under(cls, state: Path, network: str = "") -> HostPaths:
        """Return the paths of the host whose state lies in ``state``; the same folder always gives the same run folder."""
        return cls(state=state, run=Path("/run/pileus") / digest(state), network=network)

    @property
    def namespace(self) -> str:
        """The network namespace that holds this host's bridge and taps."""
        return self.network or f"pileus-{self.run.name}"

    def machine(self, machine: str) -> Path:
        """The machine's folder: what survives a reboot (spec, exit, seed, console log)."""
        return self.state / "machines" / machine

    @property
    def watched(self) -> Path:
        """An empty file whose time says when a hypervisor driver last had all its machines in sight."""
        return self.state / "watched"

    def seed(self, machine: str) -> Path:
        """The machine's NoCloud ISO."""
        return self.machine(machine) / "seed.iso"

    def firmware(self, machine: str) -> Path:
        """What the machine's UEFI keeps: the order of starting, and what the guest tells it."""
        return self.machine(machine) / "firmware.vars"

    def console_log(self, machine: str) -> Path:
        """What the machine's serial console printed; QEMU appends to it (O_APPEND), so it may be truncated in place."""
        return self.machine(machine) / "console.log"

    def machine_run(self, machine: str) -> Path:
        """The machine's sockets and pid file."""
        return self.run / "m" / machine

    def console_socket(self, machine: str) -> Path:
        """QEMU listens here for one client of the serial console."""
        return self.machine_run(machine) / "console"

    def channel_key(self, machine: str) -> Path:
        """The key of the machine's backchannel, beside the seed that carries it."""
        return self.machine(machine) / "channel.key"

    def channel_socket(self, machine: str) -> Path:
        """QEMU listens here for the one owner of the machine's backchannel."""
        return self.machine_run(machine) / "channel"

    @property
    def pool(self) -> Path:
        """Images and volumes of the local pool."""
        return self.state / "pool"

    @property
    def switch(self) -> Path:
        """Open vSwitch's database, logs and pid files (its sockets lie in ``run``)."""
        return self.state / "switch"
