"""The life of routers on real processes: collected after their time although the server was killed; many at once."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from pileus.image.recipes import ensure_image

if TYPE_CHECKING:
    from tests.vm.realcloud import SplitCloud, split, until
    from tests.vm.reallab import labbed
else:
    from realcloud import SplitCloud, split, until
    from reallab import labbed

IDLE_S = 8
ACCOUNTS = tuple(f"tenant{number}" for number in range(6))
PUBLIC = ("--public-range", "203.0.113.0/28", "--router", "single", "--router-idle-s", str(IDLE_S))


def _with_routers(cloud: SplitCloud) -> None:
    built = ensure_image("appliance", lambda line: None)
    cloud.pileus("create", "image", "appliance", "--append", built.append, "--file", str(built.disk), "--kernel",
                 str(built.kernel), "--initrd", str(built.initrd))  # fmt: skip
    cloud.pileus("wait", "image", "appliance", "--timeout", "60")
    cloud.pileus("patch", "zone", "one", *PUBLIC)
    cloud.pileus("create", "network", "served", "--account", "acme", "--range", "10.5.5.0/24", "--router", "single")


@pytest.mark.long
def test_a_router_is_collected_after_its_time_although_the_server_was_killed() -> None:
    with split() as cloud:
        _with_routers(cloud)
        cloud.pileus("create", "vm", "web", "--account", "acme", "--network", "served")
        cloud.pileus("wait", "vm", "web", "--account", "acme", "--timeout", "120", timeout_s=130)
        nodes = cloud.json("get", "node", "--owned", "--account", "acme")["items"]
        appliance, web = cloud.vm(nodes[0]["assigned"]["vm"]), cloud.vm("web")
        assert nodes[0]["observed"]["state"] == "ready"
        assert appliance["observed"]["started_at"] <= web["observed"]["started_at"]
        ports = cloud.json("get", "port", "--account", "acme")["items"]
        own = [port for port in ports if port["owner"] == appliance["id"]]
        assert sorted(port["assigned"]["vlan"] for port in own) == [0, web_vlan(ports, web["id"])], "no other network"

        cloud.pileus("stop", "vm", "web", "--account", "acme", "--wait")
        stopped_at = time.monotonic()
        until("its time runs", lambda: router(cloud)["assigned"]["idle_since"], limit_s=30)
        cloud.kill(cloud.server, signal.SIGKILL)
        cloud.start_server()
        until("the router is collected", lambda: router(cloud)["observed"]["state"] == "idle", limit_s=IDLE_S + 60)
        print(
            f"measured: router gone {time.monotonic() - stopped_at:.1f} s after the last VM, of which {IDLE_S} s asked"
        )
        assert time.monotonic() - stopped_at >= IDLE_S
        assert router(cloud)["assigned"]["public_address"] == ""
        assert cloud.json("get", "node", "--owned", "--account", "acme")["items"] == []
        assert list(cloud.qemus()) == []
        cloud.pileus("delete", "vm", "web", "--account", "acme", "-y", "--wait")
        assert not cloud.taps()
        assert not cloud.machine_folders()
        assert not cloud.volume_files()


def web_vlan(ports: list[dict[str, object]], vm: str) -> int:
    """Return the VLAN of a VM's port."""
    (assigned,) = (port["assigned"] for port in ports if port["owner"] == vm)
    assert isinstance(assigned, dict)
    return int(assigned["vlan"])


def router(cloud: SplitCloud) -> dict[str, dict[str, object]]:
    """Return the account's router."""
    return cloud.json("get", "router", "router-one", "--account", "acme")


@pytest.mark.long
def test_six_accounts_deploy_at_once_and_nothing_is_given_twice() -> None:
    with labbed("--hosts", "3", "--pods", "2") as lab:
        for account in ACCOUNTS:
            lab.pileus("create", "account", account)
        began = time.monotonic()
        for account in ACCOUNTS:
            lab.pileus("create", "vm", "web", "--account", account)
        for account in ACCOUNTS:
            lab.pileus("wait", "vm", "web", "--account", account, "--timeout", "180", timeout_s=190)
        print(f"measured: six accounts, each with a router and a VM: {time.monotonic() - began:.1f} s")
        routers = lab.json("get", "router", "-A")["items"]
        assert len({each["assigned"]["public_address"] for each in routers}) == len(ACCOUNTS)
        ports = lab.json("get", "port", "-A")["items"]
        macs = [port["assigned"]["mac"] for port in ports]
        assert len(set(macs)) == len(macs) == 3 * len(ACCOUNTS)
        vlans: dict[int, set[str]] = {}
        for port in ports:
            if port["assigned"]["vlan"]:
                vlans.setdefault(port["assigned"]["vlan"], set()).add(port["account"])
        assert len(vlans) == len(ACCOUNTS)
        assert all(len(accounts) == 1 for accounts in vlans.values())
