"""Decides which OpenFlow flows a port needs; knows no socket, daemon or file.

Six tables. Admission: what a port may send; what no flow admits is dropped and counted. Forwarded: what a router may
forward. Inbound: what came over an uplink. VLAN: to which ports of the sender's VLAN a frame goes. Delivery: the last
check, for each port, that the frame is of the port's VLAN. Outbound: what goes to other hosts (see ``segments``).
On this host nothing is learned: a unicast frame reaches the port that owns its destination MAC, or leaves the host.
Register 0 holds the sender's segment, register 1 the port to deliver to, register 2 whether it came over an uplink.
Source: ovs-fields(7), ovs-actions(7).
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum

import msgspec
from msgspec import Struct

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.ovs.base import APART, PUBLIC_VLAN, PortFact, PortSpec, Station

ADMISSION, VLAN, DELIVERY, INBOUND, OUTBOUND, FORWARDED = 0, 1, 2, 3, 4, 5
PORT_MARK, SHARED_MARK, SEGMENT_MARK, CONTROL_MARK, LEARNED_MARK = 0x7069, 0x706A, 0x706B, 0x706C, 0x7169
OURS = f"cookie={0x70 << 56:#x}/{0xFF << 56:#x}"
"""The match of all flows of Pileus, without those that the switch has learned: they may be many."""

PUBLIC_REGISTER = 4096
"""The public segment in register 0: no VLAN's number, and not the 0 that an unset register holds."""

MULTICAST = "01:00:00:00:00:00/01:00:00:00:00:00"
UNICAST = "00:00:00:00:00:00/01:00:00:00:00:00"
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
    impostor = 9
    owned = 10
    inbound = 11
    learn = 12
    outbound = 13
    control = 14


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
    def mark(self) -> int:
        """Whose flow it is: a port's, a segment's, the bridge's."""
        return self.cookie >> 48

    @property
    def number(self) -> int:
        """The port or VLAN that the flow belongs to."""
        return (self.cookie >> 32) & 0xFFFF

    @property
    def ofport(self) -> int | None:
        """The port that the flow belongs to; None for flows of others."""
        return self.number if self.mark == PORT_MARK else None


def check(spec: PortSpec) -> PortSpec:
    """Return ``spec`` in canonical form; it becomes text of flows, so nothing unchecked may be in it.

    Raises: DriverError (PortRefused).
    """
    if spec.vlan not in (PUBLIC_VLAN, APART) and not 1 <= spec.vlan <= 4094:
        raise DriverError("PortRefused", f"port {spec.id}: VLAN {spec.vlan} is not between 1 and 4094")
    if not 0 <= spec.rate_limit_kbps < 2**32:
        raise DriverError("PortRefused", f"port {spec.id}: a rate limit of {spec.rate_limit_kbps} kbit/s is impossible")
    try:
        mac, addresses = _mac(spec.mac), _addresses(spec.addresses)
        stations = tuple(Station(mac=_mac(each.mac), addresses=_addresses(each.addresses)) for each in spec.stations)
    except ValueError as exc:
        raise DriverError("PortRefused", f"port {spec.id}: {exc}") from exc
    checked = msgspec.structs.replace(spec, mac=mac, addresses=addresses, stations=stations)
    if len({mac, *(each.mac for each in stations)}) != 1 + len(stations):
        raise DriverError("PortRefused", f"port {spec.id}: two of its machines have one MAC address")
    return checked


def _mac(text: str) -> str:
    mac = text.lower()
    if not re.fullmatch(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", mac) or mac == "00:00:00:00:00:00":
        raise ValueError(f"{text!r} is not a unicast MAC address")
    return mac


def _addresses(texts: Sequence[str]) -> tuple[str, ...]:
    addresses = [ipaddress.IPv4Address(text) for text in texts]
    for address in addresses:
        if address.is_multicast or address.is_unspecified or address.is_loopback or int(address) == 2**32 - 1:
            raise ValueError(f"{address} cannot be the address of one machine")
    return tuple(str(address) for address in addresses)


def register(vlan: int) -> int:
    """Return what register 0 holds for frames of the VLAN."""
    return PUBLIC_REGISTER if vlan == PUBLIC_VLAN else vlan


def refuse_taken_macs(spec: PortSpec, others: Iterable[PortSpec | PortFact]) -> None:
    """Raise DriverError (MacTaken): ports have MACs of their own on a host, stations in their VLAN."""
    stations = {station.mac for station in spec.stations}
    for other in others:
        if other.id == spec.id:
            continue
        theirs = {station.mac for station in other.stations}
        taken = {spec.mac} & {other.mac}
        if other.vlan == spec.vlan:
            taken |= (stations | {spec.mac}) & (theirs | {other.mac})
        if taken:
            mac = min(taken)
            raise DriverError("MacTaken", f"port {spec.id}: port {other.id} of this host has MAC {mac} already")


def tap_name(port: str) -> str:
    """Return the port's tap: ``p`` and 12 hexadecimal digits (IFNAMSIZ leaves 15 characters, netdevice(7))."""
    tail = re.search(r"[0-9a-f]{12}$", port)
    return "p" + (tail.group() if tail else hashlib.sha256(port.encode()).hexdigest()[:12])


def digest(spec: PortSpec) -> int:
    """Return 24 bits that tell one spec from another; flows carry it to say which spec they put in force."""
    parts: list[object] = [spec.mac, spec.addresses, spec.vlan, spec.rate_limit_kbps, spec.routes, spec.stations]
    # Only where it says something: flows of switches that run since before there was isolation stay in force.
    return short_digest(*parts, *(["isolated"] if spec.isolated else []))


def short_digest(*parts: object) -> int:
    """Return 24 bits that tell one tuple of plain values from another."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:3], "big")


def port_cookie(spec: PortSpec, ofport: int, role: Role) -> int:
    """Return the cookie: 16 bits mark, 16 bits port, 24 bits digest of the spec, 8 bits role."""
    return PORT_MARK << 48 | ofport << 32 | digest(spec) << 8 | role


def any_cookie(mark: int, number: int) -> str:
    """Return the match of every flow of one port, segment or control path."""
    return f"cookie={mark << 48 | number << 32:#x}/{0xFFFFFFFF << 32:#x}"


def tx_meter(ofport: int) -> int:
    """Return the number of the meter for what the guest sends."""
    return 2 * ofport


def rx_meter(ofport: int) -> int:
    """Return the number of the meter for what the guest receives."""
    return 2 * ofport + 1


def base_flows() -> list[Flow]:
    """Return what ends every table; a miss would ask a controller that is not there.

    What nobody on this host owns goes on to other hosts, unless it came from there.
    """
    ends = {VLAN: f"resubmit(,{OUTBOUND})", FORWARDED: f"resubmit(,{VLAN})"}
    last = [
        Flow(table=table, priority=0, role=Role.base, match="", actions=ends.get(table, "drop"))
        for table in (ADMISSION, VLAN, DELIVERY, INBOUND, OUTBOUND, FORWARDED)
    ]
    return [*last, Flow(table=OUTBOUND, priority=300, role=Role.base, match="reg2=1", actions="drop")]


def port_flows(spec: PortSpec, ofport: int) -> list[Flow]:
    """Return all flows of one port, ``spec`` having passed ``check``."""
    if spec.vlan == APART:
        return _refusals(ofport)
    macs = [spec.mac, *(station.mac for station in spec.stations)]
    if spec.isolated:
        return [*_refusals(ofport), *_ways(spec, macs, ofport), _closed(ofport)]
    admissions = [
        *_admissions(spec, ofport),
        *(flow for station in spec.stations for flow in _station_admissions(spec, station, ofport)),
        *(_routed(spec, ofport) if spec.routes else ()),
    ]
    return [*_refusals(ofport), *admissions, *_ways(spec, macs, ofport), *_deliveries(spec, ofport)]


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
    sender = _sender(ofport, spec.mac)
    matches = [f"{sender},udp,nw_src=0.0.0.0,nw_dst=255.255.255.255,tp_src=68,tp_dst=67"]
    matches += _spoken(sender, spec.mac, spec.addresses)
    matches += [f"{sender},arp,arp_op=1,arp_sha={spec.mac},arp_spa=0.0.0.0,arp_tpa={each}" for each in spec.addresses]
    return [_admit(spec, ofport, 300, match) for match in matches]


def _station_admissions(spec: PortSpec, station: Station, ofport: int) -> list[Flow]:
    sender = _sender(ofport, station.mac)
    return [_admit(spec, ofport, 300, match) for match in _spoken(sender, station.mac, station.addresses)]


def _routed(spec: PortSpec, ofport: int) -> list[Flow]:
    """A router's DHCP answers in its own name, and what it forwards: IPv4 of any source that is not a neighbour's."""
    sender = _sender(ofport, spec.mac)
    answers = [_admit(spec, ofport, 450, f"{sender},udp,nw_src={each},tp_src=67") for each in spec.addresses]
    return [*answers, _admit(spec, ofport, 250, f"{sender},ip", then=FORWARDED)]


def _sender(ofport: int, mac: str) -> str:
    return f"in_port={ofport},vlan_tci=0,dl_src={mac}"


def _spoken(sender: str, mac: str, addresses: Sequence[str]) -> list[str]:
    return [
        match
        for address in addresses
        for match in (f"{sender},ip,nw_src={address}", f"{sender},arp,arp_sha={mac},arp_spa={address}")
    ]


def _admit(spec: PortSpec, ofport: int, priority: int, match: str, then: int = VLAN) -> Flow:
    meter = f"meter:{tx_meter(ofport)}," if spec.rate_limit_kbps else ""
    actions = f"{meter}load:{register(spec.vlan)}->NXM_NX_REG0[],resubmit(,{then})"
    return Flow(table=ADMISSION, priority=priority, role=Role.admit, match=match, actions=actions)


def _ways(spec: PortSpec, macs: Sequence[str], ofport: int) -> list[Flow]:
    """Frames to ``macs`` go to the port; over an uplink nothing comes in their name."""
    segment = f"reg0={register(spec.vlan)}"
    forward = f"load:{ofport}->NXM_NX_REG1[],resubmit(,{DELIVERY})"
    ways = [
        Flow(table=VLAN, priority=200, role=Role.forward, match=f"{segment},dl_dst={mac}", actions=forward)
        for mac in macs
    ]
    impostors = [
        Flow(table=INBOUND, priority=200, role=Role.impostor, match=f"{segment},dl_src={mac}", actions="drop")
        for mac in macs
    ]
    return ways + impostors


def _closed(ofport: int) -> Flow:
    """Nothing is delivered. Frames to the port end here, so they are not looked for on other hosts."""
    return Flow(table=DELIVERY, priority=500, role=Role.foreign, match=f"reg1={ofport}", actions="drop")


def _deliveries(spec: PortSpec, ofport: int) -> list[Flow]:
    here, own = f"reg1={ofport}", f"reg0={register(spec.vlan)},reg1={ofport}"
    flows = [
        Flow(table=DELIVERY, priority=400, role=Role.hairpin, match=f"{here},in_port={ofport}", actions="drop"),
        Flow(table=DELIVERY, priority=200, role=Role.deliver, match=own, actions=f"output:{ofport}"),
        Flow(table=DELIVERY, priority=100, role=Role.foreign, match=here, actions="drop"),
    ]
    if spec.rate_limit_kbps:
        # Only unicast: a meter drops the packet for all actions after it, so it would cut a broadcast off for others.
        limited = f"meter:{rx_meter(ofport)},output:{ofport}"
        match = f"{own},dl_dst={UNICAST}"
        flows.append(Flow(table=DELIVERY, priority=300, role=Role.deliver, match=match, actions=limited))
    return flows


def shared_lines(vlan: int, members: Mapping[int, PortSpec]) -> list[str]:
    """Return the bundle lines of what the ports of ``vlan`` (OpenFlow port: its spec, all of them) have in common."""
    if vlan == APART:
        return []
    return [*_flood_lines(vlan, members), *_owned_lines(vlan, members)]


def _flood_lines(vlan: int, members: Mapping[int, PortSpec]) -> list[str]:
    """Broadcast and multicast go to all of them, and to other hosts."""
    match = f"reg0={register(vlan)},dl_dst={MULTICAST}"
    if not members:
        return [f"flow delete_strict table={VLAN},priority=100,{match}"]
    each = "".join(f"load:{ofport}->NXM_NX_REG1[],resubmit(,{DELIVERY})," for ofport in sorted(members))
    flow = Flow(table=VLAN, priority=100, role=Role.flood, match=match, actions=f"{each}resubmit(,{OUTBOUND})")
    return [add_line(flow, shared_cookie(vlan, Role.flood))]


def _owned_lines(vlan: int, members: Mapping[int, PortSpec]) -> list[str]:
    """What a router of this VLAN may not forward: packets from addresses of its neighbours."""
    cookie = shared_cookie(vlan, Role.owned)
    stale = f"flow delete cookie={cookie:#x}/{2**64 - 1:#x}"
    if not any(spec.routes for spec in members.values()):
        return [stale]
    owned = {address for spec in members.values() for address in spec.addresses}
    owned |= {address for spec in members.values() for station in spec.stations for address in station.addresses}
    flows = [
        Flow(table=FORWARDED, priority=100, role=Role.owned, match=f"reg0={register(vlan)},ip,nw_src={address}",
             actions="drop")
        for address in sorted(owned)
    ]  # fmt: skip
    return [stale, *(add_line(flow, cookie) for flow in flows)]


def all_shared_lines(members_by_vlan: Mapping[int, Mapping[int, PortSpec]]) -> list[str]:
    """Return the bundle lines that leave exactly these, whatever a change that was cut short left behind."""
    lines = [
        f"flow delete cookie={SHARED_MARK << 48 | role:#x}/{0xFFFF << 48 | 0xFF:#x}"
        for role in (Role.flood, Role.owned)
    ]
    for vlan, members in members_by_vlan.items():
        lines += shared_lines(vlan, members) if members else []
    return lines


def shared_cookie(vlan: int, role: Role) -> int:
    """Return the cookie of a flow of the bridge or of all ports of a VLAN."""
    return SHARED_MARK << 48 | vlan << 32 | role


def base_lines() -> list[str]:
    """Return the bundle lines of the flows that belong to the bridge."""
    return [add_line(flow, shared_cookie(0, Role.base)) for flow in base_flows()]


def put_lines(spec: PortSpec, ofport: int, in_force: PortSpec | None) -> list[str]:
    """Return the bundle lines that put ``spec`` in force; flows that stay keep their counters.

    ``in_force`` is the spec whose flows are known to be complete on the switch; None: whatever is there goes first.
    """
    wanted = port_flows(spec, ofport)
    if in_force is None:
        stale = delete_lines(ofport)
    else:
        kept = {(flow.table, flow.priority, flow.match) for flow in wanted}
        stale = [
            f"flow delete_strict table={flow.table},priority={flow.priority},{flow.match}"
            for flow in port_flows(in_force, ofport)
            if (flow.table, flow.priority, flow.match) not in kept
        ]
    return stale + [add_line(flow, port_cookie(spec, ofport, flow.role)) for flow in wanted]


def add_line(flow: Flow, cookie: int) -> str:
    """Return the bundle line that adds the flow."""
    match = f",{flow.match}" if flow.match else ""
    return f"flow add cookie={cookie:#x},table={flow.table},priority={flow.priority}{match} actions={flow.actions}"


def delete_lines(ofport: int) -> list[str]:
    """Return the bundle lines that take every flow of a port away."""
    return [f"flow delete {any_cookie(PORT_MARK, ofport)}"]


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


def control_packets(stats: Iterable[FlowStat]) -> Counter[int]:
    """Return, for each OpenFlow port, the frames of its control path that reached it."""
    total: Counter[int] = Counter()
    for stat in stats:
        if (stat.mark, stat.role) == (CONTROL_MARK, Role.control):
            total[stat.number] += stat.packets
    return total
