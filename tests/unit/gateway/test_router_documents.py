"""The document of a router, from what an account has, as the appliance reads it."""

from __future__ import annotations

import base64
from ipaddress import IPv4Network
from typing import Any

import pytest

from pileus.gateway.address.types import AddressAssigned, AddressDesired
from pileus.gateway.balancer.plan import health
from pileus.gateway.balancer.types import BalancerAssigned, BalancerDesired, BalancerMember
from pileus.gateway.facts import Facts, Guest, NetworkFacts, Nic, Place
from pileus.gateway.firewall.types import FirewallAssigned, FirewallDesired, FirewallRule
from pileus.gateway.forward.types import ForwardAssigned, ForwardDesired
from pileus.gateway.keys import new_pair
from pileus.gateway.link.plan import LINKS_MAX, inner
from pileus.gateway.link.types import LinkAssigned, LinkDesired, LinkSide
from pileus.gateway.router.document import (
    Pair,
    RouterView,
    document,
    far_routers,
    guest_addresses,
    public_addresses,
    stations,
    with_links,
    with_pair,
)
from pileus.gateway.router.types import RouterAssigned, RouterDesired
from pileus.gateway.vpn.plan import client_addresses, meeting, not_routed
from pileus.gateway.vpn.types import VpnAssigned, VpnClient, VpnDesired, VpnOutside
from pileus.kernel.kind import Resource
from pileus.network.port.types import PortStation, mac_of
from pileus.node.document import Document
from pileus.node.router.firewall import ruleset
from pileus.node.router.model import Config, Reader

FRONT = NetworkFacts(id="n-front", name="front", range="10.1.1.0/24", gateway="10.1.1.1")
BACK = NetworkFacts(id="n-back", name="back", range="10.1.2.0/24", gateway="10.1.2.1", dns=("192.0.2.53",))
FAR = NetworkFacts(id="n-far", name="far", range="10.1.2.0/24", gateway="10.1.2.2")
WEST = NetworkFacts(id="n-west", name="west", range="10.9.0.0/16", gateway="10.9.0.1")
HERE = Place(zone="east", router="r-east", public_address="203.0.113.2", networks=(FRONT, BACK))
THERE = Place(zone="west", router="r-west", public_address="198.51.100.2", networks=(FAR, WEST))
WEB = Guest(
    id="v-web",
    name="web",
    nics=(
        Nic(network="n-front", mac=mac_of(1), address="10.1.1.10"),
        Nic(network="n-back", mac=mac_of(2), address="10.1.2.10", extra_addresses=("10.1.2.11",)),
    ),
)
NEW = Guest(id="v-new", name="new")
KEY = base64.b64encode(bytes(32)).decode()


def resource(kind: str, id: str, desired: Any, assigned: Any) -> Resource:
    return Resource(id=id, kind=f"gateway.{kind}", name=id, account="acme", desired=desired, assigned=assigned)


def router(**assigned: Any) -> Resource:
    decided: dict[str, Any] = {
        "public_address": "203.0.113.2",
        "public_prefix": 24,
        "public_gateway": "203.0.113.1",
    } | assigned
    wish = RouterDesired(zone="east", vdc="d")
    return resource("router", "r-east", wish, RouterAssigned(zone="east", vdc="d", active="yes", **decided))


def view(*rules: Resource, **more: Any) -> RouterView:
    facts = {
        "zone": "east",
        "places": {"east": HERE, "west": THERE},
        "addresses": {"a-1": "203.0.113.7"},
        "guests": {guest.id: guest for guest in (WEB, NEW)},
        "vpns": {rule.id: rule for rule in rules if rule.kind == "gateway.vpn"},
    } | more.pop("facts", {})
    return RouterView(router=more.pop("router", router()), facts=Facts(**facts), rules=rules, **more)


def read(found: Document) -> Config:
    """Return what the appliance makes of the document; it refuses what it does not understand."""
    config = Reader().read(with_links(found, "router-east-a", mac_of(7), mac_of(8)))
    assert ruleset(config)
    return config


def forward(id: str = "f", vm: str = "v-web", **more: Any) -> Resource:
    places = {name: more.pop(name) for name in ("network", "address") if name in more}
    wish = ForwardDesired(vm=vm, **({"port": 80} | more))
    return resource("forward", id, wish, ForwardAssigned(zone="east", vdc="d", vm=vm, **places))


def site_vpn(id: str, zone: str, peer: str = "", outside: VpnOutside | None = None, port: int = 51820) -> Resource:
    private, public = new_pair()
    decided = VpnAssigned(zone=zone, vdc="d", private_key=private, public_key=public, interface=3, port=port, peer=peer)
    return resource("vpn", id, VpnDesired(mode="site", outside=outside), decided)


def test_networks_guests_and_addresses_are_what_the_appliance_reads() -> None:
    held = resource(
        "address",
        "a-1",
        AddressDesired(),
        AddressAssigned(zone="east", vdc="d", address="203.0.113.7", prefix=24, gateway="203.0.113.1"),
    )
    seen = view(addresses=(held,), resolvers=("192.0.2.1",))
    config = read(document(seen))
    assert config.source == "203.0.113.2"
    assert {each.address: (each.link, each.gateway) for each in config.addresses} == {
        "10.1.1.1": ("guest", ""),
        "10.1.2.1": ("guest", ""),
        "203.0.113.2": ("public", "203.0.113.1"),
        "203.0.113.7": ("public", ""),
    }
    assert config.networks["n-back"].domain == "back.acme.internal"
    assert config.networks["n-back"].dns == ("192.0.2.53",)
    assert {(each.address, each.names) for each in config.guests} == {("10.1.1.10", ("web",)), ("10.1.2.10", ("web",))}
    assert config.resolvers == ("192.0.2.1",)
    assert guest_addresses(seen) == ("10.1.1.1", "10.1.2.1")
    assert public_addresses(seen) == ("203.0.113.2", "203.0.113.7")


def test_a_router_without_a_public_address_translates_nothing() -> None:
    idle = Place(zone="east", router="r-east", networks=(FRONT,))
    seen = view(forward(), router=router(public_address=""), facts={"places": {"east": idle}})
    config = read(document(seen))
    assert (config.source, config.forwards, public_addresses(seen)) == ("", (), ())


def test_a_pair_shares_its_addresses() -> None:
    found = document(view(router=router(redundancy="redundant")))
    pair = Pair(router_id=51, priority=110, own="169.254.255.1/30", peer="169.254.255.2", yields=True)
    config = read(with_pair(found, pair))
    assert all(each.is_shared for each in config.addresses)
    assert config.pair is not None
    assert config.pair.yields
    assert "redundancy" not in found


@pytest.mark.parametrize(
    ("wish", "to"),
    [
        (forward(), ("203.0.113.2", 80, 80, "10.1.1.10", 80)),
        (forward(vm_port=8080), ("203.0.113.2", 80, 80, "10.1.1.10", 8080)),
        (forward(port_last=90, vm_port=1080), ("203.0.113.2", 80, 90, "10.1.1.10", 1080)),
        (forward(network="n-back", address="a-1"), ("203.0.113.7", 80, 80, "10.1.2.10", 80)),
        (forward(vm="v-new"), None),
        (forward(vm="v-gone"), None),
        (forward(address="a-gone"), None),
    ],
)
def test_a_forward_is_there_once_both_its_ends_have_an_address(wish: Resource, to: tuple[Any, ...] | None) -> None:
    forwards = read(document(view(wish))).forwards
    found = [(each.address, each.first, each.last, each.to_address, each.to_port) for each in forwards]
    assert found == ([to] if to else [])


def balancer() -> Resource:
    members = (BalancerMember(vm="web"), BalancerMember(vm="new", port=8080))
    wish = BalancerDesired(port=80, members=members, sources=("192.0.2.0/24",))
    return resource("balancer", "b", wish, BalancerAssigned(zone="east", vdc="d", members=("v-web", "v-new")))


def test_a_balancer_has_the_members_that_have_an_address() -> None:
    (found,) = read(document(view(balancer()))).balancers
    assert [(each.id, each.address, each.port) for each in found.members] == [("v-web:80", "10.1.1.10", 80)]


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        ([], ["unknown", "unknown"]),
        ([{"balancers": {"b": {"v-web:80": "up", "v-new:8080": "down"}}}], ["up", "down"]),
        ([{}, {"balancers": {"b": {"v-web:80": "down"}}}, {"balancers": {"b": {"v-web:80": "up"}}}], ["up", "unknown"]),
        ([{"balancers": {"b": {"v-web:80": ["up"], "v-new:8080": {}}}}], ["unknown", "unknown"]),
        ([{"balancers": []}, {"balancers": {"b": 5}}, {"balancers": {"b": None}}], ["unknown", "unknown"]),
    ],
)
def test_what_appliances_say_of_members_is_not_trusted(statuses: list[dict[str, Any]], said: list[str]) -> None:
    assert [each.health for each in health(balancer(), view().facts, statuses)] == said


def firewall(name: str, network: str, *rules: FirewallRule) -> Resource:
    return resource(
        "firewall", name, FirewallDesired(rules=rules), FirewallAssigned(zone="east", vdc="d", network=network)
    )


def test_rules_are_in_the_order_of_the_firewalls_names() -> None:
    drop = [FirewallRule(direction="ingress", action="drop", protocol="tcp", port_first=port) for port in (1, 2)]
    rules = [firewall(name, "", *drop) for name in ("a1", "a-b", "a")]
    found = document(view(*rules))["firewall"]
    assert [key.partition(",")[0] for key in sorted(found)] == ["a", "a", "a-b", "a-b", "a1", "a1"]
    assert [(each.first, each.last) for each in read(document(view(*rules))).firewall] == [(1, 1), (2, 2)] * 3


def test_a_firewall_of_a_network_that_lost_its_router_is_left_out() -> None:
    rule = FirewallRule(direction="egress", action="drop", remotes=("192.0.2.1",), locals=("10.1.1.0/25",))
    config = read(document(view(firewall("a", "n-front", rule), firewall("b", "n-gone", rule))))
    assert [(each.network, each.remotes) for each in config.firewall] == [("n-front", ("192.0.2.1/32",))]


def test_one_of_two_vpns_names_the_other_and_ranges_that_meet_are_left_out() -> None:
    west, east = site_vpn("west", "west", port=4000), site_vpn("east", "east", peer="west")
    seen = view(east, facts={"vpns": {"east": east, "west": west}})
    (tunnel,) = read(document(seen)).tunnels
    (peer,) = tunnel.peers
    assert peer.key == west.assigned.public_key
    assert peer.allowed == ("10.9.0.0/16",)  # the other network there has the range of one here
    assert (peer.endpoint, peer.keepalive_s) == ("198.51.100.2:4000", 25)
    assert not_routed(east, seen.facts).endswith(": 10.1.2.0/24")
    assert [each.id for each in seen.facts.joined(west)] == ["east"]
    assert far_routers(seen) == ("r-west",)


def test_a_vpn_to_the_outside_and_one_for_clients_live_beside_each_other() -> None:
    outside = site_vpn("out", "east", outside=VpnOutside(public_key=KEY, ranges=("10.8.0.0/16",)))
    private, public = new_pair()
    clients = (VpnClient(name="ann", public_key=KEY),)
    inside = resource(
        "vpn",
        "in",
        VpnDesired(mode="remote-access", range="10.99.0.0/24", clients=clients),
        VpnAssigned(
            zone="east",
            vdc="d",
            private_key=private,
            public_key=public,
            interface=0,
            port=51821,
            clients={"ann": "10.99.0.2"},
        ),
    )
    tunnels = {each.id: each for each in read(document(view(outside, inside))).tunnels}
    assert tunnels["in"].address == "10.99.0.1/24"
    assert tunnels["in"].peers[0].allowed == ("10.99.0.2/32",)
    assert (tunnels["out"].peers[0].allowed, tunnels["out"].peers[0].keepalive_s) == (("10.8.0.0/16",), 0)


def test_both_routers_of_a_link_fit_each_other() -> None:
    private, public = new_pair()
    sides = [
        LinkSide(
            zone=zone,
            vdc="d",
            network=network,
            private_key=private,
            public_key=public,
            interface=1,
            port=51820,
            inner=at,
        )
        for zone, network, at in zip(("east", "west"), ("n-back", "n-far"), inner(0), strict=True)
    ]
    decided = LinkAssigned(zone="east", vdc="d", vni=1, near=sides[0], far=sides[1])
    link = resource("link", "l", LinkDesired(network="back", peer_network="far"), decided)
    guest = Guest(id="v-far", name="far", nics=(Nic(network="n-far", mac=mac_of(9), address="10.1.2.99"),))
    seen = view(link, far_guests={"n-back": (guest,)})
    (stretch,) = read(document(seen)).stretches
    assert (stretch.local, stretch.remote, stretch.range) == ("169.254.64.1", "169.254.64.2", "10.1.2.0/24")
    assert stations(seen) == (PortStation(mac=mac_of(9), addresses=("10.1.2.99",)),)
    assert far_routers(seen) == ("r-west",)
    other = view(link, facts={"zone": "west"}, router=router())
    assert document(other)["stretches"]["l"]["local"] == "169.254.64.2"


def test_tunnels_of_links_stay_within_their_part_of_the_link_local_range() -> None:
    assert inner(LINKS_MAX - 1) == ("169.254.127.253", "169.254.127.254")


@pytest.mark.parametrize(
    ("names", "held", "expected"),
    [
        ("", {}, {}),
        ("ab", {}, {"a": 2, "b": 3}),
        ("bc", {"a": 2, "b": 3}, {"b": 3, "c": 2}),
        ("ba", {"a": 2, "b": 3}, {"b": 3, "a": 2}),
        ("abcde", {"e": 6}, {"a": 2, "b": 3, "c": 4, "d": 5, "e": 6}),
        ("abcdef", {}, None),
    ],
)
def test_clients_keep_their_addresses(names: str, held: dict[str, int], expected: dict[str, int] | None) -> None:
    def told(numbers: dict[str, int]) -> dict[str, str]:
        return {name: f"10.0.0.{number}" for name, number in numbers.items()}

    found = client_addresses(IPv4Network("10.0.0.0/29"), names, told(held))
    assert found == (None if expected is None else told(expected))


def test_ranges_meet_when_one_is_in_the_other() -> None:
    assert meeting(["10.0.0.0/24", "10.1.0.0/24"], ["10.1.0.128/25"]) == ("10.1.0.0/24", "10.1.0.128/25")
    assert meeting(["10.0.0.0/24"], ["10.0.1.0/24"]) is None
    assert meeting([], ["10.0.1.0/24"]) is None
