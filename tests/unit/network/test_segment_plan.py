"""Whom a segment meets, and by what; the steps of its host."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
from msgspec.structs import replace

from pileus.drivers.host.ovs.base import SegmentSpec
from pileus.infra.host.types import HostAssigned
from pileus.infra.zone.types import ZoneDesired
from pileus.kernel.kind import Resource
from pileus.network.segment.host import Seen, plan
from pileus.network.segment.plan import has_uplinks, placed, with_peers
from pileus.network.segment.types import SegmentAssigned

YesNo = Literal["yes", "no"]


def host(name: str, pod: str, tunnel: str = "", trunk: YesNo = "no") -> Resource:
    """Return a host with these uplinks."""
    assigned = HostAssigned(host=name, zone="z", pod=pod, tunnel_address=tunnel, has_trunk=trunk)
    return Resource(id=name, kind="infra.host", name=name, desired=None, assigned=assigned)


def segments(isolation: Literal["vlan", "vxlan"], *hosts: Resource) -> dict[str, SegmentAssigned]:
    """Return the segments of one VLAN on these hosts, each with its peers, by host."""
    zone = Resource(id="z", kind="infra.zone", name="z", desired=ZoneDesired(isolation=isolation))
    alone = [placed(zone, each, 7, 4103) for each in hosts]
    return {each.host: with_peers(each, alone) for each in alone}


HOSTS = (
    host("a1", "a", "10.0.1.9", "yes"),
    host("a2", "a", "10.0.1.10", "yes"),
    host("a3", "a", "10.0.1.11"),
    host("b1", "b", "10.0.2.9", "yes"),
    host("b2", "b", "", "yes"),
)


def test_hosts_of_a_pod_meet_on_the_trunk_and_all_others_by_tunnel() -> None:
    found = segments("vlan", *HOSTS)
    assert {name: (each.trunk, each.peers) for name, each in found.items()} == {
        "a1": ("yes", ("10.0.1.11", "10.0.2.9")),
        "a2": ("yes", ("10.0.1.11", "10.0.2.9")),
        "a3": ("no", ("10.0.1.9", "10.0.1.10", "10.0.2.9")),
        "b1": ("yes", ("10.0.1.9", "10.0.1.10", "10.0.1.11")),
        "b2": ("yes", ()),
    }


def test_in_a_zone_of_tunnels_no_trunk_is_used() -> None:
    found = segments("vxlan", *HOSTS)
    addresses = ("10.0.1.9", "10.0.1.10", "10.0.1.11", "10.0.2.9")
    for each in found.values():
        assert each.trunk == "no"
        others = tuple(address for address in addresses if address != each.tunnel_address)
        assert each.peers == (others if each.tunnel_address else ())


@pytest.mark.parametrize("isolation", ["vlan", "vxlan"])
def test_whom_one_meets_meets_it(isolation: Literal["vlan", "vxlan"]) -> None:
    for size in range(1, len(HOSTS) + 1):
        for some in itertools.combinations(HOSTS, size):
            found = segments(isolation, *some)
            for one, other in itertools.permutations(found.values(), 2):
                assert (one.tunnel_address in other.peers) == (other.tunnel_address in one.peers) or not (
                    one.tunnel_address and other.tunnel_address
                )


def test_other_vlans_and_zones_are_nobodys_peers() -> None:
    own = segments("vxlan", HOSTS[0])["a1"]
    stranger = segments("vxlan", HOSTS[1])["a2"]
    assert with_peers(own, [replace(stranger, vlan=8), replace(stranger, zone="y")]).peers == ()


def test_a_host_without_trunk_and_tunnel_is_alone() -> None:
    assert not has_uplinks(host("h", "a"))
    assert has_uplinks(host("h", "a", "10.0.1.1"))
    assert has_uplinks(host("h", "a", trunk="yes"))


WANTED = SegmentSpec(vlan=7, vni=4103, trunk=True, peers=("10.0.2.9",))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("found", [None, WANTED, replace(WANTED, peers=()), replace(WANTED, trunk=False)])
def test_a_segment_is_joined_until_it_is_as_wished_and_left_until_it_is_gone(
    found: SegmentSpec | None, left: bool
) -> None:
    join = plan(False, WANTED, Seen(found, left))
    assert (join is None) == (found == WANTED)
    leave = plan(True, WANTED, Seen(found, left))
    assert (leave is None) == (found is None and left)
