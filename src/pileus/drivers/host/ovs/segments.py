"""Decides which OpenFlow flows join a segment to other hosts; knows no socket, daemon or file.

Over the trunk frames carry their VLAN, over the tunnel the segment's VXLAN number; only joined segments and, by tunnel,
only their peers are let in. Whatever comes in goes to ports of this host and never out again. Behind which uplink and
peer a MAC is, is learned from what it sends, as a bridge does it; frames to others go to all of them.
Source: ovs-actions(7) on ``learn``.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable

import msgspec

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.ovs.base import ETHERTYPE_CONTROL, PUBLIC_VLAN, SegmentSpec, Uplinks
from pileus.drivers.host.ovs.flows import (
    ADMISSION,
    INBOUND,
    LEARNED_MARK,
    OUTBOUND,
    RESERVED_MULTICAST,
    SEGMENT_MARK,
    UNICAST,
    VLAN,
    Flow,
    FlowStat,
    Role,
    add_line,
    any_cookie,
    register,
    shared_cookie,
    short_digest,
)

NO_UPLINKS = Uplinks()
"""Of a host that is alone."""

TRUNK_PORT, TUNNEL_PORT, PUBLIC_PORT = 65_001, 65_002, 65_003
"""OpenFlow ports of the uplinks, the same on every host; the switch numbers taps from 1."""

FORGET_S = 300
"""How long a MAC is remembered after its last frame: what IEEE 802.1D recommends."""

LEARNED_MAX = 16_384
"""MACs that one segment remembers on one host; frames to more are flooded."""


def check_segment(spec: SegmentSpec) -> SegmentSpec:
    """Return ``spec`` in canonical form; it becomes text of flows. Raises: DriverError (SegmentRefused)."""
    if not 1 <= spec.vlan <= 4094:
        raise DriverError("SegmentRefused", f"segment: VLAN {spec.vlan} is not between 1 and 4094")
    if not 0 <= spec.vni < 2**24:
        raise DriverError("SegmentRefused", f"segment {spec.vlan}: {spec.vni} is not a VXLAN number")
    try:
        peers = sorted({ipaddress.IPv4Address(peer) for peer in spec.peers})
    except ValueError as exc:
        raise DriverError("SegmentRefused", f"segment {spec.vlan}: peer {exc}") from exc
    return msgspec.structs.replace(spec, peers=tuple(str(peer) for peer in peers))


def refuse_taken_vni(spec: SegmentSpec, others: Iterable[SegmentSpec]) -> None:
    """Raise DriverError (VniTaken) when another segment of this host has the number."""
    for other in others:
        if spec.vni and other.vlan != spec.vlan and other.vni == spec.vni:
            raise DriverError("VniTaken", f"segment {spec.vlan}: segment {other.vlan} has VXLAN number {spec.vni}")


def check_uplinks(uplinks: Uplinks) -> None:
    """Raise DriverError (UplinkRefused) for uplinks that cannot be: they become settings of the switch."""
    named = [name for name in (uplinks.trunk, uplinks.tunnel, uplinks.public) if name]
    for name in named:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", name):
            raise DriverError("UplinkRefused", f"uplink {name!r} is not the name of a network device")
        if named.count(name) > 1:
            raise DriverError(
                "UplinkRefused", f"uplink {name} is named twice; trunk, tunnel and public are three devices"
            )
    try:
        if uplinks.tunnel:
            ipaddress.IPv4Interface(uplinks.tunnel_address)
        if uplinks.tunnel_gateway:
            ipaddress.IPv4Address(uplinks.tunnel_gateway)
    except ValueError as exc:
        raise DriverError("UplinkRefused", f"tunnel {uplinks.tunnel}: {exc}") from exc


def tunnel_address(uplinks: Uplinks) -> str:
    """Return this host's own address on the tunnel, without prefix; empty: it has no tunnel."""
    return uplinks.tunnel_address.partition("/")[0] if uplinks.tunnel else ""


def uplink_lines() -> list[str]:
    """Return the bundle lines of what holds for the uplinks, whatever segments there are. The devices may be missing."""
    everything = [
        Flow(table=ADMISSION, priority=500, role=Role.base, match=f"in_port={port},{match}", actions="drop")
        for port in (TRUNK_PORT, TUNNEL_PORT, PUBLIC_PORT)
        for match in (f"dl_type={ETHERTYPE_CONTROL:#x}", f"dl_dst={RESERVED_MULTICAST}")
    ]
    public = f"in_port={PUBLIC_PORT},vlan_tci=0,dl_src={UNICAST}"
    everything += [
        Flow(table=ADMISSION, priority=300, role=Role.base, match=public, actions=_enter(PUBLIC_VLAN)),
        Flow(table=INBOUND, priority=100, role=Role.base, match=_from(PUBLIC_PORT, PUBLIC_VLAN),
             actions=f"resubmit(,{VLAN})"),
        Flow(table=OUTBOUND, priority=100, role=Role.base, match=f"reg0={register(PUBLIC_VLAN)}",
             actions=f"output:{PUBLIC_PORT}"),
    ]  # fmt: skip
    # A tag below the one that was taken off: the switch shows it as the frame's type.
    everything += [
        Flow(table=INBOUND, priority=300, role=Role.base, match=f"dl_type={tag:#x}", actions="drop")
        for tag in (0x8100, 0x88A8)
    ]
    return [add_line(flow, shared_cookie(0, Role.base)) for flow in everything]


def segment_flows(spec: SegmentSpec, uplinks: Uplinks) -> list[Flow]:
    """Return all flows of one segment, ``spec`` having passed ``check_segment``."""
    peers = _peers(spec, uplinks)
    by_trunk = spec.trunk and uplinks.trunk
    flows, outlets = [], []
    if peers:
        flows += [_admit(spec, f"in_port={TUNNEL_PORT},tun_id={spec.vni},tun_src={peer}", "") for peer in peers]
        back = f"load:NXM_NX_TUN_IPV4_SRC[]->NXM_NX_TUN_IPV4_DST[],load:{spec.vni}->NXM_NX_TUN_ID[]"
        flows.append(_learn(spec, TUNNEL_PORT, back))
        outlets.append(f"set_field:{spec.vni}->tun_id")
        outlets += [f"set_field:{peer}->tun_dst,output:{TUNNEL_PORT}" for peer in peers]
    if by_trunk:
        flows.append(_admit(spec, f"in_port={TRUNK_PORT},dl_vlan={spec.vlan}", "pop_vlan,"))
        flows.append(_learn(spec, TRUNK_PORT, f"load:{0x1000 | spec.vlan:#x}->NXM_OF_VLAN_TCI[]"))
        outlets.append(f"push_vlan:0x8100,set_field:{0x1000 | spec.vlan}->vlan_vid,output:{TRUNK_PORT}")
    # Always there, so that a segment without any way out can be seen to be in force.
    actions = ",".join(outlets) or "drop"
    flows.append(Flow(table=OUTBOUND, priority=100, role=Role.outbound, match=f"reg0={spec.vlan}", actions=actions))
    return flows


def join_lines(spec: SegmentSpec, uplinks: Uplinks) -> list[str]:
    """Return the bundle lines that put exactly ``spec`` in force."""
    cookie = SEGMENT_MARK << 48 | spec.vlan << 32 | _digest(spec, uplinks) << 8
    return [*leave_lines(spec.vlan), *(add_line(flow, cookie | flow.role) for flow in segment_flows(spec, uplinks))]


def leave_lines(vlan: int) -> list[str]:
    """Return the bundle lines that take every flow of a segment away, and what was learned."""
    return [f"flow delete {any_cookie(SEGMENT_MARK, vlan)}", *forget_lines(vlan)]


def forget_lines(vlan: int) -> list[str]:
    """Return the bundle lines that take away what was learned in a segment."""
    return [f"flow delete {any_cookie(LEARNED_MARK, vlan)}"]


def is_joined(spec: SegmentSpec, uplinks: Uplinks, stats: Iterable[FlowStat]) -> bool:
    """Return whether the segment's flows on the switch are those of ``spec``, all of them and no other."""
    cookie = SEGMENT_MARK << 48 | spec.vlan << 32 | _digest(spec, uplinks) << 8
    wanted = Counter(cookie | flow.role for flow in segment_flows(spec, uplinks))
    found = Counter(stat.cookie for stat in stats if stat.mark == SEGMENT_MARK and stat.number == spec.vlan)
    return wanted == found


def needed(spec: SegmentSpec, uplinks: Uplinks) -> list[str]:
    """Return the devices that the segment needs."""
    trunk = [uplinks.trunk] if spec.trunk and uplinks.trunk else []
    return trunk + ([uplinks.tunnel] if _peers(spec, uplinks) else [])


def _peers(spec: SegmentSpec, uplinks: Uplinks) -> list[str]:
    own = tunnel_address(uplinks)
    return [peer for peer in spec.peers if peer != own] if own else []


def _digest(spec: SegmentSpec, uplinks: Uplinks) -> int:
    return short_digest(spec.vlan, spec.vni, needed(spec, uplinks), _peers(spec, uplinks))


def _enter(vlan: int) -> str:
    return f"load:{register(vlan)}->NXM_NX_REG0[],load:1->NXM_NX_REG2[],resubmit(,{INBOUND})"


def _from(ofport: int, vlan: int) -> str:
    """Match what came over an uplink, without a VLAN header (any more) and from the MAC of one machine."""
    return f"reg0={register(vlan)},in_port={ofport},vlan_tci=0,dl_src={UNICAST}"


def _admit(spec: SegmentSpec, match: str, before: str) -> Flow:
    actions = f"{before}{_enter(spec.vlan)}"
    return Flow(table=ADMISSION, priority=300, role=Role.inbound, match=match, actions=actions)


def _learn(spec: SegmentSpec, ofport: int, back: str) -> Flow:
    """Send frames to the sender's MAC ``back`` where it is, until it has been silent too long."""
    learn = (
        f"learn(table={OUTBOUND},priority=200,hard_timeout={FORGET_S},limit={LEARNED_MAX},"
        f"cookie={LEARNED_MARK << 48 | spec.vlan << 32:#x},"
        f"NXM_NX_REG0[],NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],{back},output:NXM_OF_IN_PORT[])"
    )
    match = _from(ofport, spec.vlan)
    return Flow(table=INBOUND, priority=100, role=Role.learn, match=match, actions=f"{learn},resubmit(,{VLAN})")
