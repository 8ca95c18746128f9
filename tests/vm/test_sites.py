"""Two zones of a lab: joined by a site-to-site VPN at layer 3, and a network stretched over both at layer 2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.vm.realcloud import until
    from tests.vm.reallab import RealLab, labbed
else:
    from realcloud import until
    from reallab import RealLab, labbed

RANGES = {"zone1": "10.1.1.0/24", "zone2": "10.2.1.0/24"}
STRETCHED = "10.9.0.0/24"
VMS = {"zone1": "one", "zone2": "two"}


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def lab() -> Iterator[RealLab]:
    """An account with a VM in each zone."""
    with labbed("--hosts", "2", "--pods", "2", "--zones", "2") as running:
        running.pileus("create", "account", "acme")
        for zone, range_ in RANGES.items():
            number = zone[-1]
            running.pileus("create", "vdc", zone, "--account", "acme", "--zone", zone)
            made = ("create", "network", "--account", "acme", "--vdc", zone, "--router", "single")
            running.pileus(*made, f"own{number}", "--range", range_)
            running.pileus("create", "vm", VMS[zone], "--account", "acme", "--vdc", zone, "--network", f"own{number}")
        for name in VMS.values():
            running.pileus("wait", "vm", name, "--account", "acme", "--timeout", "120", timeout_s=130)
            running.until_printed(name, "PILEUS-READY")
        yield running


def _address(lab: RealLab, vm: str, position: int) -> str:
    return str(lab.vm(vm)["observed"]["addresses"][position])


def test_guest_networks_of_two_zones_do_not_meet_by_themselves(lab: RealLab) -> None:
    assert "100% packet loss" in lab.shell("one", f"ping -c 1 -W 2 {_address(lab, 'two', 0)}")


def test_a_site_vpn_joins_two_zones(lab: RealLab) -> None:
    lab.pileus("create", "vpn", "east", "--account", "acme", "--vdc", "zone1", "--mode", "site")
    lab.pileus("create", "vpn", "west", "--account", "acme", "--vdc", "zone2", "--mode", "site", "--peer", "east")
    lab.pileus("wait", "vpn", "east", "west", "--account", "acme", "--timeout", "30")
    far = _address(lab, "two", 0)
    until("the far guest answers", lambda: " 0% packet loss" in lab.shell("one", f"ping -c 2 -W 2 {far}"), limit_s=30)
    assert "hello from two" in lab.shell("one", f"timeout 5 wget -q -O - http://{far}/")
    lab.pileus("delete", "vpn", "west", "--account", "acme", "-y", "--wait")
    lab.pileus("delete", "vpn", "east", "--account", "acme", "-y", "--wait")
    until("it is parted again", lambda: "100% packet loss" in lab.shell("one", f"ping -c 1 -W 2 {far}"), limit_s=30)


def test_a_link_makes_one_layer_2_of_both_sides(lab: RealLab) -> None:
    for number, (zone, vm) in enumerate(VMS.items(), 1):
        first, last = ("10.9.0.10", "10.9.0.99") if number == 1 else ("10.9.0.100", "10.9.0.199")
        lab.pileus("create", "network", f"lan{number}", "--account", "acme", "--vdc", zone, "--router", "single",
                   "--range", STRETCHED, "--gateway", f"10.9.0.{number}", "--first", first, "--last", last)  # fmt: skip
        lab.pileus("attach", f"vm/{vm}", "--account", "acme", "--network", f"lan{number}", "--wait")
        until("the new NIC has its lease", lambda vm=vm: "inet 10.9.0." in lab.shell(vm, "ip -4 -o addr show eth1"))  # type: ignore[misc]
    lab.pileus("create", "link", "lan", "--account", "acme", "--network", "lan1", "--peer-network", "lan2")
    lab.pileus("wait", "link", "lan", "--account", "acme", "--timeout", "30")
    far = _address(lab, "two", 1)
    until("the far guest answers", lambda: " 0% packet loss" in lab.shell("one", f"ping -c 2 -W 2 {far}"), limit_s=30)
    macs = re.findall(r"02:50(?::[0-9a-f]{2}){4}", lab.shell("two", "cat /sys/class/net/eth1/address"))
    assert macs[0] in lab.shell("one", f"arp -n {far}"), "the far guest's own MAC is seen, so no router lies between"
    assert "hello from two" in lab.shell("one", f"timeout 5 wget -q -O - http://{far}/")
    lab.pileus("delete", "link", "lan", "--account", "acme", "-y", "--wait")
    until("it is parted again", lambda: "100% packet loss" in lab.shell("one", f"ping -c 1 -W 2 {far}"), limit_s=30)
