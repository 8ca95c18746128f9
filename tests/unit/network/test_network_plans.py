"""Ranges, addresses and the plan of a port."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Network
from typing import Literal

import pytest

from pileus.drivers.host.ovs.base import PortFact, PortSpec, Station
from pileus.infra.zone.types import RouterWish, ZoneDesired
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.network.network.plan import host_range, offset, parse_address, parse_range, pool
from pileus.network.network.types import NetworkAssigned, NetworkDesired
from pileus.network.port.host import plan, spec_of
from pileus.network.port.plan import followed, host_numbers, numbered, wished_numbers
from pileus.network.port.types import PortAssigned, PortDesired, PortStation, mac_of

SPEC = PortSpec(id="p", mac="02:50:00:00:00:01", addresses=("10.1.1.2",), vlan=7)


@pytest.mark.parametrize("text", ["10.0.0.0/8", "172.16.0.0/12", "192.168.1.0/24", "10.1.1.0/30"])
def test_private_ranges_are_taken(text: str) -> None:
    assert str(parse_range(text)) == text


@pytest.mark.parametrize(
    "text",
    ["10.1.1.5/24", "8.8.8.0/24", "172.32.0.0/16", "10.0.0.0/31", "10.0.0.0/7", "0.0.0.0/0", "fd00::/64", "x", ""],
)
def test_other_ranges_are_refused_and_the_message_names_them(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_range(text)
    assert refused.value.field == "desired.range"
    assert text.split("/", maxsplit=1)[0] in refused.value.message


@pytest.mark.parametrize(("text", "said"), [("10.0.0.0", "10.0.0.0/24"), ("192.168.7.9", "192.168.7.0/24")])
def test_a_range_without_prefix_length_is_refused_with_one_that_would_do(text: str, said: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_range(text)
    assert refused.value.message == f"{text} has no prefix length; say {said}"
    assert str(parse_range(said)) == said


@pytest.mark.parametrize("text", ["10.1.2.1", "10.1.1.0", "10.1.1.255", "no", "10.1.1.1.1", "::1"])
def test_addresses_that_no_host_of_the_range_may_have_are_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_address(text, IPv4Network("10.1.1.0/24"), "desired.gateway")


def test_addresses_and_numbers_are_each_others_inverse() -> None:
    for text in ("10.0.0.0/8", "192.168.7.64/26", "10.1.1.0/30"):
        range_ = IPv4Network(text)
        low, high = host_range(range_)
        for number in {low, low + 1, high}:
            address = numbered(text, number)
            assert offset(parse_address(address, range_, ""), range_) == number
            assert host_numbers(text, [address]) == [number]
        assert numbered(text, high + 1) == str(range_.broadcast_address)


def test_a_port_wishes_its_address_first_then_the_further_ones() -> None:
    assert wished_numbers(
        "10.1.1.0/24", PortDesired(network="n", address="10.1.1.9", extra_addresses=("10.1.1.3",))
    ) == [9, 3]
    assert wished_numbers("10.1.1.0/24", PortDesired(network="n", extra_addresses=("10.1.1.3",))) == [3]


def test_macs_are_local_unicast_and_all_different() -> None:
    macs = [mac_of(number) for number in (0, 1, 255, 256, 2**32 - 1)]
    assert len(set(macs)) == len(macs)
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs)


def facts() -> list[PortFact | None]:
    """Return every way in which a port may be found."""
    right = PortFact(id="p", tap="t", mac=SPEC.mac, addresses=SPEC.addresses, vlan=SPEC.vlan)
    wrong = [
        PortFact(id="p", tap="t", mac="02:50:00:00:00:02", addresses=SPEC.addresses, vlan=SPEC.vlan),
        PortFact(id="p", tap="t", mac=SPEC.mac, addresses=("10.1.1.3",), vlan=SPEC.vlan),
        PortFact(id="p", tap="t", mac=SPEC.mac, addresses=SPEC.addresses, vlan=8),
        PortFact(id="p", tap="t", mac=SPEC.mac, addresses=SPEC.addresses, vlan=SPEC.vlan, rate_limit_kbps=1),
        PortFact(id="p", tap="t", mac=SPEC.mac, addresses=SPEC.addresses, vlan=SPEC.vlan, blocked=True),
        PortFact(id="p", tap="t", mac=SPEC.mac, addresses=SPEC.addresses, vlan=SPEC.vlan, routes=True),
        PortFact(id="p", tap="t", mac=SPEC.mac, addresses=SPEC.addresses, vlan=SPEC.vlan, isolated=True),
        PortFact(
            id="p",
            tap="t",
            mac=SPEC.mac,
            addresses=SPEC.addresses,
            vlan=SPEC.vlan,
            stations=(Station(mac="02:00:00:00:00:09", addresses=("10.1.1.9",)),),
        ),
    ]
    return [None, right, *wrong]


def test_a_port_is_plugged_until_it_is_as_wished_and_unplugged_until_it_is_gone() -> None:
    plugged = PortFact(id="p", tap="t", mac=SPEC.mac, addresses=SPEC.addresses, vlan=SPEC.vlan)
    for deleting, fact in itertools.product((False, True), facts()):
        step = plan(deleting, SPEC, fact)
        reached = None if deleting else plugged
        assert (step is None) == (fact == reached)
        assert plan(deleting, SPEC, reached) is None


@pytest.mark.parametrize(
    ("first", "last", "numbers"),
    [("", "", (1, 254)), ("10.1.1.50", "", (50, 254)), ("", "10.1.1.9", (1, 9)), ("10.1.1.7", "10.1.1.7", (7, 7))],
)
def test_first_and_last_bound_what_ports_get(first: str, last: str, numbers: tuple[int, int]) -> None:
    assert pool(NetworkDesired(range="10.1.1.0/24", first=first, last=last)) == numbers


@pytest.mark.parametrize(
    ("first", "last", "field"),
    [
        ("10.1.2.5", "", "first"),
        ("", "10.1.1.255", "last"),
        ("10.1.1.9", "10.1.1.8", "first"),
        ("10.1.1.0", "", "first"),
        ("", "x", "last"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(first: str, last: str, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        pool(NetworkDesired(range="10.1.1.0/24", first=first, last=last))
    assert refused.value.field == f"desired.{field}"


def resource(kind: str, desired: object, assigned: object = None) -> Resource:
    """Return a resource with these sections."""
    return Resource(id=kind, kind=kind, name=kind, desired=desired, assigned=assigned)


@pytest.mark.parametrize(
    ("router", "own", "told"),
    [
        ("none", (), ("9.9.9.9",)),
        ("none", ("10.1.1.8",), ("10.1.1.8",)),
        ("single", ("10.1.1.8",), ("10.1.1.1",)),
        ("redundant", (), ("10.1.1.1",)),
    ],
)
def test_guests_ask_their_router_when_there_is_one(router: RouterWish, own: tuple[str, ...], told: tuple[str]) -> None:
    zone = resource("infra.zone", ZoneDesired(dns=("9.9.9.9",)))
    decided = NetworkAssigned(zone="z", vdc="v", gateway="10.1.1.1", router=router)
    network = resource("network.network", NetworkDesired(dns=own), decided)
    before = PortAssigned(
        zone="z", vdc="v", network="n", mac=SPEC.mac, address="10.1.1.2", prefix_length=24, gateway="10.1.1.1", vlan=7
    )
    after = followed(before, PortDesired(network="n"), network, zone)
    assert (after.dns, after.served) == (told, "no" if router == "none" else "yes")
    assert after.address == before.address


@pytest.mark.parametrize(("attachment", "routes", "vlan"), [("gateway", True, 7), ("public", False, 0)])
def test_an_appliances_port_has_all_its_addresses_and_stations(
    attachment: Literal["gateway", "public"], routes: bool, vlan: int
) -> None:
    station = PortStation(mac="02:00:00:00:00:09", addresses=("10.1.1.200",))
    desired = PortDesired(attachment=attachment, addresses=("10.1.1.1", "10.2.0.1"), stations=(station,))
    empty = PortAssigned(
        zone="z", vdc="v", network="", mac=SPEC.mac, address="", prefix_length=0, gateway="", vlan=vlan, host="h"
    )
    zone = resource("infra.zone", ZoneDesired())
    decided = followed(empty, desired, None, zone)
    spec = spec_of(resource("network.port", desired, decided))
    assert (spec.addresses, spec.routes, spec.vlan) == (("10.1.1.1", "10.2.0.1"), routes, vlan)
    assert spec.stations == (Station(mac=station.mac, addresses=station.addresses),)
