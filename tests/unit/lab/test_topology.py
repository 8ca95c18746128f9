"""Where the machines of a lab are, and that no two of them share anything."""

from __future__ import annotations

import ipaddress

import pytest

from pileus.cli.commands import lab as command
from pileus.kernel.errors import Rejected
from pileus.lab.topology import LINKS, MANAGEMENT_RANGE, Layout, cables, topology

LAYOUTS = [
    Layout(hosts=hosts, pods=pods, zones=zones)
    for hosts in (1, 2, 3, 5, 7, 64)
    for pods in (1, 2, 3, 7, 64)
    for zones in (1, 2, 3, 8)
    if zones <= pods <= hosts
]


def test_three_hosts_in_two_pods_are_two_and_one() -> None:
    found = topology(Layout(hosts=3, pods=2, zones=1))
    assert [(host.name, host.pod.name, host.pod.zone.name) for host in found.hosts] == [
        ("host1", "pod1", "zone1"),
        ("host2", "pod1", "zone1"),
        ("host3", "pod2", "zone1"),
    ]
    assert [host.uplinks.tunnel_address for host in found.hosts] == [
        "10.200.1.11/24",
        "10.200.1.12/24",
        "10.200.2.11/24",
    ]
    assert found.zones[0].desired["public_range"] == "203.0.113.0/24"


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_no_pod_and_no_zone_is_empty_and_sizes_differ_by_one_at_most(layout: Layout) -> None:
    found = topology(layout)
    sizes = [sum(host.pod == pod for host in found.hosts) for pod in found.pods]
    assert sum(sizes) == layout.hosts
    assert max(sizes) - min(sizes) <= 1
    per_zone = [sum(pod.zone == zone for pod in found.pods) for zone in found.zones]
    assert max(per_zone) - min(per_zone) <= 1
    assert min(sizes + per_zone) >= 1


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nothing_is_there_twice_and_every_name_fits_a_network_device(layout: Layout) -> None:
    found = topology(layout)
    assert len(set(found.machines)) == len(found.machines)
    ends = [(cable.machine, cable.device) for cable in found.cables] + [(c.switch, c.port) for c in found.cables]
    assert len(set(ends)) == len(ends)
    assert max(len(device) for _, device in ends) <= 15
    addresses = [address for _, _, address in found.addresses] + [host.uplinks.tunnel_address for host in found.hosts]
    assert len(set(addresses)) == len(addresses)
    assert len({host.management_mac for host in found.hosts}) == layout.hosts
    ranges = [zone.public for zone in found.zones] + [pod.underlay for pod in found.pods] + [MANAGEMENT_RANGE]
    assert not any(one.overlaps(other) for one in ranges for other in ranges if one is not other)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_host_reaches_its_gateway_and_has_every_link(layout: Layout) -> None:
    for host in topology(layout).hosts:
        place = ipaddress.IPv4Interface(host.uplinks.tunnel_address)
        assert ipaddress.IPv4Address(host.uplinks.tunnel_gateway) in place.network
        assert tuple(cables(host)) == LINKS == command.LINKS


@pytest.mark.parametrize(("hosts", "pods", "zones"), [(1, 2, 1), (3, 1, 2), (3, 4, 4)])
def test_a_layout_with_an_empty_pod_or_zone_is_refused(hosts: int, pods: int, zones: int) -> None:
    with pytest.raises(Rejected, match="every zone needs a pod"):
        topology(Layout(hosts=hosts, pods=pods, zones=zones))
