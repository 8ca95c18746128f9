"""A lab as it lies on disk and runs on this machine: its fabric, and hosts that are switched on, off and cut off.

What runs is found, not remembered: a lab whose first process was killed is taken down by whoever comes next.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct

from pileus.drivers.host.qemu.procfs import ProcessId, identify
from pileus.kernel.errors import Conflict
from pileus.lab import fabric, power
from pileus.lab.fabric import Fabric
from pileus.lab.topology import INTERNET, SERVER_ADDRESS, SERVER_PORT, Host, Layout, Topology, topology

if TYPE_CHECKING:
    from pileus.agent.run import AgentSettings  # at run time only where it is needed: it takes half a second

SERVER_URL = f"https://{SERVER_ADDRESS}:{SERVER_PORT}"
"""As agents know it."""
END_S = 10.0
"""An agent that is asked to end gets this long: 0.3 s measured."""

Say = Callable[[str], None]
Child = subprocess.Popen[bytes]


class Record(Struct, frozen=True, kw_only=True):
    """What a lab was made as; kept with its state."""

    layout: Layout
    accelerator: Literal["kvm", "tcg"] = "tcg"


class Site:
    """The lab whose state lies in ``data``."""

    def __init__(self, data: Path, record: Record) -> None:
        self.data = data
        self.record = record
        self.topology: Topology = topology(record.layout)
        self.fabric = Fabric(data, self.topology)

    @classmethod
    def load(cls, data: Path) -> Site | None:
        """Return the lab of hosts with real drivers that was made in a folder; None: there is none."""
        try:
            return cls(data, msgspec.json.decode((data / "lab.json").read_bytes(), type=Record))
        except (OSError, msgspec.DecodeError):
            return None

    def check(self) -> None:
        """Raises: Conflict when the folder holds another lab."""
        known = Site.load(self.data)
        if known is None and (self.data / "pileus.db").exists():
            raise Conflict(
                f"{self.data} holds a lab of simulated hosts; `pileus lab stop --delete` deletes it, "
                "or choose another folder with --data"
            )
        if known is not None and known.record.layout != self.record.layout:
            raise Conflict(
                f"the lab in {self.data} was made with {known.record.layout}; start it with the same, "
                "or delete it with `pileus lab stop --delete`"
            )

    def save(self) -> None:
        """Keep the record."""
        draft = self.data / "lab.json.new"
        draft.write_bytes(msgspec.json.encode(self.record))
        draft.replace(self.data / "lab.json")

    def settings(self, host: Host) -> AgentSettings:
        """Return the settings of a host's agent."""
        from pileus.agent.run import AgentSettings

        return AgentSettings(
            data=self._folder(host),
            accelerator=self.record.accelerator,
            network=self.fabric.namespace(host.name),
            uplinks=host.uplinks,
        )

    def agent(self, host: Host) -> ProcessId | None:
        """Return a host's agent, if it runs."""
        try:
            noted = msgspec.json.decode(self._agent_file(host).read_bytes(), type=ProcessId)
        except (OSError, msgspec.DecodeError):
            return None
        return noted if power.is_alive(noted) else None

    async def start_host(self, host: Host, token: str = "") -> Child:
        """Switch a host on: its NICs, and its agent, which finds what its disks have. Raises: Conflict."""
        if self.agent(host) is not None:
            raise Conflict(f"{host.name} runs already")
        await self.fabric.power_on(host)
        settings, uplinks = self.settings(host), host.uplinks
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        joining = ["--server", SERVER_URL, "--token", token] if token else []
        child = self._spawn(
            host.name, "pileus.cli.main", "agent", "--data", str(settings.data),
            "--accelerator", settings.accelerator, "--network", settings.network, "--trunk", uplinks.trunk,
            "--tunnel", uplinks.tunnel, "--tunnel-address", uplinks.tunnel_address,
            "--tunnel-gateway", uplinks.tunnel_gateway, "--public", uplinks.public, *joining,
        )  # fmt: skip
        own = identify(child.pid)
        assert own is not None  # our child, which nobody has waited for
        self._agent_file(host).write_bytes(msgspec.json.encode(own))
        return child

    async def kill_host(self, host: Host) -> int:
        """Cut a host's power: agent, machines and switch are killed at once. Returns how many processes that were."""
        paths, namespace = self.settings(host).paths, self.fabric.namespace(host.name)
        agent = self.agent(host)

        def found() -> set[ProcessId]:
            children = power.below(agent) if agent is not None else set()
            return children | power.inside([namespace]) | power.machines(paths)

        count = await power.kill(found)
        self._agent_file(host).unlink(missing_ok=True)
        if namespace in fabric.namespaces(self.data):
            await self.fabric.power_off(host)
        await asyncio.to_thread(shutil.rmtree, paths.run, ignore_errors=True)
        return count

    def start_internet(self) -> Child:
        """Start what answers at the test host ``internet``."""
        return self._spawn(INTERNET, "pileus.lab.internet")

    async def stop(self, grace_s: float, say: Say) -> bool:
        """Take everything down, and return whether there was anything; guests have ``grace_s`` to power off."""
        hosts = self.topology.hosts
        there = bool(fabric.namespaces(self.data)) or any(self.agent(host) for host in hosts)
        agents = [agent for host in hosts if (agent := self.agent(host)) is not None]
        for agent in agents:
            power.send(agent, signal.SIGTERM)
        await power.ended(agents, END_S)
        asked = [host for host in hosts if grace_s > 0 and power.machines(self.settings(host).paths)]
        await asyncio.gather(*(self._ask(host, grace_s, say) for host in asked))
        await asyncio.gather(*(self.kill_host(host) for host in hosts))
        await power.kill(lambda: power.inside(fabric.namespaces(self.data)))
        await fabric.remove(self.data)
        return there

    async def _ask(self, host: Host, grace_s: float, say: Say) -> None:
        from pileus.local.down import take_down

        if self.agent(host) is None and self.fabric.namespace(host.name) in fabric.namespaces(self.data):
            await take_down(self.settings(host), grace_s, lambda line: say(f"{host.name}: {line}"))

    def _agent_file(self, host: Host) -> Path:
        return self._folder(host) / "agent.json"

    def _folder(self, host: Host) -> Path:
        return self.data / "hosts" / host.name

    def log(self, machine: str) -> Path:
        """Where the output of what runs on a machine of the lab goes."""
        return self.data / f"{machine}.log"

    def _spawn(self, machine: str, module: str, *arguments: str) -> Child:
        """Start a Python module on a machine of the lab, apart from this process."""
        with self.log(machine).open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.fabric.namespace(machine), sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/",
                env={**os.environ, "PILEUS_CONFIG": os.devnull},
            )  # fmt: skip
