"""Three hosts with real switches: two on the rack of pod 1, one in pod 2, and a router between the pods.

Racks, underlays, the public segment and the router are Linux bridges in one namespace; a tap on a bridge is a machine
that sees and says what it likes there.
"""

from __future__ import annotations

import asyncio
import os
from itertools import count
from pathlib import Path

from tests.contract.ovs.frames import BROADCAST, IPV4, UDP, ethernet, ipv4, mac_of, udp
from tests.contract.ovs.lan import LIMIT_S, Guest, Lan, is_running

from pileus.drivers.host.ovs import namespace
from pileus.drivers.host.ovs.base import PortSpec, SegmentSpec, Uplinks
from pileus.drivers.host.ovs.command import run
from pileus.drivers.host.paths import HostPaths

POD_OF = {"a": 1, "b": 1, "c": 2}
"""A host's letter: its pod."""

WIRES = {"rack1": "p000000000001", "rack2": "p000000000002", "public": "p000000000003", "under1": "p000000000004"}
"""A bridge: the tap of the machine that listens there."""

RED, BLUE = 101, 102
MARK = b"sentinel"
SERIAL = count()


def machine(colour: int, number: int) -> PortSpec:
    """A machine of the account whose VLAN is ``colour``; the accounts use the same addresses."""
    return PortSpec(
        id=f"port-{colour:06x}{number:06x}",
        mac=f"52:54:00:00:{colour:02x}:{number:02x}",
        addresses=(f"10.1.1.{number}",),
        vlan=colour,
    )


class Site:
    """The hosts by letter, and what joins them."""

    def __init__(self, folder: Path) -> None:
        self.hosts = {letter: Lan(HostPaths.under(folder / letter), _uplinks(letter)) for letter in POD_OF}
        self.core = f"pileus-core-{os.getpid()}"
        self.wires: dict[str, Guest] = {}

    async def build(self) -> None:
        """Make the wires, then open the switches."""
        await run(["ip", "netns", "add", self.core])
        await namespace.inside(self.core, _core_settings)
        lines = ["link set lo up"]
        bridges = {"rack1": 1500, "rack2": 1500, "public": 1500, "under1": 1600, "under2": 1600}
        for number, (bridge, mtu) in enumerate(bridges.items()):
            # Without an address of its own a bridge takes one of its ports', and another when that port goes.
            address = f"02:00:00:00:00:{number + 1:02x}"
            lines.append(f"link add {bridge} mtu {mtu} address {address} type bridge mcast_snooping 0")
            lines.append(f"link set {bridge} up")
        lines += ["address add 10.200.1.1/24 dev under1", "address add 10.200.2.1/24 dev under2"]
        await self._ip(self.core, lines)
        for letter, lan in self.hosts.items():
            await run(["ip", "netns", "add", lan.paths.namespace])
            await asyncio.gather(*(self.connect(letter, device) for device in ("trunk0", "tunnel0", "public0")))
            await lan.switch.open()

    async def connect(self, letter: str, device: str) -> None:
        """Give a host the device, wired to where it belongs."""
        bridge = {"trunk0": f"rack{POD_OF[letter]}", "tunnel0": f"under{POD_OF[letter]}", "public0": "public"}[device]
        mtu, other = 1600 if device == "tunnel0" else 1500, f"{device}{letter}"
        name = self.hosts[letter].paths.namespace
        await self._ip(self.core, [
            f"link add {other} mtu {mtu} type veth peer name {device} mtu {mtu} netns {name}",
            f"link set {other} master {bridge} up",
        ])  # fmt: skip

    async def cut(self, letter: str, device: str) -> None:
        """Take the device from the host."""
        await namespace.delete_link(self.core, f"{device}{letter}")

    async def listen(self, bridge: str, spec: PortSpec) -> Guest:
        """Return a machine on the bridge itself, on no host."""
        tap = WIRES[bridge]
        await namespace.make_tap(self.core, tap)
        wire = Guest(spec, await namespace.open_tap(self.core, tap))
        self.wires[bridge] = wire
        await self._ip(self.core, [f"link set {tap} master {bridge}"])
        async with asyncio.timeout(LIMIT_S):
            while not await namespace.inside(self.core, lambda: is_running(tap)):
                pass
        return wire

    async def plug(self, letter: str, spec: PortSpec) -> Guest:
        return await self.hosts[letter].plug(spec)

    async def join(self, vlan: int, letters: str = "abc") -> None:
        """Join the VLAN on these hosts: by trunk inside a pod, by VXLAN between pods."""
        for letter in letters:
            await self.hosts[letter].switch.join(segment(vlan, letter, letters))

    async def settle(self, sender: Guest, *receivers: Guest) -> None:
        """Send broadcasts until each receiver has got two, the second sent after the first was there."""
        arrived = 0
        async with asyncio.timeout(LIMIT_S):
            while arrived < 2:
                text = MARK + f"{next(SERIAL)};".encode()
                sender.send(said(sender.spec, text))
                arrived += all([await _holds(receiver, text) for receiver in receivers])

    async def remove(self) -> None:
        """Take everything down."""
        for guest in [*self.wires.values(), *(guest for lan in self.hosts.values() for guest in lan.guests)]:
            guest.close()
        for lan in self.hosts.values():
            await lan.switch.remove()
        if (namespace.FOLDER / self.core).exists():
            await run(["ip", "netns", "delete", self.core])

    @staticmethod
    async def _ip(name: str, lines: list[str]) -> None:
        await run(["ip", "-n", name, "-batch", "-"], text="\n".join(lines) + "\n")


def segment(vlan: int, letter: str, letters: str = "abc") -> SegmentSpec:
    """The VLAN as the host ``letter`` shares it with ``letters``."""
    peers = tuple(tunnel_of(other) for other in letters if POD_OF[other] != POD_OF[letter])
    return SegmentSpec(vlan=vlan, vni=5000 + vlan, trunk=True, peers=peers)


def tunnel_of(letter: str) -> str:
    return f"10.200.{POD_OF[letter]}.{ord(letter)}"


def said(sender: PortSpec, text: bytes) -> bytes:
    """A broadcast that may be sent by the machine."""
    packet = ipv4(sender.addresses[0], "255.255.255.255", UDP, udp(4000, 4001, text))
    return ethernet(BROADCAST, mac_of(sender), IPV4, packet)


def got(guest: Guest) -> list[bytes]:
    """Return what the guest got since it was asked last, but for sentinels."""
    frames = sorted(frame for frame in guest.inbox if MARK not in frame)
    guest.inbox.clear()
    return frames


async def _holds(receiver: Guest, text: bytes) -> bool:
    return await receiver.arrives(lambda: any(text in frame for frame in receiver.inbox), timeout_s=1)


def _uplinks(letter: str) -> Uplinks:
    address, gateway = f"{tunnel_of(letter)}/24", f"10.200.{POD_OF[letter]}.1"
    return Uplinks(trunk="trunk0", tunnel="tunnel0", tunnel_address=address, tunnel_gateway=gateway, public="public0")


def _core_settings() -> None:
    for key, value in (("ipv6/conf/default/disable_ipv6", "1"), ("ipv4/ip_forward", "1")):
        (Path("/proc/sys/net") / key).write_text(value)


async def everybody(site: Site, colour: int) -> list[Guest]:
    """Plug one machine of the account into each host; return them when all hear each other."""
    await site.join(colour)
    guests = [await site.plug(letter, machine(colour, 10 + number)) for number, letter in enumerate("abc")]
    for guest in guests:
        await site.settle(guest, *(other for other in guests if other is not guest))
    for guest in guests:
        assert got(guest) == []
    return guests
