"""The contract of a virtual switch: ports by id, each with its tap, its VLAN, its addresses and its flows."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct


class PortSpec(Struct, frozen=True, kw_only=True):
    """A port of a VM. ``addresses`` are the only IPv4 addresses it may use, ``mac`` its only MAC.

    1 <= ``vlan`` <= 4094. ``rate_limit_kbps`` 0 means no limit; it holds in each direction.
    """

    id: str
    mac: str
    addresses: tuple[str, ...]
    vlan: int
    rate_limit_kbps: int = 0


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
    blocked: bool = False


class PortCounters(Struct, frozen=True, kw_only=True):
    """Totals since the port was made, seen from the guest: ``rx`` is what the guest received.

    ``dropped_packets``: frames of the guest that the anti-spoofing flows refused.
    """

    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int
    dropped_packets: int = 0


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

        Raises: OvsdbError; DriverError (TapRefused, PortRefused for a spec that cannot be, MacTaken).
        """

    async def unplug(self, port: str) -> None:
        """Remove the port's flows, bridge port, queues and tap."""

    async def counters(self) -> dict[str, PortCounters]:
        """Return the counters of every port."""

    async def vlan_counts(self) -> dict[str, dict[int, int]]:
        """Return, for each port, the frames that reached it, by the VLAN of the port that sent them.

        A port's own VLAN is always there. Key 0 holds frames that reached the tap and that no delivery from the port's
        VLAN explains; there is no such key as long as the isolation holds.
        """

    async def open_tap(self, tap: str) -> int:
        """Return a file descriptor of a port's tap for a machine's NIC; the caller owns it.

        It carries bare Ethernet frames (no header before them, no offloads). Raises: DriverError (TapRefused) when
        there is no such tap, another machine has it open, or the switch has no taps at all.
        """

    async def remove(self) -> None:
        """Take everything down: ports, bridge, daemons, namespace, files."""
