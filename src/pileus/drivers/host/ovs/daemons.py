"""The two daemons of one host's own switch: found by pid file, started apart from the agent, ended by identity."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from msgspec import Struct

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.ovs.command import locate, run
from pileus.drivers.host.paths import HostPaths

SCHEMA_FILE = Path("/usr/share/openvswitch/vswitch.ovsschema")
END_S = 10
"""How long a daemon may take to end after SIGTERM before SIGKILL: 20 ms measured."""


class SwitchFiles(Struct, frozen=True):
    """Where one host's switch keeps its files: what survives a reboot in ``state``, the rest in ``run``."""

    state: Path
    run: Path

    @classmethod
    def of(cls, paths: HostPaths) -> SwitchFiles:
        """Return the files under the host's paths."""
        return cls(paths.switch, paths.run / "ovs")

    @property
    def database(self) -> Path:
        """The database file."""
        return self.state / "conf.db"

    @property
    def database_socket(self) -> Path:
        """Where ovsdb-server listens."""
        return self.run / "db.sock"

    def bridge_socket(self, bridge: str) -> Path:
        """Where ovs-vswitchd takes OpenFlow for a bridge; it chooses the name itself."""
        return self.run / f"{bridge}.mgmt"

    def pid_file(self, daemon: str) -> Path:
        """The daemon's pid file."""
        return self.run / f"{daemon}.pid"

    def control_socket(self, daemon: str) -> Path:
        """Where the daemon takes ovs-appctl(8) commands."""
        return self.run / f"{daemon}.ctl"

    def log(self, daemon: str) -> Path:
        """The daemon's log."""
        return self.state / f"{daemon}.log"


async def start_database(files: SwitchFiles, namespace: str) -> None:
    """Start ovsdb-server on the database file, which is made when it is not there."""
    if not files.database.exists():
        await run(["ovsdb-tool", "create", str(files.database), str(SCHEMA_FILE)])
    arguments = [str(files.database), f"--remote=punix:{files.database_socket}"]
    await _start(files, namespace, "ovsdb-server", arguments)


async def start_switch(files: SwitchFiles, namespace: str) -> None:
    """Start ovs-vswitchd; it has read its configuration when this returns."""
    # connmgr would log a line for every change of flows.
    await _start(files, namespace, "ovs-vswitchd", [f"unix:{files.database_socket}", "-vconnmgr:file:warn"])


def running(files: SwitchFiles, daemon: str) -> int | None:
    """Return the pid of the daemon if the pid file names a living process that is this daemon of this host."""
    pid_file = files.pid_file(daemon)
    try:
        pid = int(pid_file.read_text())
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    is_ours = os.path.basename(arguments[0]) == daemon.encode() and f"--pidfile={pid_file}".encode() in arguments
    return pid if is_ours else None


async def stop(files: SwitchFiles, daemon: str) -> None:
    """End the daemon and return when it is gone; not running: nothing. Raises DriverError (SwitchSilent)."""
    pid = running(files, daemon)
    if pid is None:
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if running(files, daemon) != pid:  # asked again: the number may have changed hands before it was pinned
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(descriptor, number)
            if await _ended(descriptor):
                return
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)
    raise DriverError("SwitchSilent", f"{daemon} does not end")


async def _ended(descriptor: int) -> bool:
    """Return whether the process ended within the time; a pidfd becomes readable when it does (pidfd_open(2))."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    try:
        async with asyncio.timeout(END_S):
            await gone.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
    return True


async def _start(files: SwitchFiles, namespace: str, daemon: str, arguments: list[str]) -> None:
    files.control_socket(daemon).unlink(missing_ok=True)
    options = [
        f"--pidfile={files.pid_file(daemon)}",
        f"--unixctl={files.control_socket(daemon)}",
        f"--log-file={files.log(daemon)}",
        "-vconsole:off",
        "-vsyslog:off",
        "--detach",
    ]
    environment = {"OVS_RUNDIR": str(files.run), "OVS_LOGDIR": str(files.state), "OVS_DBDIR": str(files.state)}
    program = locate(daemon)
    await run(["ip", "netns", "exec", namespace, program, *arguments, *options], environment=environment)
