"""Managers' nodes as real VMs: reached in three ways, asked while everything dies, hostile, and of use to tenants."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.vm import realcloud
    from tests.vm.fleet_rig import EXAMPLES, IMAGE, Manager, add_image
    from tests.vm.realcloud import Json, SplitCloud, until
else:
    import realcloud
    from fleet_rig import EXAMPLES, IMAGE, Manager, add_image
    from realcloud import SplitCloud, until

GUEST_AGENT = {
    "commands": [
        {"name": "links", "path": "/bin/ls", "arguments": ["/sys/class/net"], "repeatable": True},
        {"name": "apply", "path": "/bin/cp", "arguments": ["/etc/document", "/etc/applied"], "repeatable": True},
        {"name": "show", "path": "/bin/cat", "arguments": ["/etc/applied"], "repeatable": True},
    ],
    "document": "/etc/document",
    "apply": "apply",
}
QUARANTINE_S = 500.0
"""A flood is hung up on six times, for 5 s and each time twice as long, before it is heard no more."""


@pytest.fixture(scope="module")
def cloud() -> Iterator[SplitCloud]:
    """Server and agent as processes of their own."""
    with realcloud.split() as running:
        running.pileus("patch", "zone", "one", "--router", "none")
        add_image(running, IMAGE)
        yield running


@pytest.fixture(scope="module")
def manager(cloud: SplitCloud) -> Manager:
    """A manager of the cluster that acme consented to."""
    made = Manager(cloud, "tests")
    made.consented("acme")
    made.package("counter")
    return made


@pytest.fixture(scope="module")
def counter(cloud: SplitCloud, manager: Manager) -> Json:
    """A node without any NIC, which notes each request that it does."""
    return manager.ready(manager.node("counter", "acme", package="counter"))[0]


def test_a_node_without_nic_one_with_a_nic_and_a_foreign_one_take_configurations_and_answer(
    cloud: SplitCloud, manager: Manager, counter: Json
) -> None:
    add_image(cloud, "debian-qga")
    manager.package("by-nic", "--channel", "nic", "--role", "counter", nics=1)
    desired = {"manager": "tests", "version": "foreign", "image": "debian-qga", "channel": "qga", "vcpus": 1,
               "memory_mib": 128, "nics": 0, "guest_agent": GUEST_AGENT}  # fmt: skip
    manager.api.call("POST", "/v1/fleet.package", {"name": "foreign", "desired": desired})
    made = (
        counter,
        manager.node("by-nic", "acme", package="by-nic", nics=[{"network": "default"}]),
        manager.node("foreign", "acme", package="foreign"),
    )
    manager.ready(*made)
    document = {"rules": {"web": {"port": 80}}}
    for node in made:
        found = manager.told(node, document)
        assert found["observed"]["hash"] == found["assigned"]["hash"] != ""
    by_nic = made[1]
    for node in (counter, by_nic):
        assert manager.ask(node, "hello").endswith(" 5")
    steps: list[Json] = [{"run": {"command": name, "values": {}}} for name in ("links", "show")]
    links, shown = json.loads(manager.ask(made[2], json.dumps(steps)))["steps"]
    assert links["output"] == "lo\n", "it has no other way to be reached"
    assert json.loads(shown["output"])["rules"] == document["rules"]
    for node in made[1:]:
        cloud.pileus("delete", "node", node["name"], "--account", "acme", "-y", "--wait")


@pytest.mark.parametrize("delay_s", [pytest.param(0.2, marks=pytest.mark.long), 1.6])
@pytest.mark.parametrize("victim", ["server", "agent", "node"])
def test_what_is_asked_while_something_is_killed_is_done_once_and_in_order(
    cloud: SplitCloud, manager: Manager, counter: Json, victim: str, delay_s: float
) -> None:
    before = manager.ask(counter, "list").split()
    asked = [manager.request(counter, payload) for payload in ("slow", "next", "slow", "last")]
    time.sleep(delay_s)
    began = time.monotonic()
    if victim == "server":
        cloud.kill(cloud.server)
        cloud.start_server()
    elif victim == "agent":
        cloud.kill(cloud.agent)
        cloud.start_agent()
    else:
        os.kill(cloud.qemus()[counter["assigned"]["vm"]], signal.SIGKILL)
    for request in asked:
        payload = request["desired"]["payload"]
        assert manager.answer(request) == ("applied", f"{request['id']} {len(payload)}")
    print(
        f"measured: four requests, {victim} killed after {delay_s} s: all done {time.monotonic() - began:.1f} s later"
    )
    assert manager.ask(counter, "list").split() == before + [request["id"] for request in asked]


@pytest.mark.long
def test_a_tenants_vm_uses_a_volume_of_the_storage_manager(cloud: SplitCloud, manager: Manager) -> None:
    stores = Manager(cloud, "stores")
    stores.consented("acme")
    stores.package("storage", nics=1)
    manager.package("initiator", nics=1)
    stores.run("storage", "tend", str(EXAMPLES / "storage/volumes.json"), "--once")
    tenant = manager.node("vm", "acme", package="initiator", nics=[{"address": "10.1.1.20"}])
    (storage,) = stores.ready(*stores.api.nodes())
    manager.ready(tenant)
    wish = {"portal": _address(cloud, storage), "target": "iqn.2026-11.example.pileus:scratch"}
    assert json.loads(manager.ask(tenant, json.dumps({**wish, "write": "kept"}))) == {"size_mib": 64, "read": "kept"}

    (tenant,) = manager.ready(tenant)
    os.kill(cloud.qemus()[tenant["assigned"]["vm"]], signal.SIGKILL)
    assert json.loads(manager.ask(tenant, json.dumps(wish))) == {"size_mib": 64, "read": "kept"}
    assert '"served": ["scratch"]' in stores.run("storage", "report")
    for name in ("vm", "storage"):
        cloud.pileus("delete", "node", name, "--account", "acme", "-y", "--wait")


@pytest.mark.long
def test_the_same_program_serves_one_account_with_the_key_of_its_own_manager(cloud: SplitCloud) -> None:
    cloud.pileus("create", "account", "umbrella")
    own = Manager(cloud, "own", account="umbrella")
    own.package("firewall", nics=1)
    wishes = {"all": {"rules": {"web": {"protocol": "tcp", "port": 80, "action": "accept"}}}}
    own.run("firewall", "tend", cloud.file("own.json", json.dumps(wishes)), "--once")
    own.ready(*own.api.nodes())
    assert "umbrella/firewall: applied: " in own.run("firewall", "block", "203.0.113.9")
    until("its status says so", lambda: '"203.0.113.9/32"' in own.run("firewall", "report"))
    wishes["all"]["rules"] = {"ssh": {"protocol": "tcp", "port": 22, "action": "drop"}}
    own.run("firewall", "tend", cloud.file("own.json", json.dumps(wishes)), "--once")
    own.ready(*own.api.nodes())
    until(
        "the document is taken whole", lambda: '"counters": {"blocked": 0, "ssh": 0}' in own.run("firewall", "report")
    )
    cloud.pileus("delete", "node", "firewall", "--account", "umbrella", "-y", "--wait")


@pytest.mark.long
def test_a_tenants_vm_is_told_names_by_the_names_manager(cloud: SplitCloud) -> None:
    names = Manager(cloud, "names")
    names.consented("acme")
    names.package("names", nics=1)
    file = cloud.file("names.json", (EXAMPLES / "names/names.json").read_text())
    assert names.run("names", "give", file, "acme", "mail.corp") == "10.1.1.101\n"
    names.run("names", "tend", file, "--once")
    (node,) = names.ready(*names.api.nodes())
    assert '"addresses": ["10.1.1.101"]' in names.run("names", "resolve", "mail.corp")
    script = cloud.file("look.sh", f"#!/bin/sh\nnslookup mail.corp {_address(cloud, node)} | sed 's/^/FOUND /'\n")
    cloud.pileus("create", "vm", "reader", "--account", "acme", "--user-data", script)
    cloud.until_printed("reader", r"^FOUND Address.*10\.1\.1\.101")
    cloud.pileus("delete", "vm", "reader", "--account", "acme", "-y", "--wait")
    cloud.pileus("delete", "node", "names", "--account", "acme", "-y", "--wait")


def _address(cloud: SplitCloud, node: Json) -> str:
    """Return the address of the node's first NIC in its tenant's network."""
    with cloud.client() as client:
        vm: Json = client.get(f"/v1/compute.vm/{node['assigned']['vm']}")
    return str(vm["observed"]["addresses"][0])


@pytest.mark.long
def test_a_node_that_floods_is_quarantined_and_its_neighbour_answers(
    cloud: SplitCloud, manager: Manager, counter: Json
) -> None:
    manager.package("hostile")
    (hostile,) = manager.ready(manager.node("hostile", "acme", package="hostile"))
    manager.request(hostile, "flood")
    slowest_s = 0.0

    def is_quarantined() -> bool:
        nonlocal slowest_s
        began = time.monotonic()
        assert manager.ask(counter, "hello").endswith(" 5")
        slowest_s = max(slowest_s, time.monotonic() - began)
        found = manager.api.call("GET", f"/v1/fleet.node/{hostile['id']}")
        return bool(found["conditions"][0]["reason"] == "Quarantined")

    began = time.monotonic()
    until("the node is quarantined", is_quarantined, QUARANTINE_S)
    print(
        f"measured: quarantined after {time.monotonic() - began:.0f} s; slowest request of its neighbour {slowest_s:.1f} s"
    )
    assert "more than it may" in manager.api.call("GET", f"/v1/fleet.node/{hostile['id']}")["conditions"][0]["message"]
    cloud.pileus("delete", "node", "hostile", "--account", "acme", "-y", "--wait")
