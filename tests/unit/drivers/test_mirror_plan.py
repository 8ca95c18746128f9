"""What must be in the kernel for legs of mirror sessions; nothing here asks a kernel."""

from __future__ import annotations

import functools

import pytest

from pileus.drivers.host.mirror import bus, gate, relay
from pileus.drivers.host.mirror.base import DeliverySpec, RelaySpec, SourceSpec
from pileus.drivers.host.mirror.layout import outgoing_value, subheader
from pileus.drivers.host.mirror.wanted import BUS, COPIES, NAMES_ONLY, Devices, Leg, Wanted, longest, plan
from pileus.node.mirror import wire
from pileus.node.mirror.rules import SNAP_BYTES_MIN, Rule

WEB, INTO, OUT = "port-0000000000a1", "port-0000000000b1", "port-0000000000b2"
NUMBERS = {COPIES: 1, BUS: 2, "tunnel0": 3, "br-tun": 4, "p0000000000a1": 5, "p0000000000b1": 6, "p0000000000b2": 7}
KEY = 0x0123_4567_89AB_0007


def host(*, without: str = "", own: str = "10.0.0.1", mtu: int = 1600) -> Devices:
    numbers = {name: number for name, number in NUMBERS.items() if name != without}
    return Devices(numbers=numbers, tunnel="tunnel0", underlay="br-tun", own=own, tunnel_mtu=mtu)


def source(id: str = "s", **fields: object) -> Leg:
    spec = SourceSpec(**{"id": id, "port": WEB, "key": KEY, "target": "10.0.0.2", "number": 1, **fields})  # type: ignore[arg-type]
    return Leg.of(spec, slot=9, ticket=77)


RELAY = Leg.of(RelaySpec(id="r", key=KEY, source="10.0.0.2", tunnel_port=INTO, sniffer_port=OUT, target=""), 10, 78)
DELIVERY = Leg.of(DeliverySpec(id="d", key=KEY, source="", port=WEB), 11, 79)


def test_legs_of_every_kind_need_their_entries_and_programs() -> None:
    wanted = plan([source(), RELAY, DELIVERY], host())
    ticket, first, second = ("outgoing", (77).to_bytes(4, "little")), subheader(KEY, 1), subheader(KEY, 2)
    shared = ["bus", "shortcut", "gate", "learn"]
    assert wanted.needs == {
        "s": ([ticket], [*shared, "p0000000000a1-ingress", "p0000000000a1-egress"]),
        "r": ([("arrivals", first), ("labels", KEY.to_bytes(8, "big"))], [*shared, "p0000000000b2-relay"]),
        "d": ([("arrivals", second)], shared),
    }
    assert wanted.queues == {"p0000000000b1": 6, "p0000000000a1": 5}
    assert set(wanted.links) == {*shared, "p0000000000a1-ingress", "p0000000000a1-egress", "p0000000000b2-relay"}


@pytest.mark.parametrize("device", ["p0000000000a1", "tunnel0", "br-tun"])
def test_a_leg_that_lacks_a_device_needs_nothing(device: str) -> None:
    assert plan([source()], host(without=device)).needs == {}
    assert plan([source()], host(without=device)).entries == {}


def test_without_the_pair_of_devices_there_is_nothing() -> None:
    assert plan([source(), RELAY], host(without=COPIES)) == Wanted()


def test_on_one_host_no_tunnel_is_needed() -> None:
    wanted = plan([source(target="")], host(own=""))
    assert wanted.needs["s"][1][:2] == ["bus", "shortcut"]
    assert "gate" not in wanted.links


def test_a_program_is_another_one_when_sessions_their_order_or_their_rules_are() -> None:
    def program(*legs: Leg) -> str:
        return plan(legs, host()).links["p0000000000a1-egress"].digest

    one, other = source("a"), Leg.of(source("b", key=KEY + 1, rules=(Rule(protocol=6),)).spec, 12, 80)
    assert program(one, other) == program(other, one)
    assert program(one) != program(one, other)
    later = Leg.of(source("a", number=5).spec, 9, 77)
    assert program(later, other) != program(one, other)


def test_a_session_that_looks_one_way_has_one_program() -> None:
    assert set(plan([source(direction="ingress")], host()).needs["s"][1]) >= {"p0000000000a1-ingress"}
    assert "p0000000000a1-egress" not in plan([source(direction="ingress")], host()).links


def test_a_session_without_number_has_programs_of_its_own() -> None:
    wanted = plan([source(), Leg.of(source("free", number=0, key=KEY + 1).spec, 12, 80)], host())
    assert wanted.needs["free"][1][-2:] == ["p0000000000a1-ingress-12", "p0000000000a1-egress-12"]
    assert wanted.links["p0000000000a1-egress-12"].attach == wanted.links["p0000000000a1-egress"].attach


@pytest.mark.parametrize(
    ("snap", "target", "mtu", "bytes_"),
    [
        (0, "", 0, 65_535),
        (128, "", 0, 128),
        (1, "", 0, SNAP_BYTES_MIN),
        (0, "10.0.0.2", 1562, 1514),
        (9000, "10.0.0.2", 1500, 1452),
    ],
)
def test_what_goes_out_is_cut_to_snap_length_and_tunnel(snap: int, target: str, mtu: int, bytes_: int) -> None:
    spec = source(snap_bytes=snap, target=target).spec
    assert isinstance(spec, SourceSpec)
    assert longest(spec, host(mtu=mtu)) == bytes_


def test_the_header_that_goes_out_is_the_one_of_the_wire() -> None:
    value = outgoing_value(KEY, ("10.0.0.1", "10.0.0.2"), 9, 100, leg=1)
    header = bytearray(value[6:68])
    header[16:18] = (48 + 20).to_bytes(2, "big")
    got = wire.parse(bytes(header) + bytes(20))
    assert isinstance(got, wire.Arrived)
    assert got.header == wire.Header(
        source="10.0.0.1", destination="10.0.0.2", key=KEY, session=KEY & 0x3FF, leg=1
    )  # fmt: skip


@pytest.mark.parametrize(
    "code",
    [
        functools.partial(bus.bus, bus.Wiring(copies=1, tunnel=2, underlay=3, own="10.0.0.1"), NAMES_ONLY),
        functools.partial(bus.shortcut, bus.Wiring(copies=1), NAMES_ONLY),
        functools.partial(gate.gate, "10.0.0.1", 1),
        functools.partial(gate.learn, "10.0.0.1", NAMES_ONLY),
        functools.partial(relay.relay, 1, NAMES_ONLY),
    ],
)
def test_programs_are_the_same_every_time(code: functools.partial[bytes]) -> None:
    assert code() == code()
    assert len(code()) % 8 == 0
