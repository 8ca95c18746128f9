"""The network of a lab: namespaces without a way out, switches and cables between them, and a cut in a cable."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import socket
import struct
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.ovs import namespace
from pileus.drivers.host.ovs.command import run
from pileus.drivers.host.paths import digest
from pileus.lab.topology import (
    CORE,
    INTERNET,
    INTERNET_RANGE,
    LINKS,
    MANAGEMENT,
    SERVER_ADDRESS,
    SERVER_PORT,
    UNDERLAY,
    Host,
    Topology,
    cables,
)

BACKLOG = 2048
BRIDGE_TABLES = ("arptables", "iptables", "ip6tables")
SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17


class Fabric:
    """The network of the lab whose state lies in ``data``."""

    def __init__(self, data: Path, topology: Topology) -> None:
        self._prefix = prefix(data)
        self._topology = topology

    def namespace(self, machine: str) -> str:
        """Return the network namespace of a machine or switch."""
        return f"{self._prefix}{machine}"

    async def build(self) -> None:
        """Make everything; nothing of it may be there. Raises: DriverError."""
        for machine in self._topology.machines:
            await namespace.ensure(self.namespace(machine))
        hosts = {host.name for host in self._topology.hosts}
        for machine in set(self._topology.machines) - hosts:  # a host's own stack stays quiet, see its switch
            await namespace.inside(self.namespace(machine), lambda machine=machine: _speak(forward=machine == CORE))  # type: ignore[misc]
        await self._batch("", self._cables())
        for machine, lines in self._inside().items():
            await self._batch(machine, lines)
        # A sender with unfinished checksums, as veths have, would confuse guests: nothing finishes them on the way.
        await namespace.inside(self.namespace(INTERNET), lambda: _finish_checksums(["eth0"]))
        ports = [cable.device for cable in self._topology.cables if cable.machine == CORE]
        await namespace.inside(self.namespace(CORE), lambda: _finish_checksums([INTERNET, *ports]))

    async def listen(self) -> socket.socket:
        """Return a listening socket at the server's address in the management network."""
        address = (SERVER_ADDRESS, SERVER_PORT)
        return await namespace.inside(
            self.namespace(MANAGEMENT), lambda: socket.create_server(address, backlog=BACKLOG)
        )

    async def cut(self, host: Host, links: Iterable[str]) -> None:
        """Pull the cables of a host: they carry nothing, and their ends see it."""
        await self._set(host, links, "down")

    async def heal(self, host: Host, links: Iterable[str]) -> None:
        """Put the cables of a host back."""
        await self._set(host, links, "up")

    async def cuts(self) -> dict[str, list[str]]:
        """Return the cables that are cut, by host."""
        down: set[tuple[str, str]] = set()
        for machine in {cable.switch for host in self._topology.hosts for cable in cables(host).values()}:
            links = json.loads(await run(["ip", "-n", self.namespace(machine), "-j", "link"]))
            down.update((machine, link["ifname"]) for link in links if "UP" not in link["flags"])
        return {
            host.name: [link for link, cable in cables(host).items() if (cable.switch, cable.port) in down]
            for host in self._topology.hosts
        }

    async def power_on(self, host: Host) -> None:
        """Let the host's NICs work."""
        await self._batch(host.name, (f"link set {link}0 up" for link in LINKS))

    async def power_off(self, host: Host) -> None:
        """Let the host's NICs fall silent, and take away what its kernel had besides them."""
        nics = {f"{link}0" for link in LINKS}
        await self._batch(host.name, (f"link set {nic} down" for nic in sorted(nics)))
        for link in await namespace.counters(self.namespace(host.name)):
            if link not in nics | {"lo"}:
                with contextlib.suppress(DriverError):  # some come with each namespace and stay
                    await namespace.delete_link(self.namespace(host.name), link)

    async def _set(self, host: Host, links: Iterable[str], state: str) -> None:
        for link in links:
            cable = cables(host)[link]
            await self._batch(cable.switch, [f"link set {cable.port} {state}"])

    async def _batch(self, machine: str, lines: Iterable[str]) -> None:
        where = ["-n", self.namespace(machine)] if machine else []
        await run(["ip", *where, "-batch", "-"], text="\n".join(lines) + "\n")

    def _cables(self) -> Iterable[str]:
        """Yield what makes each cable, both ends where they belong: none of them is ever seen outside the lab."""
        for cable in self._topology.cables:
            mac = f"address {cable.mac} " if cable.mac else ""
            yield (
                f"link add {cable.device} {mac}mtu {cable.mtu} netns {self.namespace(cable.machine)} type veth"
                f" peer name {cable.port} mtu {cable.mtu} netns {self.namespace(cable.switch)}"
            )
        yield (
            f"link add eth0 netns {self.namespace(INTERNET)} type veth"
            f" peer name {INTERNET} netns {self.namespace(CORE)}"
        )

    def _inside(self) -> dict[str, list[str]]:
        """Return the commands inside each namespace."""
        lines: dict[str, list[str]] = defaultdict(list)
        for machine, name, mtu in self._topology.bridges:
            lines[machine].append(f"link add {name} mtu {mtu} type bridge stp_state 0 mcast_snooping 0")
            lines[machine].append(f"link set {name} up")
        for cable in self._topology.cables:
            lines[cable.switch].append(f"link set {cable.port} master {cable.bridge} up")
            lines[cable.machine].append(f"link set {cable.device} up")
        lines[INTERNET].append("link set eth0 up")
        lines[CORE].append(f"link set {INTERNET} up")
        for machine, device, address in self._topology.addresses:
            lines[machine].append(f"address add {address} dev {device}")
        lines[INTERNET].append(f"route add default via {INTERNET_RANGE[1]}")
        # Who is on a public segment or outside never reaches the hosts' tunnels.
        for outside in (INTERNET, *(zone.name for zone in self._topology.zones)):
            lines[CORE].append(f"rule add iif {outside} to {UNDERLAY} prohibit")
        # The kernel of a host answers no ARP, so that no guest ever hears from it.
        for host in self._topology.hosts:
            to = f"{host.management_address} lladdr {host.management_mac}"
            lines[MANAGEMENT].append(f"neighbour add {to} dev mgmt nud permanent")
        return lines


def prefix(data: Path) -> str:
    """Return what the names of all namespaces of a lab begin with."""
    return f"pileus-lab-{digest(data)}-"


def namespaces(data: Path) -> list[str]:
    """Return every namespace of a lab that is there."""
    return sorted(path.name for path in namespace.FOLDER.glob(f"{prefix(data)}*"))


async def remove(data: Path) -> None:
    """Delete every namespace of a lab, with all cables in them. No process may be left there."""
    for name in namespaces(data):
        await namespace.remove(name)


def _speak(*, forward: bool) -> None:
    """Let the IP stack of this thread's namespace answer for its addresses, and maybe forward; bridges filter nothing."""
    settings = dict.fromkeys((f"ipv4/conf/{which}/arp_ignore" for which in ("all", "default")), "0")
    settings["ipv4/ip_forward"] = "1" if forward else "0"
    settings.update(dict.fromkeys((f"bridge/bridge-nf-call-{table}" for table in BRIDGE_TABLES), "0"))
    for key, value in settings.items():
        with contextlib.suppress(FileNotFoundError):  # only kernels with br_netfilter can filter there
            (Path("/proc/sys/net") / key).write_text(value)


def _finish_checksums(links: Iterable[str]) -> None:
    """Have devices of this thread's namespace send finished checksums, as with ``ethtool -K DEVICE tx off``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for link in links:
            value = array.array("I", [ETHTOOL_STXCSUM, 0])  # struct ethtool_value, linux/ethtool.h
            fcntl.ioctl(control, SIOCETHTOOL, struct.pack("16sP16x", link.encode(), value.buffer_info()[0]))
