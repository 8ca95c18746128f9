"""Which flows a port gets, and what changes between one specification and the next."""

from __future__ import annotations

import itertools
import re

import msgspec
import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.ovs import flows
from pileus.drivers.host.ovs.base import PortSpec
from pileus.drivers.host.ovs.flows import Flow, FlowStat, Role

SPEC = PortSpec(id="port-0198c0de0001", mac="52:54:00:00:00:01", addresses=("10.1.1.1", "10.1.1.2"), vlan=101)
VARIANTS = [
    SPEC,
    msgspec.structs.replace(SPEC, addresses=()),
    msgspec.structs.replace(SPEC, addresses=("10.1.1.2", "10.1.1.3")),
    msgspec.structs.replace(SPEC, vlan=102),
    msgspec.structs.replace(SPEC, mac="52:54:00:00:00:02"),
    msgspec.structs.replace(SPEC, rate_limit_kbps=1000),
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
    other = apply(other, flows.flood_lines(5, [6]))
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
        assert all(f"reg0={spec.vlan},reg1=5" in flow.match and flow.table == flows.DELIVERY for flow in outputs)


def test_every_table_ends_with_a_drop() -> None:
    assert [(flow.table, flow.priority, flow.actions) for flow in flows.base_flows()] == [
        (table, 0, "drop") for table in (flows.ADMISSION, flows.VLAN, flows.DELIVERY)
    ]


def test_broadcast_goes_to_the_ports_of_the_vlan_and_is_deleted_with_the_last() -> None:
    line = flows.flood_lines(101, [7, 5])[0]
    assert line.endswith("actions=load:5->NXM_NX_REG1[],resubmit(,2),load:7->NXM_NX_REG1[],resubmit(,2)")
    assert apply(apply({}, [line]), flows.flood_lines(101, [])) == {}
    assert len(apply(apply({}, [line]), flows.flood_lines(102, [8]))) == 2


def test_all_floods_are_set_at_once_and_no_other_stays() -> None:
    table = apply(apply(apply({}, flows.base_lines()), flows.flood_lines(7, [1])), flows.put_lines(SPEC, 5, None))
    wanted = apply(apply(apply({}, flows.base_lines()), flows.flood_lines(101, [5])), flows.put_lines(SPEC, 5, None))
    assert apply(table, flows.all_flood_lines({101: [5], 102: []})) == wanted


def test_cookies_say_port_and_role() -> None:
    stat = FlowStat(flows.port_cookie(SPEC, 65279, Role.deliver), 3)
    assert (stat.ofport, stat.role) == (65279, Role.deliver)
    shared = FlowStat(int(flows.flood_lines(101, [5])[0].partition("cookie=")[2].partition(",")[0], 16), 3)
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
        {"vlan": 0},
        {"vlan": 4095},
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
