"""Two tenants with the same addresses on one host: what their VMs see, and what the switch delivered."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pileus.drivers.host.ovs.real import OpenVSwitch
from pileus.lab import demo

if TYPE_CHECKING:
    from tests.vm import realcloud
    from tests.vm.realcloud import RealCloud
    from tests.vm.terminal import Terminal
else:
    import realcloud
    from realcloud import RealCloud
    from terminal import Terminal


@pytest.fixture(scope="module")
def tenants() -> Iterator[RealCloud]:
    """The cloud and the tenants of the demo, all of whose start scripts have ended."""
    with realcloud.upped() as cloud:
        run = demo.Run(cloud.folder, time.monotonic())
        demo.make_tenants(run)
        for account in demo.ACCOUNTS:
            for name in ("web", "db"):
                cloud.until_printed(name, r"^DEMO done$", account=account)
        yield cloud


def test_both_tenants_have_the_same_addresses_on_one_host(tenants: RealCloud) -> None:
    vms = tenants.json("get", "vm", "-A")["items"]
    assert len({vm["host"] for vm in vms}) == 1
    seen = {(vm["account"], vm["name"]): vm["observed"]["addresses"] for vm in vms}
    assert seen == {
        (account, name): [address]
        for account in ("acme", "umbrella")
        for name, address in (("web", demo.WEB), ("db", demo.DB))
    }


@pytest.mark.parametrize("account", demo.ACCOUNTS)
def test_start_scripts_reach_the_sibling_and_never_the_other_account(tenants: RealCloud, account: str) -> None:
    for name, sibling_name, sibling in (("web", "db", demo.DB), ("db", "web", demo.WEB)):
        lines = re.findall(rf"^DEMO {name} of {account}: (.*)$", tenants.console(name, account), re.MULTILINE)
        assert lines == [
            f"ping of its sibling {sibling}: answered (3 packets transmitted, 3 packets received, 0% packet loss)",
            f"page of its sibling: hello from {sibling_name}",
            f"ping of the other account's {demo.STRANGER[account]}: never answered "
            "(3 packets transmitted, 0 packets received, 100% packet loss)",
        ]


@pytest.mark.parametrize("account", demo.ACCOUNTS)
def test_the_address_that_strangers_cannot_reach_answers_its_own_account(tenants: RealCloud, account: str) -> None:
    with Terminal(tenants, "db", account) as terminal:
        said = terminal.shell(f"ping -c 2 -W 2 {demo.OWN[account]} | grep received")
    assert said.strip() == "2 packets transmitted, 2 packets received, 0% packet loss"


def test_the_switch_delivered_no_frame_of_one_vlan_to_a_port_of_the_other(tenants: RealCloud) -> None:
    switch = OpenVSwitch(tenants.paths)

    async def look() -> tuple[dict[str, dict[int, int]], dict[str, int]]:
        return await switch.vlan_counts(), {id: fact.vlan for id, fact in (await switch.observe()).items()}

    counts, vlans = asyncio.run(look())
    accounts = {port["id"]: port["account"] for port in tenants.json("get", "port", "-A")["items"]}
    assert set(counts) == set(accounts) == set(vlans)
    assert len({(accounts[id], vlan) for id, vlan in vlans.items()}) == 2
    assert len(set(vlans.values())) == 2
    assert [list(by_vlan) for by_vlan in counts.values()] == [[vlans[id]] for id in counts]
    assert all(frames > 0 for by_vlan in counts.values() for frames in by_vlan.values())
    print(f"measured: frames delivered, by port and VLAN: {counts}")


def test_a_guest_that_takes_an_address_of_the_other_account_reaches_nobody(tenants: RealCloud) -> None:
    stranger = demo.STRANGER["acme"]
    with Terminal(tenants, "db", "acme") as terminal:
        said = terminal.shell(
            f"ip address add {stranger}/24 dev eth0; "
            f"ping -c 2 -W 1 -I {stranger} {demo.WEB} | grep received; "
            f"ip address del {stranger}/24 dev eth0"
        )
    assert said.strip() == "2 packets transmitted, 0 packets received, 100% packet loss"


def test_after_both_accounts_are_deleted_nothing_of_them_is_left(tenants: RealCloud) -> None:
    run = demo.Run(tenants.folder, time.monotonic())
    with pytest.raises(demo.Failed, match="'QEMU processes': 4, 'taps': 4, 'switch ports': 4"):
        demo.show_nothing_left(run)  # it sees what there is
    demo.stop_start_delete(run)
    demo.show_nothing_left(run)
    assert not tenants.qemus()
    assert not tenants.taps()
    assert not tenants.machine_folders()
    assert not tenants.volume_files()
