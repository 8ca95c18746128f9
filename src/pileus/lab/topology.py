"""Where everything of a lab is: which host in which pod and zone, its cables, its addresses. Pure.

A network namespace is a machine or a switch: one per host, a rack switch per pod, a public switch per zone, the switch
of the management network, a router (the core) between pods, zones and the test host, and the test host ``internet``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from msgspec import Struct

from pileus.drivers.host.ovs.base import Uplinks
from pileus.kernel.errors import Rejected

LINKS = ("mgmt", "trunk", "tunnel", "public")
"""The cables of a host, each with the device ``<link>0`` at its end."""

MTU = 1600
"""Of racks and tunnels: VXLAN needs 50 bytes more than a guest's 1500 (RFC 7348), a tag 4."""

CORE, INTERNET, MANAGEMENT = "core", "internet", "mgmt"

MANAGEMENT_RANGE = ipaddress.IPv4Network("10.199.0.0/24")
UNDERLAY = ipaddress.IPv4Network("10.200.0.0/16")
INTERNET_RANGE = ipaddress.IPv4Network("192.0.2.0/24")
SERVER_ADDRESS = str(MANAGEMENT_RANGE[1])
SERVER_PORT = 7443
"""Where agents find the server, inside the management network."""
INTERNET_ADDRESS = str(INTERNET_RANGE[10])

_PUBLIC_RANGES = ("203.0.113.0/24", "198.51.100.0/24")
"""RFC 5737; further zones take from those of RFC 2544, 198.18.0.0/15."""


class Layout(Struct, frozen=True, kw_only=True):
    """How many of what; pods are spread over the zones and hosts over the pods, as evenly as may be, in order."""

    hosts: int
    pods: int
    zones: int

    def check(self) -> None:
        """Raises: Rejected when a pod or a zone would be empty."""
        if not 1 <= self.zones <= self.pods <= self.hosts:
            raise Rejected(f"{self}: every zone needs a pod, and every pod a host; choose --zones <= --pods <= --hosts")

    def __str__(self) -> str:
        return ", ".join(
            f"{count} {word}{'' if count == 1 else 's'}"
            for count, word in ((self.hosts, "host"), (self.pods, "pod"), (self.zones, "zone"))
        )


class Zone(Struct, frozen=True, kw_only=True):
    """A zone with its public segment; number 1 is ``zone1``."""

    number: int

    @property
    def name(self) -> str:
        """Of the zone, and of the switch of its public segment."""
        return f"zone{self.number}"

    @property
    def public(self) -> ipaddress.IPv4Network:
        """The range of its public segment."""
        known = _PUBLIC_RANGES[self.number - 1 : self.number]
        return ipaddress.IPv4Network(known[0] if known else f"198.18.{self.number}.0/24")

    @property
    def gateway(self) -> str:
        """The core's address on the public segment."""
        return str(self.public[1])

    @property
    def desired(self) -> dict[str, str]:
        """What the cloud is told: the public range, and that networks get routing appliances."""
        return {
            "router": "single",
            "public_range": str(self.public),
            "public_gateway": self.gateway,
            "public_first": str(self.public[16]),
            "public_last": str(self.public[254]),
        }


class Pod(Struct, frozen=True, kw_only=True):
    """A pod with its rack switch and its part of the underlay."""

    number: int
    zone: Zone

    @property
    def name(self) -> str:
        """Of the pod, and of its rack switch."""
        return f"pod{self.number}"

    @property
    def underlay(self) -> ipaddress.IPv4Network:
        """The range of its tunnel addresses."""
        return ipaddress.IPv4Network(f"10.200.{self.number}.0/24")

    @property
    def gateway(self) -> str:
        """The core's address on it: the way to other pods."""
        return str(self.underlay[1])


class Host(Struct, frozen=True, kw_only=True):
    """A host; ``position`` is its place in its pod, from 1."""

    number: int
    position: int
    pod: Pod

    @property
    def name(self) -> str:
        """Of the host, and of its namespace in the lab."""
        return f"host{self.number}"

    @property
    def management_address(self) -> str:
        """Where its agent speaks with the server."""
        return str(MANAGEMENT_RANGE[10 + self.number])

    @property
    def management_mac(self) -> str:
        """Of ``mgmt0``."""
        return f"02:00:5e:10:00:{self.number:02x}"

    @property
    def uplinks(self) -> Uplinks:
        """What its agent is told of its cables."""
        return Uplinks(
            trunk="trunk0",
            tunnel="tunnel0",
            tunnel_address=f"{self.pod.underlay[10 + self.position]}/{self.pod.underlay.prefixlen}",
            tunnel_gateway=self.pod.gateway,
            public="public0",
        )


class Cable(Struct, frozen=True, kw_only=True):
    """A pair of veths. ``port`` is the switch's end, a port of the bridge ``bridge``."""

    machine: str
    device: str
    switch: str
    port: str
    bridge: str
    mtu: int = 1500
    mac: str = ""


class Topology(Struct, frozen=True, kw_only=True):
    """All of a lab."""

    zones: tuple[Zone, ...]
    pods: tuple[Pod, ...]
    hosts: tuple[Host, ...]

    @property
    def machines(self) -> list[str]:
        """Every namespace of the lab."""
        switches = [*(pod.name for pod in self.pods), *(zone.name for zone in self.zones), MANAGEMENT]
        return [CORE, INTERNET, *switches, *(host.name for host in self.hosts)]

    @property
    def bridges(self) -> list[tuple[str, str, int]]:
        """Every bridge: its switch, its name and its MTU."""
        racks = [(pod.name, name, MTU) for pod in self.pods for name in ("trunk", "tunnel")]
        return [*racks, *((zone.name, "public", 1500) for zone in self.zones), (MANAGEMENT, "mgmt", 1500)]

    @property
    def cables(self) -> list[Cable]:
        """Every cable that ends at a switch."""
        found = [cable for host in self.hosts for cable in cables(host).values()]
        for pod in self.pods:
            found.append(Cable(machine=CORE, device=pod.name, switch=pod.name, port="core", bridge="tunnel", mtu=MTU))
        for zone in self.zones:
            found.append(Cable(machine=CORE, device=zone.name, switch=zone.name, port="core", bridge="public"))
        return found

    @property
    def addresses(self) -> Iterator[tuple[str, str, str]]:
        """Yield every address that the lab itself gives: machine, device and CIDR. The switch takes its tunnel's."""
        yield MANAGEMENT, "mgmt", f"{SERVER_ADDRESS}/{MANAGEMENT_RANGE.prefixlen}"
        yield INTERNET, "eth0", f"{INTERNET_ADDRESS}/{INTERNET_RANGE.prefixlen}"
        yield CORE, INTERNET, f"{INTERNET_RANGE[1]}/{INTERNET_RANGE.prefixlen}"
        for pod in self.pods:
            yield CORE, pod.name, f"{pod.gateway}/{pod.underlay.prefixlen}"
        for zone in self.zones:
            yield CORE, zone.name, f"{zone.gateway}/{zone.public.prefixlen}"
        for host in self.hosts:
            yield host.name, "mgmt0", f"{host.management_address}/{MANAGEMENT_RANGE.prefixlen}"


def topology(layout: Layout) -> Topology:
    """Return what a layout means. Raises: Rejected when it cannot be."""
    layout.check()
    zones = tuple(Zone(number=number + 1) for number in range(layout.zones))
    pods = tuple(
        Pod(number=number + 1, zone=zones[number * layout.zones // layout.pods]) for number in range(layout.pods)
    )
    hosts: list[Host] = []
    for number in range(layout.hosts):
        pod = pods[number * layout.pods // layout.hosts]
        position = sum(host.pod == pod for host in hosts) + 1
        hosts.append(Host(number=number + 1, position=position, pod=pod))
    return Topology(zones=zones, pods=pods, hosts=tuple(hosts))


def cables(host: Host) -> dict[str, Cable]:
    """Return a host's cables by link."""
    rack, zone = host.pod.name, host.pod.zone.name
    ends = {"mgmt": (MANAGEMENT, "mgmt", 1500), "trunk": (rack, "trunk", MTU), "tunnel": (rack, "tunnel", MTU),
            "public": (zone, "public", 1500)}  # fmt: skip
    return {
        link: Cable(
            machine=host.name,
            device=f"{link}0",
            switch=switch,
            port=f"{link}-{host.name}",
            bridge=bridge,
            mtu=mtu,
            mac=host.management_mac if link == "mgmt" else "",
        )
        for link, (switch, bridge, mtu) in ends.items()
    }
