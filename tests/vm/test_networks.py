"""Networks of two accounts over three hosts in two pods: everything is looked at from inside guests or on the wire."""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pileus.image.recipes import ensure_image

if TYPE_CHECKING:
    from tests.vm.realcloud import until
    from tests.vm.reallab import RealLab, labbed
else:
    from realcloud import until
    from reallab import RealLab, labbed

ACCOUNTS = ("acme", "umbrella")
VMS = ("a", "b", "c")
IDLE_S = 10


@pytest.fixture(scope="module")
def lab() -> Iterator[RealLab]:
    """Two accounts with the range 10.1.1.0/24 each and three VMs each, one on every host."""
    with labbed("--hosts", "3", "--pods", "2") as running:
        running.pileus("patch", "zone", "zone1", "--router-idle-s", str(IDLE_S), "--router", "single")
        for account in ACCOUNTS:
            running.pileus("create", "account", account)
        for number, name in enumerate(VMS, 1):
            running.alone(f"host{number}", 3)
            for account in ACCOUNTS:
                running.pileus("create", "vm", name, "--account", account)
                running.until_vm(name, lambda vm: bool(vm["host"]), account=account)
        running.alone("", 3)
        for account in ACCOUNTS:
            running.pileus(
                "wait", "vm", *VMS, "--account", account, "--for", "ready", "--timeout", "120", timeout_s=130
            )
            for name in VMS:
                running.until_printed(name, "PILEUS-READY", account=account)
        yield running


def _addresses(lab: RealLab, account: str) -> dict[str, str]:
    return {name: lab.vm(name, account)["observed"]["addresses"][0] for name in VMS}


def test_guests_have_leases_names_and_pages_across_hosts_and_pods(lab: RealLab) -> None:
    for account in ACCOUNTS:
        assert len({lab.vm(name, account)["host"] for name in VMS}) == 3
        addresses = _addresses(lab, account)
        for name in VMS:
            inside = lab.shell(name, "ip -4 -o addr show dev eth0; ip route; cat /etc/resolv.conf", account)
            assert f"inet {addresses[name]}/24" in inside
            assert "default via 10.1.1.1" in inside
            assert "nameserver 10.1.1.1" in inside
        for other in ("b", "c"):
            printed = lab.shell(
                "a", f"nslookup {other}; ping -c 2 -W 2 {other}; timeout 5 wget -q -O - http://{other}/"
            )
            assert addresses[other] in printed if account == "acme" else True
            assert ", 0% packet loss" in printed
            assert re.search(rf"hello from {other}$", printed, re.MULTILINE), printed


def test_nothing_reaches_the_other_account(lab: RealLab) -> None:
    own, others = _addresses(lab, "acme"), _addresses(lab, "umbrella")
    strangers = sorted(set(others.values()) - set(own.values()) - {"10.1.1.1"})
    for address in [*strangers, "10.1.1.200"]:
        assert "100% packet loss" in lab.shell("a", f"ping -c 1 -W 1 {address}")
    answer = lab.shell("a", "nslookup a.default.umbrella.internal 10.1.1.1")
    assert not any(address in answer for address in strangers)


def _public(lab: RealLab, account: str = "acme") -> str:
    address = lab.json("get", "router", "router-zone1", "--account", account)["assigned"]["public_address"]
    assert address
    return str(address)


def _page(lab: RealLab, url: str) -> str:
    """Return what the test host outside gets; empty: nothing within a second."""
    return lab.machine("internet", "curl", "-s", "--max-time", "1", url).stdout.strip()


def test_the_outside_sees_the_routers_public_address(lab: RealLab) -> None:
    printed = lab.shell("c", "ping -c 2 -W 2 192.0.2.10; timeout 5 wget -q -O - http://192.0.2.10/")
    assert ", 0% packet loss" in printed
    assert f"you are {_public(lab)}" in printed


def test_a_forward_opens_a_port_and_a_closed_port_is_closed(lab: RealLab) -> None:
    url = f"http://{_public(lab)}:8080/"
    assert _page(lab, url) == ""
    began = time.monotonic()
    lab.pileus("create", "forward", "web", "--account", "acme", "--port", "8080", "--vm", "b", "--vm-port", "80")
    assert until("the forward answers", lambda: _page(lab, url), limit_s=20) == "hello from b"
    print(f"measured: forward answers from outside {time.monotonic() - began:.2f} s after the request began")
    lab.pileus("wait", "forward", "web", "--account", "acme", "--for", "ready", "--timeout", "10")
    lab.pileus("delete", "forward", "web", "--account", "acme", "-y", "--wait")
    assert _page(lab, url) == ""


@pytest.mark.long
def test_a_balancer_spreads_drops_a_dead_member_and_takes_it_back(lab: RealLab) -> None:
    url = f"http://{_public(lab)}:8081/"
    members = [word for name in VMS for word in ("--vm", name, "--member-port", "80")]
    lab.pileus("create", "balancer", "all", "--account", "acme", "--port", "8081", "--protocol", "http", *members)
    everyone = {f"hello from {name}" for name in VMS}

    def seen() -> set[str]:
        return {_page(lab, url) for _ in range(6)} - {""}

    until("all members answer", lambda: seen() == everyone, limit_s=20)
    lab.shell("b", "killall httpd")
    began = time.monotonic()
    until("the dead member is left out", lambda: seen() == everyone - {"hello from b"}, limit_s=20)
    print(f"measured: dead member left out after {time.monotonic() - began:.2f} s, six requests included")
    health = lab.json("get", "balancer", "all", "--account", "acme")["observed"]
    assert "down" in str(health), health
    lab.shell("b", "httpd -h /www -p 80 2>/dev/null || httpd -h /var/www")
    until("it takes part again", lambda: seen() == everyone, limit_s=20)
    lab.pileus("delete", "balancer", "all", "--account", "acme", "-y", "--wait")


def test_a_firewall_rule_drops_what_it_says(lab: RealLab) -> None:
    rule = lab.file(
        "firewall.yaml",
        "kind: gateway.firewall\nname: no-web\ndesired:\n  rules:\n"
        "  - {direction: egress, action: drop, protocol: tcp, port_first: 80, port_last: 80}\n",
    )
    lab.pileus("apply", "-f", rule, "--account", "acme")
    lab.pileus("wait", "firewall", "no-web", "--account", "acme", "--for", "ready", "--timeout", "20")
    printed = lab.shell("c", "ping -c 1 -W 2 192.0.2.10; timeout 3 wget -q -O - http://192.0.2.10/ || echo closed")
    assert ", 0% packet loss" in printed
    assert "closed" in printed
    lab.pileus("delete", "firewall", "no-web", "--account", "acme", "-y", "--wait")
    assert "you are" in lab.shell("c", "timeout 5 wget -q -O - http://192.0.2.10/")


def test_what_a_guest_forges_reaches_nobody(lab: RealLab) -> None:
    """Wrong MAC, wrong address, gratuitous ARP for the gateway, a DHCP server and IPv6, from inside a guest."""
    gateway = lab.shell("c", "ping -c 1 -W 2 10.1.1.1 >/dev/null; arp -n 10.1.1.1")
    owned = re.search(r"02:50(?::[0-9a-f]{2}){4}", gateway)
    assert owned is not None, gateway
    forged = (
        "ip addr add 10.1.1.99/24 dev eth0; ping -c 2 -W 1 -I 10.1.1.99 10.1.1.1; ip addr del 10.1.1.99/24 dev eth0; "
        "arping -U -c 3 -s 10.1.1.1 -I eth0 10.1.1.1; arping -A -c 3 -s 10.1.1.1 -I eth0 10.1.1.1; true"
    )
    assert "100% packet loss" in lab.shell("a", forged)
    after = lab.shell("c", "arp -n 10.1.1.1")
    assert owned.group() in after
    strange = "ip link set eth0 address 02:50:00:00:ff:ff; ping -c 2 -W 1 10.1.1.1; "
    kept = lab.shell("a", "cat /sys/class/net/eth0/address").strip()
    assert "100% packet loss" in lab.shell("a", f"{strange} ip link set eth0 address {kept}")
    assert ", 0% packet loss" in lab.shell("a", "ping -c 3 -W 2 10.1.1.1")


def test_a_pair_survives_the_death_of_its_active_one(lab: RealLab) -> None:
    lab.pileus("patch", "network", "default", "--account", "acme", "--router", "redundant")

    def pair() -> list[str] | None:
        router = lab.json("get", "router", "router-zone1", "--account", "acme")
        found = router["observed"]
        return (
            found["nodes"] if found["state"] == "ready" and len(found["nodes"]) == 2 and found["active_node"] else None
        )

    until("both nodes are ready", pair, limit_s=120)
    nodes = {each["id"]: each for each in lab.json("get", "node", "--owned", "--account", "acme")["items"]}
    active = lab.json("get", "router", "router-zone1", "--account", "acme")["observed"]["active_node"]
    assert len({each["host"] for each in nodes.values()}) == 2
    with _pings(lab) as lost_s:
        os.kill(lab.machine_pid(nodes[active]["assigned"]["vm"]), signal.SIGKILL)
    print(f"measured: {max(lost_s):.1f} s without answers after kill -9 of the active appliance")
    assert max(lost_s) <= 3.0


@pytest.mark.long
def test_a_newer_image_replaces_a_pair_within_a_second(lab: RealLab) -> None:
    built = ensure_image("appliance", lambda line: None)
    lab.pileus("create", "image", "newer", "--append", built.append, "--file", str(built.disk), "--kernel",
               str(built.kernel), "--initrd", str(built.initrd))  # fmt: skip
    lab.pileus("wait", "image", "newer", "--timeout", "60")

    def generation() -> set[str] | None:
        router = lab.json("get", "router", "router-zone1", "--account", "acme")["observed"]
        nodes = lab.json("get", "node", "--owned", "--account", "acme")["items"]
        is_whole = router["state"] == "ready" and router["active_node"]
        ids = {each["id"] for each in nodes if each["observed"] and each["observed"]["state"] == "ready"}
        return ids if is_whole and len(ids) == len(nodes) == 2 else None

    before = until("the pair is whole", generation, limit_s=120)
    with _pings(lab) as lost_s:
        lab.pileus("patch", "zone", "zone1", "--router-image", "newer")
        until("both are new", lambda: not before & (generation() or before), limit_s=180)
    print(f"measured: {max(lost_s):.1f} s without answers while both appliances of a pair were replaced")
    assert max(lost_s) <= 1.0


@contextmanager
def _pings(lab: RealLab) -> Iterator[list[float]]:
    """Let a guest ask the outside five times a second; after the block the list has the seconds between answers."""
    lab.shell("c", "(ping -i 0.2 192.0.2.10 > /tmp/pings 2>&1 &)")
    until("pings flow", lambda: len(_sequence(lab)) > 5)
    lost_s: list[float] = []
    yield lost_s
    last = _sequence(lab)[-1]
    until("pings flow again", lambda: _sequence(lab)[-1] > last + 20, limit_s=30)
    lab.shell("c", "killall ping")
    lost_s += [0.2 * (after - before) for before, after in itertools.pairwise(_sequence(lab))]


def _sequence(lab: RealLab) -> list[int]:
    """Return the numbers of the pings that were answered."""
    return [int(number) for number in re.findall(r"seq=(\d+) ", lab.shell("c", "cat /tmp/pings"))]


def test_the_router_goes_after_the_last_vm_and_leaves_nothing(lab: RealLab) -> None:
    lab.pileus("delete", "vm", *VMS, "--account", "umbrella", "-y", "--wait")

    def is_idle() -> bool:
        found = lab.json("get", "router", "router-zone1", "--account", "umbrella")
        return bool(found["observed"]["state"] == "idle" and not found["assigned"]["public_address"])

    until("the router of umbrella is collected", is_idle, limit_s=IDLE_S + 60)
    for kind in ("vm", "port", "volume", "node"):
        assert lab.json("get", kind, "--account", "umbrella")["items"] == []
