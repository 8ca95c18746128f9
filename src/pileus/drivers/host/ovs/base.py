"""The contract of a virtual switch: ports by id, each with its tap, its VLAN, its addresses and its flows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from msgspec import Struct

PUBLIC_VLAN = 0
"""In place of a VLAN: the zone's public segment, untagged on the public uplink."""


APART = 4095
"""In place of a VLAN (802.1Q reserves it): of none. The switch takes nothing from such a port and gives it nothing."""

STRAY = -1
"""In place of a VLAN, of frames that should not have arrived; see ``Switch.vlan_counts``."""


class Uplinks(Struct, frozen=True, kw_only=True):
    """How this host meets others: network devices in the switch's namespace; empty: it has no such link.

    ``trunk`` carries the guests' VLANs, tagged, to the hosts of the pod. ``tunnel`` carries VXLAN to the hosts of other
    pods (all hosts, in a zone with isolation vxlan); ``tunnel_address`` (CIDR) is this host's on it, ``tunnel_gateway``
    the way to other pods. ``public`` is the public segment, untagged.

    Three devices, of the switch alone, without addresses. Guests have an MTU of 1,500, so the tunnel and all on its way
    need 1,550; with less, their longest frames are lost (and the switch logs a warning). Frames must come in as they
    were on the wire: where a kernel is at the other end (a veth), its checksum and segmentation offloads are off.
    A device may come later or come anew: what needs it is not in force until then.
    """

    trunk: str = ""
    tunnel: str = ""
    tunnel_address: str = ""
    tunnel_gateway: str = ""
    public: str = ""


class Station(Struct, frozen=True, kw_only=True):
    """A machine of another site behind a port, as in a stretched network."""

    mac: str
    addresses: tuple[str, ...]


class PortSpec(Struct, frozen=True, kw_only=True):
    """A port of a VM. ``addresses`` are the only IPv4 addresses it may use, ``mac`` its only MAC.

    1 <= ``vlan`` <= 4094, ``PUBLIC_VLAN`` or ``APART``. ``rate_limit_kbps`` 0 means no limit; it holds in each direction.
    ``routes``: any IPv4 source address may come out of it that is of no other port of this host in its VLAN (a router
    forwards), and DHCP answers in its own name. ``stations``: those that may speak through it besides (IPv4 and ARP), with
    their own MACs, which are sent to it from all hosts. ``isolated``: nothing passes it in either direction, but for its
    control path (``exchange``).
    """

    id: str
    mac: str
    addresses: tuple[str, ...]
    vlan: int
    rate_limit_kbps: int = 0
    routes: bool = False
    stations: tuple[Station, ...] = ()
    isolated: bool = False


class SegmentSpec(Struct, frozen=True, kw_only=True):
    """A VLAN as this host shares it with others. ``vni`` is its VXLAN number.

    ``trunk``: it also goes, tagged, over the trunk. ``peers``: tunnel addresses of the hosts that have ports in it and
    are reached by VXLAN; this host's own among them says nothing. What came over trunk or tunnel goes to ports of this
    host only, and by tunnel nothing is taken from others than ``peers``.
    """

    vlan: int
    vni: int
    trunk: bool
    peers: tuple[str, ...] = ()


class PortFact(Struct, frozen=True, kw_only=True):
    """A port as it is on the switch: its spec as last put in force, and its tap.

    ``blocked`` is true from the moment the port exists until its flows are in force; a blocked port passes nothing.
    """

    id: str
    tap: str
    mac: str
    addresses: tuple[str, ...]
    vlan: int
    rate_limit_kbps: int = 0
    routes: bool = False
    stations: tuple[Station, ...] = ()
    isolated: bool = False
    blocked: bool = False


class PortCounters(Struct, frozen=True, kw_only=True):
    """Totals since the port was made, seen from the guest: ``rx`` is what the guest received.

    ``dropped_packets``: frames of the guest that the anti-spoofing flows refused, or that it sent while isolated.
    """

    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int
    dropped_packets: int = 0


ETHERTYPE_CONTROL = 0x88B5
"""Of the frames between host and appliance (IEEE 802 local experimental 1)."""


class FrameExchange(Protocol):
    """The control path of one port; payloads without Ethernet header, at most 1,400 bytes.

    They may be lost, the more so what a guest sends faster than 1,000 in a second or than it is received; a guest's NIC
    may have padded short ones to 46 bytes.
    """

    async def send(self, payload: bytes) -> None:
        """Put a frame into the guest's NIC."""

    async def receive(self) -> bytes:
        """Return the next payload that the guest sent; empty when the path is closed."""

    async def close(self) -> None:
        """Let go."""


class Switch(Protocol):
    """The integration bridge of one host. Every call is idempotent."""

    async def open(self) -> None:
        """Make sure that namespace, daemons and bridge are there; adopt them when they are. Raises MissingTool."""

    async def close(self) -> None:
        """Let go; daemons, ports and traffic go on."""

    def namespace(self) -> str | None:
        """Return the name of the network namespace that holds bridge and taps (None: there is none, as in the fake)."""

    async def observe(self) -> dict[str, PortFact]:
        """Return every port that Pileus made on this bridge."""

    async def plug(self, spec: PortSpec) -> PortFact:
        """Make the port be as ``spec`` says: tap, bridge port with its tag, flows, rate. Changes it in place.

        Raises: OvsdbError; DriverError (TapRefused, PortRefused for a spec that cannot be, MacTaken; UplinkMissing when
        all else is done: it is a public port, and blocked as long as the public uplink is not there).
        """

    async def unplug(self, port: str) -> None:
        """Remove the port's flows, bridge port, queues and tap."""

    async def segments(self) -> dict[int, SegmentSpec]:
        """Return every segment in force, by VLAN."""

    async def join(self, spec: SegmentSpec) -> None:
        """Make the segment be as ``spec`` says; until then the VLAN ends at this host.

        Raises: OvsdbError; DriverError (SegmentRefused, VniTaken; UplinkMissing when all else is done: a device that is
        configured is not there. A device that is not configured is never missed).
        """

    async def leave(self, vlan: int) -> None:
        """Let the VLAN end at this host; nothing of it stays on trunk or tunnel."""

    async def counters(self) -> dict[str, PortCounters]:
        """Return the counters of every port."""

    async def sent_bytes(self, ports: Collection[str]) -> dict[str, int]:
        """Return what the guests behind these ports sent since each port was made; none for a port that is not there.

        Cheap: the kernel's counters are read once, and the switch is not asked.
        """

    async def vlan_counts(self) -> dict[str, dict[int, int]]:
        """Return, for each port, the frames that reached it, by the VLAN of the port that sent them.

        A port's own VLAN (``PUBLIC_VLAN`` for the public segment) is always there, also for what other hosts sent in it;
        frames of the control path are not counted. Key ``STRAY`` holds frames that reached the tap and that neither
        explains; there is no such key as long as the isolation holds.
        """

    async def open_tap(self, tap: str) -> int:
        """Return a file descriptor of a port's tap for a machine's NIC; the caller owns it.

        It carries bare Ethernet frames (no header before them, no offloads). Raises: DriverError (TapRefused) when
        there is no such tap, another machine has it open, or the switch has no taps at all.
        """

    async def exchange(self, port: str) -> FrameExchange:
        """Open the reserved control path of a port: frames of ETHERTYPE_CONTROL that the switch puts in and takes out.

        No flow of a tenant ever sees them; a guest's own frames of that type go nowhere else. One owner per port: a
        second open ends the first. Raises: DriverError (NoPort).
        """

    async def remove(self) -> None:
        """Take everything down: ports, bridge, daemons, namespace, files."""
