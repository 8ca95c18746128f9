"""One manager, three tenants, six nodes on three hosts: each node hears what is meant for it, and nobody else reaches it."""

from __future__ import annotations

import contextlib
import json
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.vm.fleet_rig import IMAGE, Manager, add_image
    from tests.vm.realcloud import LIMIT_S, Json, until
    from tests.vm.reallab import RealLab, labbed
else:
    from fleet_rig import IMAGE, Manager, add_image
    from realcloud import LIMIT_S, until
    from reallab import RealLab, labbed

TENANTS = ("acme", "umbrella", "initech")
HOSTS = ("host1", "host2", "host3")
FIRST, SECOND = "firewall", "second"
pytestmark = pytest.mark.long
PORTS = "22 23 53 67 80 111 443 3260 5000 5900 8080 9100"


@pytest.fixture(scope="module")
def lab() -> Iterator[RealLab]:
    """Three hosts, and a VM of acme's that is in the network of its nodes."""
    with labbed("--hosts", "3") as running:
        running.pileus("patch", "zone", "zone1", "--router", "none")
        add_image(running, IMAGE)
        for tenant in TENANTS:
            running.pileus("create", "account", tenant)
        yield running


class Wires:
    """Everything that passes any interface of the hosts while it listens."""

    def __init__(self, lab: RealLab) -> None:
        self._lab = lab
        self._files = {name: lab.folder / f"{name}.pcap" for name in lab.namespaces() if name.startswith(lab.prefix())}
        self._listening = {name: self._listen(name, file) for name, file in self._files.items()}

    def _listen(self, namespace: str, file: Path) -> subprocess.Popen[str]:
        argv = ["ip", "netns", "exec", namespace, "tcpdump", "-Z", "root", "-i", "any", "-y", "LINUX_SLL2", "-U", "-w"]
        child = subprocess.Popen([*argv, str(file)], stderr=subprocess.PIPE, text=True)
        assert child.stderr is not None
        until("tcpdump listens", lambda: "listening" in str(child.stderr and child.stderr.readline()))
        return child

    def stop(self) -> dict[tuple[str, int], bytes]:
        """Return what passed each interface, by namespace and number of the interface."""
        for child in self._listening.values():
            child.send_signal(signal.SIGINT)
        for child in self._listening.values():
            child.communicate(timeout=LIMIT_S)
        return {(name, nic): said for name, file in self._files.items() for nic, said in _frames(file).items()}

    def kill(self) -> None:
        """End what still listens."""
        for child in self._listening.values():
            with contextlib.suppress(ProcessLookupError):
                child.kill()


def _frames(file: Path) -> dict[int, bytes]:
    """Return the frames of a capture one after another, by number of the interface. Source: pcap-savefile(5), LINUX_SLL2."""
    content = file.read_bytes()
    found: dict[int, bytes] = {}
    place = 24
    while place + 16 <= len(content):
        (length,) = struct.unpack_from("<I", content, place + 8)
        frame = content[place + 16 : place + 16 + length]
        nic = int.from_bytes(frame[4:8], "big")
        found[nic] = found.get(nic, b"") + frame[20:]
        place += 16 + length
    return found


def _marks(tenant: str) -> tuple[str, str]:
    """Return the name of a rule and an address that only this tenant's nodes ever hear of."""
    return f"only-for-{tenant}", f"198.51.100.{TENANTS.index(tenant) + 1}"


def _wishes() -> Json:
    rule = {"protocol": "tcp", "port": 8080, "action": "drop"}
    return {"accounts": {tenant: {"rules": {_marks(tenant)[0]: rule}} for tenant in TENANTS}}


@pytest.fixture(scope="module")
def manager(lab: RealLab) -> Manager:
    """A manager of the cluster that tends, with two nodes per tenant: one is reached by serial port, one by its NIC."""
    made = Manager(lab, "firewalls")
    made.package("by-nic", "--channel", "nic", "--role", "firewall", nics=1)
    made.package("firewall", nics=1)
    with made.running("firewall", "tend", lab.file("rules.json", json.dumps(_wishes()))):
        for number, tenant in enumerate(TENANTS):
            lab.alone(HOSTS[number], len(HOSTS))
            made.consented(tenant)
            _placed(made, number * 2 + 1)
            lab.alone(HOSTS[(number + 1) % 3], len(HOSTS))
            document = _wishes()["accounts"][tenant]
            made.node(SECOND, tenant, package="by-nic", nics=[{"network": "default"}], document=document)
            _placed(made, number * 2 + 2)
        lab.alone("", len(HOSTS))
        lab.pileus("create", "vm", "a", "--account", "acme")
        made.ready(*made.api.nodes())
    lab.until_printed("a", "PILEUS-READY", account="acme")
    return made


def _placed(manager: Manager, count: int) -> None:
    until("the nodes have hosts", lambda: len([1 for node in manager.api.nodes() if node["host"]]) == count)


def _log(manager: Manager, node: Json) -> list[list[str]]:
    """Return every document and request that the node says it was given."""
    return [json.loads(line) for line in manager.ask(node, "log").splitlines()]


def test_rules_and_requests_reach_the_nodes_that_are_meant_and_no_other(lab: RealLab, manager: Manager) -> None:
    nodes = manager.api.nodes()
    assert len(nodes) == 6
    assert len({node["host"] for node in nodes}) == 3
    wires = Wires(lab)
    try:
        for tenant in TENANTS:
            printed = manager.run("firewall", "--account", tenant, "block", _marks(tenant)[1])
            assert printed.count("applied") == 2, printed
        told = {
            tenant: {
                "rules": {
                    **_wishes()["accounts"][tenant]["rules"],
                    f"later-{_marks(tenant)[0]}": {"protocol": "udp", "action": "drop"},
                }
            }
            for tenant in TENANTS
        }
        for node in nodes:
            manager.told(node, told[node["account"]])
        passed = wires.stop()
    finally:
        wires.kill()
    for node in manager.ready(*nodes):
        tenant = node["account"]
        rule, address = _marks(tenant)
        log = _log(manager, node)
        assert [verb for verb, _ in log] == ["apply", "request", "apply"], log
        assert [json.loads(text) for _, text in log] == [
            _wishes()["accounts"][tenant], {"block": address}, told[tenant],
        ]  # fmt: skip
        answer = json.loads(manager.ask(node, "{}"))
        assert answer["blocked"] == [f"{address}/32"]
        assert set(answer["counters"]) == {"blocked", rule, f"later-{rule}"}
    _only_own(passed)


def _only_own(passed: dict[tuple[str, int], bytes]) -> None:
    """What names a tenant's rules passed one NIC of that tenant's, and no cable."""
    seen = {
        place: [tenant for tenant in TENANTS if _marks(tenant)[0].encode() in said] for place, said in passed.items()
    }
    assert all(len(tenants) <= 1 for tenants in seen.values()), seen
    assert sorted(tenant for tenants in seen.values() for tenant in tenants) == sorted(TENANTS), seen


def test_nobody_has_a_way_to_a_node_but_through_the_hypervisor(lab: RealLab, manager: Manager) -> None:
    for node in manager.api.nodes():
        heard = {"packet": 1} if node["name"] == SECOND else {}
        assert json.loads(manager.ask(node, "sockets")) == heard, "nothing in it listens to the network"
    vms: list[Any] = lab.json("get", "vm", "--account", "acme", "--owned")["items"]
    for vm in (vm for vm in vms if vm["name"] != "a"):
        (address,) = vm["observed"]["addresses"]
        scan = f"for port in {PORTS}; do nc -w 1 {address} $port < /dev/null > /dev/null 2>&1 && echo open $port; done; true"
        assert "open" not in lab.shell("a", scan)
        own = lab.shell("a", f"ping -c 1 -W 2 {address}; arp -n {address}")
        assert ", 0% packet loss" in own, "it is a neighbour, as any VM of the tenant's"
        assert ", 0% packet loss" not in lab.shell("a", f"ping6 -c 1 -W 1 -I eth0 {_link_local(own)}; true")
        for machine in ("internet", *HOSTS):
            done = lab.machine(machine, "curl", "-s", "--max-time", "1", f"http://{address}/")
            assert done.returncode in (6, 7, 28), done

    (own_address,) = lab.vm("a")["observed"]["addresses"]
    for tenant, answers in (("umbrella", True), ("acme", False)):
        manager.run("firewall", "--account", tenant, "block", own_address)
        assert (", 0% packet loss" in lab.shell("a", f"ping -c 1 -W 2 {address}; true")) == answers, tenant


def _link_local(text: str) -> str:
    """Return the IPv6 link-local address of the neighbour whose MAC is in the text (RFC 4291, appendix A)."""
    mac = next(word for word in text.split() if word.count(":") == 5)
    parts = [int(part, 16) for part in mac.split(":")]
    parts[0] ^= 2
    whole = [*parts[:3], 0xFF, 0xFE, *parts[3:]]
    return "fe80::" + ":".join(f"{whole[at] << 8 | whole[at + 1]:x}" for at in range(0, 8, 2))
