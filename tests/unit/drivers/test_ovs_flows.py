"""Which flows a port gets, and what changes between one specification and the next."""

from __future__ import annotations

import itertools
import re

import msgspec
import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.ovs import flows, segments
from pileus.drivers.host.ovs.base import PUBLIC_VLAN, PortSpec, SegmentSpec, Station, Uplinks
from pileus.drivers.host.ovs.flows import Flow, FlowStat, Role

SPEC = PortSpec(id="port-0198c0de0001", mac="52:54:00:00:00:01", addresses=("10.1.1.1", "10.1.1.2"), vlan=101)
SEGMENT = SegmentSpec(vlan=101, vni=5001, trunk=True, peers=("10.200.2.11", "10.200.1.11"))
UPLINKS = Uplinks(trunk="trunk0", tunnel="tunnel0", tunnel_address="10.200.1.11/24", public="public0")
LEARN = re.compile(r"learn\(.*?\)")
VARIANTS = [
    SPEC,
    msgspec.structs.replace(SPEC, addresses=()),
    msgspec.structs.replace(SPEC, addresses=("10.1.1.2", "10.1.1.3")),
    msgspec.structs.replace(SPEC, vlan=102),
    msgspec.structs.replace(SPEC, mac="52:54:00:00:00:02"),
    msgspec.structs.replace(SPEC, rate_limit_kbps=1000),
    msgspec.structs.replace(SPEC, vlan=PUBLIC_VLAN),
    msgspec.structs.replace(SPEC, routes=True),
    msgspec.structs.replace(SPEC, stations=(Station(mac="52:54:00:00:09:01", addresses=("10.1.1.9",)),)),
]


def key(flow: Flow) -> str:
    return f"table={flow.table},priority={flow.priority}" + (f",{flow.match}" if flow.match else "")


def apply(table: dict[str, str], lines: list[str]) -> dict[str, str]:
    """Return the flow table, match to whole line, after the bundle; an add keeps the place of its match."""
    result = dict(table)
    for line in lines:
        verb, _, rest = line.removeprefix("flow ").partition(" ")
        if verb == "delete":
            wanted, mask = (int(part, 16) for part in rest.removeprefix("cookie=").split("/"))
            result = {match: text for match, text in result.items() if cookie_in(text) & mask != wanted}
        elif verb == "delete_strict":
            result.pop(rest, None)
        else:
            match = rest.partition(" actions=")[0].partition(",")[2]
            result[match] = rest
    return result


def cookie_in(line: str) -> int:
    return int(line.removeprefix("cookie=").partition(",")[0], 16)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(VARIANTS, VARIANTS)))
def test_a_change_leaves_exactly_the_flows_of_the_new_specification(before: PortSpec, after: PortSpec) -> None:
    fresh = apply({}, flows.put_lines(after, 5, None))
    start = apply({}, flows.put_lines(before, 5, None))
    assert apply(start, flows.put_lines(after, 5, before)) == fresh
    assert apply(start, flows.put_lines(after, 5, None)) == fresh
    stats = [FlowStat(cookie_in(line), 0) for line in fresh.values()]
    assert flows.is_in_force(after, 5, stats)
    assert flows.is_in_force(before, 5, stats) == (before == after)


def test_what_refuses_is_never_deleted_by_a_change_so_its_count_goes_on() -> None:
    refusals = {key(flow) for flow in flows.port_flows(SPEC, 5) if flow.role == Role.refuse}
    assert len(refusals) == 5
    for before, after in itertools.product(VARIANTS, VARIANTS):
        deleted = {line.partition(" delete_strict ")[2] for line in flows.put_lines(after, 5, before)}
        assert not refusals & deleted


def test_deleting_a_port_leaves_the_flows_of_others_and_of_the_bridge() -> None:
    other = apply(apply({}, flows.base_lines()), flows.put_lines(VARIANTS[4], 6, None))
    other = apply(other, flows.shared_lines(5, {6: VARIANTS[4]}))
    both = apply(other, flows.put_lines(SPEC, 5, None))
    assert both != other
    assert apply(both, flows.delete_lines(5)) == other


def test_every_admission_names_port_mac_and_absence_of_a_vlan_header() -> None:
    admissions = [flow for flow in flows.port_flows(SPEC, 5) if flow.role == Role.admit]
    assert len(admissions) == 1 + 3 * len(SPEC.addresses)
    for flow in admissions:
        assert flow.match.startswith("in_port=5,vlan_tci=0,dl_src=52:54:00:00:00:01,")
        assert "ipv6" not in flow.match
        assert flow.actions == "load:101->NXM_NX_REG0[],resubmit(,1)"


def test_a_frame_is_output_only_where_its_vlan_is_that_of_the_port() -> None:
    for spec in VARIANTS:
        outputs = [flow for flow in flows.port_flows(spec, 5) if "output" in flow.actions]
        assert outputs
        segment = flows.register(spec.vlan)
        assert all(f"reg0={segment},reg1=5" in flow.match and flow.table == flows.DELIVERY for flow in outputs)


def test_every_table_ends_with_a_drop_or_goes_on_to_one_that_does() -> None:
    ends = {flow.table: flow.actions for flow in flows.base_flows() if not flow.match}
    assert ends.pop(flows.VLAN) == f"resubmit(,{flows.OUTBOUND})"
    assert ends.pop(flows.FORWARDED) == f"resubmit(,{flows.VLAN})"
    assert ends == dict.fromkeys((flows.ADMISSION, flows.DELIVERY, flows.INBOUND, flows.OUTBOUND), "drop")


def test_what_came_over_an_uplink_never_leaves_again() -> None:
    (split,) = [flow for flow in flows.base_flows() if flow.match]
    assert (split.table, split.match, split.actions) == (flows.OUTBOUND, "reg2=1", "drop")
    others = [*segments.segment_flows(SEGMENT, UPLINKS), *flows.base_flows()]
    assert all(flow.priority < split.priority for flow in others if flow.table == flows.OUTBOUND and flow != split)
    assert all("priority=200" in learn for learn in LEARN.findall(str(others)))


def test_broadcast_goes_to_the_ports_of_the_vlan_and_to_other_hosts_and_is_deleted_with_the_last() -> None:
    line = flows.shared_lines(101, {7: SPEC, 5: SPEC})[0]
    assert line.endswith("actions=load:5->NXM_NX_REG1[],resubmit(,2),load:7->NXM_NX_REG1[],resubmit(,2),resubmit(,4)")
    table = apply({}, flows.shared_lines(101, {7: SPEC, 5: SPEC}))
    assert apply(table, flows.shared_lines(101, {})) == {}
    assert len(apply(table, flows.shared_lines(102, {8: SPEC}))) == 2


def test_all_that_ports_share_is_set_at_once_and_no_other_stays() -> None:
    router = msgspec.structs.replace(SPEC, routes=True)
    start = apply(apply({}, flows.base_lines()), flows.put_lines(SPEC, 5, None))
    table = apply(start, flows.shared_lines(7, {1: router}))
    wanted = apply(start, flows.shared_lines(101, {5: router}))
    assert apply(table, flows.all_shared_lines({101: {5: router}, 102: {}})) == wanted


def test_a_router_forwards_any_address_but_those_of_its_neighbours() -> None:
    router = msgspec.structs.replace(SPEC, id="router", mac="52:54:00:00:00:fe", addresses=("10.1.1.254",), routes=True)
    lines = flows.shared_lines(101, {5: SPEC, 6: router, 7: VARIANTS[-1]})
    refused = {line.partition("nw_src=")[2].partition(" ")[0] for line in lines if "nw_src" in line}
    assert refused == {"10.1.1.1", "10.1.1.2", "10.1.1.9", "10.1.1.254"}
    assert all(line.endswith("actions=drop") for line in lines if "nw_src" in line)
    assert not [line for line in flows.shared_lines(101, {5: SPEC}) if "nw_src" in line]


def test_a_station_is_admitted_with_its_addresses_only() -> None:
    with_station = {key(flow): flow for flow in flows.port_flows(VARIANTS[-1], 5)}
    new = set(with_station) - {key(flow) for flow in flows.port_flows(SPEC, 5)}
    sender = "table=0,priority=300,in_port=5,vlan_tci=0,dl_src=52:54:00:00:09:01"
    assert new == {
        f"{sender},ip,nw_src=10.1.1.9",
        f"{sender},arp,arp_sha=52:54:00:00:09:01,arp_spa=10.1.1.9",
        "table=1,priority=200,reg0=101,dl_dst=52:54:00:00:09:01",
        "table=3,priority=200,reg0=101,dl_src=52:54:00:00:09:01",
    }


@pytest.mark.parametrize("mac", [SPEC.mac, "52:54:00:00:09:01"])
def test_a_mac_is_taken_once_in_a_vlan(mac: str) -> None:
    other = msgspec.structs.replace(SPEC, id="other", mac=mac)
    with pytest.raises(DriverError) as refused:
        flows.refuse_taken_macs(other, [VARIANTS[-1]])
    assert refused.value.reason == "MacTaken"
    elsewhere = msgspec.structs.replace(other, vlan=102)
    if mac == SPEC.mac:
        with pytest.raises(DriverError):
            flows.refuse_taken_macs(elsewhere, [VARIANTS[-1]])
    else:
        flows.refuse_taken_macs(elsewhere, [VARIANTS[-1]])
    flows.refuse_taken_macs(SPEC, [SPEC])


def test_cookies_say_port_and_role() -> None:
    stat = FlowStat(flows.port_cookie(SPEC, 65279, Role.deliver), 3)
    assert (stat.ofport, stat.role) == (65279, Role.deliver)
    shared = FlowStat(int(flows.shared_lines(101, {5: SPEC})[0].partition("cookie=")[2].partition(",")[0], 16), 3)
    assert (shared.ofport, shared.role) == (None, Role.flood)


def test_packets_are_added_up_by_port_and_role() -> None:
    stats = [
        FlowStat(flows.port_cookie(SPEC, port, role), packets)
        for port, role, packets in (
            (5, Role.refuse, 1),
            (5, Role.refuse, 2),
            (5, Role.deliver, 4),
            (6, Role.refuse, 8),
        )
    ]
    assert flows.packets_by_port(stats, [Role.refuse]) == {5: 3, 6: 8}
    assert flows.packets_by_port(stats, [Role.refuse, Role.deliver]) == {5: 7, 6: 8}


def test_a_dump_is_read_with_and_without_matches() -> None:
    dump = (
        "OFPST_FLOW reply (OF1.4) (xid=0x2):\n"
        " cookie=0x7069000100000002, duration=0.004s, table=0, n_packets=12, in_port=1 actions=drop\n"
        " cookie=0x0, duration=0.004s, table=2, n_packets=0, n_bytes=0, priority=0 actions=drop\n"
    )
    assert flows.parse_dump(dump) == [FlowStat(0x7069000100000002, 12), FlowStat(0, 0)]
    assert flows.parse_dump("") == []


def test_a_port_that_lacks_one_flow_or_is_not_open_is_not_in_force() -> None:
    stats = [FlowStat(flows.port_cookie(SPEC, 5, flow.role), 0) for flow in flows.port_flows(SPEC, 5)]
    assert flows.is_in_force(SPEC, 5, stats)
    for missing in range(len(stats)):
        assert not flows.is_in_force(SPEC, 5, stats[:missing] + stats[missing + 1 :])
    assert not flows.is_in_force(SPEC, 0, stats)
    assert not flows.is_in_force(SPEC, 6, stats)


def test_a_tap_is_named_by_the_end_of_the_id() -> None:
    assert flows.tap_name("0198c0de-1111-7222-8333-444455556666") == "p444455556666"
    assert flows.tap_name("port-0198c0de0001") == "p0198c0de0001"


def test_an_id_without_hexadecimal_end_gets_a_tap_name_of_its_own() -> None:
    odd = ["web", "web2", "../../etc/passwd", "", "x" * 200, "port-0198C0DE0001"]
    names = {flows.tap_name(port) for port in odd}
    assert len(names) == len(odd)
    assert all(re.fullmatch("p[0-9a-f]{12}", name) for name in names)


def test_a_specification_becomes_canonical() -> None:
    loud = msgspec.structs.replace(SPEC, mac="52:54:00:AB:CD:EF")
    assert flows.check(loud).mac == "52:54:00:ab:cd:ef"


@pytest.mark.parametrize(
    "wrong",
    [
        {"mac": ""},
        {"mac": "52:54:00:00:00:01\nflow add actions=NORMAL"},
        {"mac": "00:00:00:00:00:00"},
        {"mac": "ff:ff:ff:ff:ff:ff"},
        {"vlan": -1},
        {"vlan": 4096},
        {"stations": (Station(mac="no", addresses=()),)},
        {"stations": (Station(mac="52:54:00:00:09:01", addresses=("::1",)),)},
        {"stations": (Station(mac=SPEC.mac, addresses=()),)},
        {"rate_limit_kbps": -1},
        {"addresses": ("10.1.1.1/32",)},
        {"addresses": ("0.0.0.0",)},
        {"addresses": ("127.0.0.1",)},
        {"addresses": ("255.255.255.255",)},
        {"addresses": ("10.1.1.1,actions=NORMAL",)},
        {"addresses": ("fe80::1",)},
    ],
    ids=str,
)
def test_nothing_unchecked_becomes_a_flow(wrong: dict[str, object]) -> None:
    with pytest.raises(DriverError) as refused:
        flows.check(msgspec.structs.replace(SPEC, **wrong))
    assert refused.value.reason == "PortRefused"
