"""The network devices by which a host meets others, as ports of its switch: level-triggered, whatever comes or goes."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address

from pileus.drivers.host.errors import DriverError, OvsdbError
from pileus.drivers.host.ovs import namespace
from pileus.drivers.host.ovs.base import Uplinks
from pileus.drivers.host.ovs.command import run
from pileus.drivers.host.ovs.database import BRIDGE, UNDERLAY, Database, Uplink
from pileus.drivers.host.ovs.segments import PUBLIC_PORT, TRUNK_PORT, TUNNEL_PORT, check_uplinks, tunnel_address

log = logging.getLogger(__name__)

VXLAN = "pileus-vxlan"
UNDERLAY_MTU = 1550
"""A guest's frame of 1,500 bytes, its Ethernet header (14), VXLAN (8), UDP (8) and IPv4 (20)."""

DISCARD_PORT = 9
"""Nobody has to listen there (RFC 863); only the way is asked for."""

ROUTE_METRIC = 1000
"""Behind any route that somebody else has set."""


class UplinkPorts:
    """The uplinks of the switch in ``name``, a network namespace."""

    def __init__(self, uplinks: Uplinks, name: str, database: Database) -> None:
        check_uplinks(uplinks)
        self._uplinks = uplinks
        self._namespace = name
        self._database = database
        own = tunnel_address(uplinks)
        self._bridges = {BRIDGE: "", UNDERLAY: _mac_of(own)} if own else {BRIDGE: ""}
        self._problems: dict[str, str] = {}
        """Devices that are there and cannot be used, and why; found anew by every ``ensure``."""

    async def ensure_bridges(self) -> None:
        """Make the bridges that this host needs."""
        await self._database.ensure_bridges(self._bridges)

    async def ensure(self) -> None:
        """Make ports of the devices that are there, and no others; one that is missing or unfit hinders nobody."""
        self._problems = {}
        devices = await namespace.numbers(self._namespace)
        wanted = self._wanted(devices)
        for uplink in wanted:
            if not uplink.kind:
                await self._prepare(uplink.name)
        await self._database.set_uplinks(wanted)
        if self._uplinks.tunnel in devices:
            await self._address_underlay()

    async def missing(self, names: Sequence[str]) -> list[str]:
        """Return which of the devices carry nothing: not there, there anew, or unfit."""
        if not names:
            return []
        numbers = await namespace.numbers(self._namespace)
        attached = {each.name for each in await self._database.uplinks() if numbers.get(each.name) == each.ifindex}
        return [name for name in names if name not in attached or name in self._problems]

    async def require(self, names: Sequence[str], who: str) -> None:
        """Raise DriverError (UplinkMissing) when ``who`` needs a device that carries nothing."""
        missing = await self.missing(names)
        if missing:
            device = missing[0]
            why = self._problems.get(device, f"is not in network namespace {self._namespace}")
            raise DriverError("UplinkMissing", f"{who}: network device {device} {why}")

    async def greet(self, peers: Sequence[str]) -> None:
        """Let the switch find out the MACs of these tunnel addresses, or of the way to them, before a frame waits."""
        if self._uplinks.tunnel:
            await namespace.inside(self._namespace, lambda: _knock(peers))

    async def _prepare(self, device: str) -> None:
        try:
            mtu = await namespace.prepare_uplink(self._namespace, device)
        except DriverError as exc:
            self._problems[device] = f"cannot be used: {exc.message}"
            return
        if device == self._uplinks.tunnel and mtu < UNDERLAY_MTU:
            log.warning(
                "the tunnel's MTU is too small: longest frames of guests are lost",
                extra={"device": device, "mtu": mtu, "wanted": UNDERLAY_MTU},
            )

    def _wanted(self, devices: dict[str, int]) -> list[Uplink]:
        uplinks = self._uplinks
        options = {"remote_ip": "flow", "key": "flow", "local_ip": tunnel_address(uplinks)}
        every = [
            (uplinks.trunk, Uplink(uplinks.trunk, BRIDGE, devices.get(uplinks.trunk, 0), TRUNK_PORT)),
            (uplinks.public, Uplink(uplinks.public, BRIDGE, devices.get(uplinks.public, 0), PUBLIC_PORT)),
            (uplinks.tunnel, Uplink(uplinks.tunnel, UNDERLAY, devices.get(uplinks.tunnel, 0))),
            (uplinks.tunnel, Uplink(VXLAN, BRIDGE, 0, TUNNEL_PORT, "vxlan", options)),
        ]
        return [uplink for device, uplink in every if device in devices]

    async def _address_underlay(self) -> None:
        """Give the underlay's local port this host's address: the switch finds its ways by the kernel's routes."""
        await namespace.let_answer(self._namespace, UNDERLAY)
        lines = [f"address replace {self._uplinks.tunnel_address} dev {UNDERLAY}", f"link set {UNDERLAY} up"]
        if self._uplinks.tunnel_gateway:
            gateway = self._uplinks.tunnel_gateway
            lines.append(f"route replace default via {gateway} dev {UNDERLAY} metric {ROUTE_METRIC}")
        try:
            await run(["ip", "-n", self._namespace, "-batch", "-"], text="\n".join(lines) + "\n")
        except OvsdbError as exc:
            self._problems[self._uplinks.tunnel] = f"cannot have its address or gateway: {exc.message}"


def _mac_of(address: str) -> str:
    """Return the MAC of a tunnel address: its own, so that peers that remember it are right after any restart."""
    return "02:70:" + ":".join(f"{byte:02x}" for byte in IPv4Address(address).packed)


def _knock(peers: Sequence[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        for peer in peers:
            with contextlib.suppress(OSError):  # no way to it, as long as the underlay is cut
                sender.sendto(b"", (peer, DISCARD_PORT))
