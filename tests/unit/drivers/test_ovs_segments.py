"""Which flows join a segment to other hosts."""

from __future__ import annotations

import msgspec
import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.ovs import segments
from pileus.drivers.host.ovs.base import SegmentSpec, Uplinks
from pileus.drivers.host.ovs.exchange import control_lines, control_meter
from pileus.drivers.host.ovs.flows import FlowStat, Role, tx_meter

SPEC = SegmentSpec(vlan=101, vni=5001, trunk=True, peers=("10.200.1.11", "10.200.2.11"))
UPLINKS = Uplinks(trunk="trunk0", tunnel="tunnel0", tunnel_address="10.200.1.11/24", public="public0")
LONELY = Uplinks()


def stats(lines: list[str]) -> list[FlowStat]:
    adds = [line for line in lines if line.startswith("flow add")]
    return [FlowStat(int(line.partition("cookie=")[2].partition(",")[0], 16), 0) for line in adds]


def outlet(spec: SegmentSpec, uplinks: Uplinks) -> str:
    (flow,) = [flow for flow in segments.segment_flows(spec, uplinks) if flow.role == Role.outbound]
    return flow.actions


def test_a_frame_goes_to_every_peer_but_this_host_and_tagged_over_the_trunk() -> None:
    assert outlet(SPEC, UPLINKS) == (
        "set_field:5001->tun_id,set_field:10.200.2.11->tun_dst,output:65002,"
        "push_vlan:0x8100,set_field:4197->vlan_vid,output:65001"
    )


@pytest.mark.parametrize(
    ("spec", "uplinks", "needed"),
    [
        (SPEC, UPLINKS, ["trunk0", "tunnel0"]),
        (msgspec.structs.replace(SPEC, trunk=False), UPLINKS, ["tunnel0"]),
        (msgspec.structs.replace(SPEC, peers=("10.200.1.11",)), UPLINKS, ["trunk0"]),
        (SPEC, LONELY, []),
    ],
)
def test_a_segment_needs_the_uplinks_by_which_it_meets_others(
    spec: SegmentSpec, uplinks: Uplinks, needed: list[str]
) -> None:
    assert segments.needed(spec, uplinks) == needed
    assert (outlet(spec, uplinks) == "drop") == (not needed)


def test_only_peers_of_the_segment_are_let_in() -> None:
    admitted = [flow.match for flow in segments.segment_flows(SPEC, UPLINKS) if flow.role == Role.inbound]
    assert admitted == ["in_port=65002,tun_id=5001,tun_src=10.200.2.11", "in_port=65001,dl_vlan=101"]


def test_a_segment_is_joined_when_its_flows_are_there_all_of_them_and_no_other() -> None:
    found = stats(segments.join_lines(SPEC, UPLINKS))
    assert segments.is_joined(SPEC, UPLINKS, found)
    for missing in range(len(found)):
        assert not segments.is_joined(SPEC, UPLINKS, found[:missing] + found[missing + 1 :])
    for changed in (
        msgspec.structs.replace(SPEC, vni=5002),
        msgspec.structs.replace(SPEC, peers=("10.200.2.12",)),
        msgspec.structs.replace(SPEC, trunk=False),
    ):
        assert not segments.is_joined(changed, UPLINKS, found)
        other = stats(segments.join_lines(msgspec.structs.replace(changed, vlan=102), UPLINKS))
        assert segments.is_joined(SPEC, UPLINKS, found + other)


def test_a_specification_becomes_canonical() -> None:
    loud = msgspec.structs.replace(SPEC, peers=("10.200.2.11", "10.200.1.11", "10.200.2.11"))
    assert segments.check_segment(loud) == SPEC


@pytest.mark.parametrize(
    "wrong",
    [{"vlan": 0}, {"vlan": 4095}, {"vni": 2**24}, {"vni": -1}, {"peers": ("10.0.0.0/8",)}, {"peers": ("x,drop",)}],
    ids=str,
)
def test_nothing_unchecked_becomes_a_flow(wrong: dict[str, object]) -> None:
    with pytest.raises(DriverError) as refused:
        segments.check_segment(msgspec.structs.replace(SPEC, **wrong))
    assert refused.value.reason == "SegmentRefused"


def test_a_vxlan_number_is_taken_once() -> None:
    other = msgspec.structs.replace(SPEC, vlan=102)
    with pytest.raises(DriverError) as refused:
        segments.refuse_taken_vni(other, [SPEC])
    assert refused.value.reason == "VniTaken"
    segments.refuse_taken_vni(SPEC, [SPEC])


@pytest.mark.parametrize(
    "wrong",
    [
        {"trunk": "trunk0\nflow"},
        {"trunk": "public0"},
        {"trunk": "a-name-that-is-too-long"},
        {"tunnel_address": ""},
        {"tunnel_address": "10.200.1.300/24"},
        {"tunnel_gateway": "router"},
    ],
    ids=str,
)
def test_uplinks_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DriverError) as refused:
        segments.check_uplinks(msgspec.structs.replace(UPLINKS, **wrong))
    assert refused.value.reason == "UplinkRefused"
    segments.check_uplinks(UPLINKS)
    segments.check_uplinks(LONELY)


def test_a_control_path_has_a_meter_of_its_own_for_any_port() -> None:
    assert control_meter(1) > tx_meter(65279) + 1
    inward, outward = control_lines(5, "52:54:00:00:00:01")
    assert "priority=700,in_port=5,vlan_tci=0,dl_type=0x88b5 actions=meter:131077,controller(" in inward
    assert outward.endswith("in_port=CONTROLLER,dl_dst=52:54:00:00:00:01,dl_type=0x88b5 actions=output:5")
