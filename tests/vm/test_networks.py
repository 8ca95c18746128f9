"""Networks of two accounts over three hosts in two pods: everything is looked at from inside guests or on the wire."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.vm.realcloud import until
    from tests.vm.reallab import RealLab, labbed
else:
    from realcloud import until
    from reallab import RealLab, labbed

ACCOUNTS = ("acme", "umbrella")
VMS = ("a", "b", "c")
IDLE_S = 10
PAGE = "#!/bin/sh\nmkdir -p /www; hostname > /www/index.html; httpd -h /www\n"


@pytest.fixture(scope="module")
def lab() -> Iterator[RealLab]:
    """Two accounts with the range 10.1.1.0/24 each and three VMs each, one on every host."""
    with labbed("--hosts", "3", "--pods", "2") as running:
        running.pileus("patch", "zone", "zone1", f"router_idle_s={IDLE_S}", "router=single")
        script = running.file("page.sh", PAGE)
        for account in ACCOUNTS:
            running.pileus("create", "account", account)
            for name in VMS:
                running.pileus("create", "vm", name, "--account", account, "--user-data", script)
        for account in ACCOUNTS:
            running.pileus(
                "wait", "vm", *VMS, "--account", account, "--for", "ready", "--timeout", "120", timeout_s=130
            )
            for name in VMS:
                running.until_printed(name, "PILEUS-USER-DATA exit 0", account=account)
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
            assert "0% packet loss" in printed
            assert re.search(rf"^{other}$", printed, re.MULTILINE), printed


def test_nothing_reaches_the_other_account(lab: RealLab) -> None:
    own, others = _addresses(lab, "acme"), _addresses(lab, "umbrella")
    strangers = sorted(set(others.values()) - set(own.values()) - {"10.1.1.1"})
    for address in [*strangers, "10.1.1.200"]:
        assert "100% packet loss" in lab.shell("a", f"ping -c 1 -W 1 {address}")
    assert "umbrella" not in lab.shell("a", "nslookup a.default.umbrella.internal 10.1.1.1")


def test_the_outside_is_seen_with_the_routers_public_address(lab: RealLab) -> None:
    router = lab.json("get", "router", "router-zone1", "--account", "acme")
    public = router["assigned"]["public_address"]
    assert public
    printed = lab.shell("c", "ping -c 2 -W 2 192.0.2.10; timeout 5 wget -q -O - http://192.0.2.10/")
    assert "0% packet loss" in printed
    seen = lab.machine("internet", "ping", "-c", "1", "-W", "2", public)
    assert seen.returncode == 0, seen.stdout + seen.stderr


def test_a_forward_is_in_force_within_two_seconds_and_a_closed_port_is_closed(lab: RealLab) -> None:
    public = lab.json("get", "router", "router-zone1", "--account", "acme")["assigned"]["public_address"]
    closed = lab.machine("internet", "timeout", "2", "curl", "-s", "--max-time", "1", f"http://{public}:8080/")
    assert closed.returncode != 0
    began = time.monotonic()
    lab.pileus("create", "forward", "web", "--account", "acme", "--port", "8080", "--vm", "b", "--vm-port", "80")

    def page() -> str | None:
        done = lab.machine("internet", "curl", "-s", "--max-time", "1", f"http://{public}:8080/")
        return done.stdout.strip() or None

    assert until("the forward answers", page, limit_s=10) == "b"
    print(f"measured: forward in force from outside {time.monotonic() - began:.2f} s after the request")
    lab.pileus("wait", "forward", "web", "--account", "acme", "--for", "ready", "--timeout", "10")
    lab.pileus("delete", "forward", "web", "--account", "acme", "-y", "--wait")
    gone = lab.machine("internet", "curl", "-s", "--max-time", "1", f"http://{public}:8080/")
    assert gone.returncode != 0


def test_the_router_goes_after_the_last_vm_and_leaves_nothing(lab: RealLab) -> None:
    lab.pileus("delete", "vm", *VMS, "--account", "umbrella", "-y", "--wait")

    def is_idle() -> bool:
        found = lab.json("get", "router", "router-zone1", "--account", "umbrella")
        return bool(found["observed"]["state"] == "idle" and not found["assigned"]["public_address"])

    until("the router of umbrella is collected", is_idle, limit_s=IDLE_S + 60)
    for kind in ("vm", "port", "volume", "node"):
        assert lab.json("get", kind, "--account", "umbrella")["items"] == []
