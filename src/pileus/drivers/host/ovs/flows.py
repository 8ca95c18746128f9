"""Decides which OpenFlow flows a port needs; knows no socket, daemon or file.

Three tables. 0, admission: what a port may send; what no flow admits is dropped and counted. 1, VLAN: to which ports
of the sender's VLAN a frame goes. 2, delivery: the last check, for each port, that the frame is of the port's VLAN.
Nothing is learned: a unicast frame reaches the port that owns its destination MAC, or no port at all.
Register 0 holds the sender's VLAN, register 1 the port to deliver to. Source: ovs-fields(7), ovs-actions(7).
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import IntEnum

import msgspec
from msgspec import Struct

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.ovs.base import PortSpec

ADMISSION, VLAN, DELIVERY = 0, 1, 2
PORT_MARK, SHARED_MARK = 0x7069, 0x706A
MULTICAST = "01:00:00:00:00:00/01:00:00:00:00:00"
RESERVED_MULTICAST = "01:80:c2:00:00:00/ff:ff:ff:00:00:00"
"""Spanning tree, LLDP, pause frames and what else bridges say to each other (IEEE 802.1D 7.12.6)."""


class Role(IntEnum):
    """What a flow is for; the last byte of its cookie, so that counters can be added up by role."""

    admit = 1
    refuse = 2
    forward = 3
    deliver = 4
    foreign = 5
    hairpin = 6
    flood = 7
    base = 8


class Flow(Struct, frozen=True, kw_only=True):
    """One flow in the syntax of ovs-ofctl(8). ``match`` is empty for every frame."""

    table: int
    priority: int
    role: Role
    match: str
    actions: str


class FlowStat(Struct, frozen=True):
    """A flow found on the switch: its cookie and the packets that it matched."""

    cookie: int
    packets: int

    @property
    def role(self) -> int:
        """The role in the cookie, a number of ``Role``."""
        return self.cookie & 0xFF

    @property
    def ofport(self) -> int | None:
        """The port that the flow belongs to; None for flows of the whole bridge."""
        return (self.cookie >> 32) & 0xFFFF if self.cookie >> 48 == PORT_MARK else None


def check(spec: PortSpec) -> PortSpec:
    """Return ``spec`` in canonical form; it becomes text of flows, so nothing unchecked may be in it.

    Raises: DriverError (PortRefused).
    """
    mac = spec.mac.lower()
    if not re.fullmatch(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", mac) or mac == "00:00:00:00:00:00":
        raise DriverError("PortRefused", f"port {spec.id}: {spec.mac!r} is not a unicast MAC address")
    if not 1 <= spec.vlan <= 4094:
        raise DriverError("PortRefused", f"port {spec.id}: VLAN {spec.vlan} is not between 1 and 4094")
    if not 0 <= spec.rate_limit_kbps < 2**32:
        raise DriverError("PortRefused", f"port {spec.id}: a rate limit of {spec.rate_limit_kbps} kbit/s is impossible")
    try:
        addresses = [ipaddress.IPv4Address(address) for address in spec.addresses]
    except ValueError as exc:
        raise DriverError("PortRefused", f"port {spec.id}: {exc}") from exc
    for address in addresses:
        if address.is_multicast or address.is_unspecified or address.is_loopback or int(address) == 2**32 - 1:
            raise DriverError("PortRefused", f"port {spec.id}: {address} cannot be the address of one machine")
    return msgspec.structs.replace(spec, mac=mac, addresses=tuple(str(address) for address in addresses))


def tap_name(port: str) -> str:
    """Return the port's tap: ``p`` and 12 hexadecimal digits (IFNAMSIZ leaves 15 characters, netdevice(7))."""
    tail = re.search(r"[0-9a-f]{12}$", port)
    return "p" + (tail.group() if tail else hashlib.sha256(port.encode()).hexdigest()[:12])


def digest(spec: PortSpec) -> int:
    """Return 24 bits that tell one spec from another; flows carry it to say which spec they put in force."""
    text = repr((spec.mac, spec.addresses, spec.vlan, spec.rate_limit_kbps))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:3], "big")


def port_cookie(spec: PortSpec, ofport: int, role: Role) -> int:
    """Return the cookie: 16 bits mark, 16 bits port, 24 bits digest of the spec, 8 bits role."""
    return PORT_MARK << 48 | ofport << 32 | digest(spec) << 8 | role


def any_port_cookie(ofport: int) -> str:
    """Return the match of every flow of one port."""
    return f"cookie={PORT_MARK << 48 | ofport << 32:#x}/{0xFFFFFFFF << 32:#x}"


def tx_meter(ofport: int) -> int:
    """Return the number of the meter for what the guest sends."""
    return 2 * ofport


def rx_meter(ofport: int) -> int:
    """Return the number of the meter for what the guest receives."""
    return 2 * ofport + 1


def base_flows() -> list[Flow]:
    """Return what every table ends with: an explicit drop; a miss would ask a controller that is not there."""
    return [Flow(table=table, priority=0, role=Role.base, match="", actions="drop") for table in (0, 1, 2)]


def port_flows(spec: PortSpec, ofport: int) -> list[Flow]:
    """Return all flows of one port, ``spec`` having passed ``check``."""
    return [*_refusals(ofport), *_admissions(spec, ofport), *_deliveries(spec, ofport)]


def _refusals(ofport: int) -> list[Flow]:
    """What a guest may not send even from its own addresses; all else that is not admitted ends in the last one."""
    matches = (
        (500, f"in_port={ofport},dl_dst={RESERVED_MULTICAST}"),
        (400, f"in_port={ofport},udp,tp_src=67"),
        # Some DHCP clients look at the destination port only.
        (400, f"in_port={ofport},udp,tp_dst=68"),
        (400, f"in_port={ofport},icmp,icmp_type=5"),
        (1, f"in_port={ofport}"),
    )
    return [
        Flow(table=ADMISSION, priority=priority, role=Role.refuse, match=match, actions="drop")
        for priority, match in matches
    ]


def _admissions(spec: PortSpec, ofport: int) -> list[Flow]:
    """ARP and IPv4 from the port's own addresses, ARP probes for them (RFC 5227 2.1.1), and a DHCP client's questions.

    vlan_tci=0 is "no VLAN header at all". IPv6 is not admitted: no port has an IPv6 address yet.
    """
    sender = f"in_port={ofport},vlan_tci=0,dl_src={spec.mac}"
    matches = [f"{sender},udp,nw_src=0.0.0.0,nw_dst=255.255.255.255,tp_src=68,tp_dst=67"]
    for address in spec.addresses:
        matches.append(f"{sender},ip,nw_src={address}")
        matches.append(f"{sender},arp,arp_sha={spec.mac},arp_spa={address}")
        matches.append(f"{sender},arp,arp_op=1,arp_sha={spec.mac},arp_spa=0.0.0.0,arp_tpa={address}")
    meter = f"meter:{tx_meter(ofport)}," if spec.rate_limit_kbps else ""
    actions = f"{meter}load:{spec.vlan}->NXM_NX_REG0[],resubmit(,{VLAN})"
    return [Flow(table=ADMISSION, priority=300, role=Role.admit, match=match, actions=actions) for match in matches]


def _deliveries(spec: PortSpec, ofport: int) -> list[Flow]:
    here, own = f"reg1={ofport}", f"reg0={spec.vlan},reg1={ofport}"
    forward = f"load:{ofport}->NXM_NX_REG1[],resubmit(,{DELIVERY})"
    flows = [
        Flow(
            table=VLAN,
            priority=200,
            role=Role.forward,
            match=f"reg0={spec.vlan},dl_dst={spec.mac}",
            actions=forward,
        ),
        Flow(table=DELIVERY, priority=400, role=Role.hairpin, match=f"{here},in_port={ofport}", actions="drop"),
        Flow(table=DELIVERY, priority=200, role=Role.deliver, match=own, actions=f"output:{ofport}"),
        Flow(table=DELIVERY, priority=100, role=Role.foreign, match=here, actions="drop"),
    ]
    if spec.rate_limit_kbps:
        # Only unicast: a meter drops the packet for all actions after it, so it would cut a broadcast off for others.
        limited = f"meter:{rx_meter(ofport)},output:{ofport}"
        match = f"{own},dl_dst={spec.mac}"
        flows.append(Flow(table=DELIVERY, priority=300, role=Role.deliver, match=match, actions=limited))
    return flows


def flood_lines(vlan: int, ofports: Collection[int]) -> list[str]:
    """Return the bundle lines that send broadcast and multicast of ``vlan`` to exactly ``ofports``."""
    match = f"reg0={vlan},dl_dst={MULTICAST}"
    if not ofports:
        return [f"flow delete_strict table={VLAN},priority=100,{match}"]
    actions = ",".join(f"load:{port}->NXM_NX_REG1[],resubmit(,{DELIVERY})" for port in sorted(ofports))
    flow = Flow(table=VLAN, priority=100, role=Role.flood, match=match, actions=actions)
    return [_add(flow, SHARED_MARK << 48 | vlan << 32 | Role.flood)]


def all_flood_lines(ofports_by_vlan: Mapping[int, Collection[int]]) -> list[str]:
    """Return the bundle lines that leave exactly these floods, whatever a change that was cut short left behind."""
    cookie = f"cookie={SHARED_MARK << 48 | Role.flood:#x}/{0xFFFF << 48 | 0xFF:#x}"
    lines = [f"flow delete {cookie}"]
    for vlan, ofports in ofports_by_vlan.items():
        lines += flood_lines(vlan, ofports) if ofports else []
    return lines


def base_lines() -> list[str]:
    """Return the bundle lines of the flows that belong to the bridge."""
    return [_add(flow, SHARED_MARK << 48 | Role.base) for flow in base_flows()]


def put_lines(spec: PortSpec, ofport: int, in_force: PortSpec | None) -> list[str]:
    """Return the bundle lines that put ``spec`` in force; flows that stay keep their counters.

    ``in_force`` is the spec whose flows are known to be complete on the switch; None: whatever is there goes first.
    """
    wanted = port_flows(spec, ofport)
    if in_force is None:
        stale = [f"flow delete {any_port_cookie(ofport)}"]
    else:
        kept = {(flow.table, flow.priority, flow.match) for flow in wanted}
        stale = [
            f"flow delete_strict table={flow.table},priority={flow.priority},{flow.match}"
            for flow in port_flows(in_force, ofport)
            if (flow.table, flow.priority, flow.match) not in kept
        ]
    return stale + [_add(flow, port_cookie(spec, ofport, flow.role)) for flow in wanted]


def _add(flow: Flow, cookie: int) -> str:
    match = f",{flow.match}" if flow.match else ""
    return f"flow add cookie={cookie:#x},table={flow.table},priority={flow.priority}{match} actions={flow.actions}"


def delete_lines(ofport: int) -> list[str]:
    """Return the bundle lines that take every flow of a port away."""
    return [f"flow delete {any_port_cookie(ofport)}"]


def meter_text(meter: int, rate_kbps: int) -> str:
    """Return a meter that drops what is over the rate, with a fifth of a second of burst."""
    return f"meter={meter},kbps,burst,band=type=drop,rate={rate_kbps},burst_size={max(rate_kbps // 5, 256)}"


def parse_dump(text: str) -> list[FlowStat]:
    """Return the flows of an ``ovs-ofctl dump-flows``."""
    found = re.finditer(r"cookie=0x([0-9a-f]+),.*? n_packets=(\d+),", text)
    return [FlowStat(int(match[1], 16), int(match[2])) for match in found]


def is_in_force(spec: PortSpec, ofport: int, stats: Iterable[FlowStat]) -> bool:
    """Return whether the port's flows on the switch are those of ``spec``, all of them and no other."""
    wanted = Counter(port_cookie(spec, ofport, flow.role) for flow in port_flows(spec, ofport))
    return ofport > 0 and wanted == Counter(stat.cookie for stat in stats if stat.ofport == ofport)


def packets_by_port(stats: Iterable[FlowStat], roles: Sequence[Role]) -> Counter[int]:
    """Return, for each OpenFlow port, the packets that its flows of ``roles`` matched."""
    total: Counter[int] = Counter()
    for stat in stats:
        if stat.ofport is not None and stat.role in roles:
            total[stat.ofport] += stat.packets
    return total
