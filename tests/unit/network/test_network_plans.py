"""Ranges, addresses and the plan of a port."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Network

import pytest

from pileus.drivers.host.ovs.base import PortFact, PortSpec
from pileus.kernel.errors import Invalid
from pileus.network.network.plan import host_range, offset, parse_address, parse_range
from pileus.network.port.host import plan
from pileus.network.port.plan import host_numbers, numbered, wished_numbers
from pileus.network.port.types import PortDesired, mac_of

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
    ]
    return [None, right, *wrong]


def test_a_port_is_plugged_until_it_is_as_wished_and_unplugged_until_it_is_gone() -> None:
    plugged = PortFact(id="p", tap="t", mac=SPEC.mac, addresses=SPEC.addresses, vlan=SPEC.vlan)
    for deleting, fact in itertools.product((False, True), facts()):
        step = plan(deleting, SPEC, fact)
        reached = None if deleting else plugged
        assert (step is None) == (fact == reached)
        assert plan(deleting, SPEC, reached) is None
