"""Mirrors from inside: tcpdump in the sniffer's own VM, and what a tenant's VM can do to somebody else's mirror: nothing."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pileus.drivers.host.mirror.base import DeliverySpec, LegSpec, RelaySpec, SourceSpec
from pileus.drivers.host.mirror.layout import SHAPES
from pileus.drivers.host.mirror.wanted import NAMES_ONLY, Devices, Leg, plan
from pileus.drivers.host.ovs.flows import tap_name
from pileus.image.appliance_build import appliance_with
from pileus.image.recipes import ensure_image
from pileus.image.types import BuildError
from pileus.node.mirror import wire
from pileus.node.mirror.rules import Rule

if TYPE_CHECKING:
    from tests.vm.fleet_rig import PROGRAMS, Manager
    from tests.vm.realcloud import Json, until
    from tests.vm.reallab import RealLab, labbed
    from tests.vm.test_mirror import capturing, pings, tap_of
else:
    from fleet_rig import PROGRAMS, Manager
    from realcloud import until
    from reallab import RealLab, labbed
    from test_mirror import capturing, pings, tap_of

IMAGE = "test-mirror"
RECIPE = appliance_with(IMAGE, {"wire": (PROGRAMS / "wire").read_bytes()}, packages=["tcpdump"])
PACKETS = 60
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def lab() -> Iterator[RealLab]:
    """Three hosts; the VM web of acme on host 1 is watched, whoever it talks to is on host 2, decapsulators too."""
    try:
        image = ensure_image(IMAGE, lambda line: print(line, file=sys.stderr), recipe=RECIPE)
    except BuildError as error:
        pytest.skip(f"the image {IMAGE} cannot be built here: {error}")
    with labbed("--hosts", "3") as running:
        running.pileus("patch", "zone", "zone1", "--router", "none")
        running.pileus("create", "image", IMAGE, "--append", image.append, "--file", str(image.disk), "--kernel",
                       str(image.kernel), "--initrd", str(image.initrd))  # fmt: skip
        running.pileus("wait", "image", IMAGE, "--timeout", "60", timeout_s=70)
        for account in ("acme", "umbrella"):
            running.pileus("create", "account", account)
        for name, host in (("web", "host1"), ("peer", "host2")):
            running.alone(host, 3)
            running.pileus("create", "vm", name, "--account", "acme")
            running.until_vm(name, lambda vm: bool(vm["host"]))
        yield running


@pytest.fixture(scope="module")
def nodes(lab: RealLab) -> dict[str, tuple[Manager, Json]]:
    """A node of acme's that watches, on host 3, and one of umbrella's that attacks, beside the decapsulator."""
    manager = Manager(lab, "wires")
    manager.consented("acme", "umbrella")
    lab.pileus("create", "package", "wire", "--manager", "wires", "--version", "1", "--image", IMAGE, "--vcpus", "1",
               "--memory-mib", "192", "--nics", "1", "--role", "wire")  # fmt: skip
    found = {}
    for name, account, host in (("watcher", "acme", "host3"), ("attacker", "umbrella", "host2")):
        lab.alone(host, 3)
        node = manager.node(name, account, package="wire", nics=[{"network": "default"}])
        found[name] = (manager, manager.ready(node)[0])
    lab.alone("host2", 3)
    for vm in ("web", "peer"):
        lab.until_printed(vm, "PILEUS-READY")
    vm = found["watcher"][1]["assigned"]["vm"]
    lab.pileus("create", "sniffer", "probe", "--vm", vm, "--account", "acme")
    lab.pileus("create", "session", "tap", "--vm", "web", "--sniffer", "probe", "--account", "acme", "--expression", "icmp",
               "--wait", "--timeout", "120", timeout_s=130)  # fmt: skip
    return found


def test_tcpdump_in_the_sniffer_has_every_packet_as_it_was(
    lab: RealLab, nodes: dict[str, tuple[Manager, Json]]
) -> None:
    manager, watcher = nodes["watcher"]
    peer = lab.vm("peer")["observed"]["addresses"][0]
    with capturing(lab, {"acme": (tap_of(lab, "web", "acme"), _tap_of_node(lab, watcher))}) as folder:
        words = ["-c", str(PACKETS), "icmp"]
        asked = manager.request(watcher, json.dumps({"do": "capture", "words": words, "seconds": 90}))
        while _is_open(manager, asked):
            assert ", 0% packet loss" in lab.shell("web", f"ping -c 20 -A -s 700 -p 5a {peer}")
        state, answer = manager.answer(asked)
    assert state == "applied"
    inside = answer.split()
    passed = [hashlib.sha256(frame).hexdigest()[:16] for frame in pings(folder / "acme-source.pcap")]
    assert len(inside) == PACKETS
    began = passed.index(inside[0])
    assert inside == passed[began : began + PACKETS]


def test_what_a_tenants_vm_forges_reaches_nobodys_sniffer(lab: RealLab, nodes: dict[str, tuple[Manager, Json]]) -> None:
    manager, attacker = nodes["attacker"]
    _, watcher = nodes["watcher"]
    before = lab.json("get", "decapsulator", "zone1-0", "--account", "platform")["observed"]["refused"]
    counts = lab.json("get", "session", "tap", "--account", "acme")["observed"]["counts"]
    port = lab.json("get", "port", "--account", "umbrella")["items"][0]["assigned"]
    frames = [frame.hex() for frame in _forged(lab, port["mac"], port["address"])]
    with capturing(lab, {"acme": (tap_of(lab, "web", "acme"), _tap_of_node(lab, watcher))}) as folder:
        assert manager.ask(attacker, json.dumps({"do": "send", "frames": frames})) == str(len(frames))
        peer = lab.vm("peer")["observed"]["addresses"][0]
        assert ", 0% packet loss" in lab.shell("web", f"ping -c 3 -A -p 5b {peer}")
        until("what is acme's own came", lambda: len(pings(folder / "acme-sniffer.pcap")) >= 6)
        found = pings(folder / "acme-sniffer.pcap")
    assert found == pings(folder / "acme-source.pcap")
    assert not any(b"forged" in frame for frame in found)
    after = lab.json("get", "decapsulator", "zone1-0", "--account", "platform")["observed"]["refused"]
    assert after == before
    until("as many came as were sent", lambda: _is_exact(lab, counts["received"] + 6))


def test_nobody_names_the_session_or_the_port_of_another(lab: RealLab) -> None:
    port = lab.vm("web")["assigned"]["ports"][0]
    vm = lab.vm("web")["id"]
    session = lab.json("get", "session", "tap", "--account", "acme")["id"]
    sniffer = lab.json("get", "sniffer", "probe", "--account", "acme")["id"]
    for words in (("--vm", vm), ("--vm", "web"), ("--vm", port)):
        said = lab.refused("create", "session", "s", "--account", "umbrella", *words, code=3)
        assert "there is no vm" in said
    said = lab.refused(
        "create", "session", "s", "--account", "umbrella", "--vm", "attacker", "--sniffer", sniffer, code=3
    )
    assert "there is no" in said
    assert "there is no session" in lab.refused("get", "session", session, "--account", "umbrella", code=4)


def test_debians_kernel_takes_the_programs_of_a_host(nodes: dict[str, tuple[Manager, Json]]) -> None:
    """The appliance's kernel is that of a Debian 12 host, which has no TCX: programs are classifiers there."""
    manager, watcher = nodes["watcher"]
    names = (
        "pileus-copies",
        "pileus-bus",
        "tunnel0",
        "br",
        *(tap_name(port) for port in ("web", "in", "out", "probe")),
    )
    known = Devices(
        numbers={name: 10 + at for at, name in enumerate(names)},
        tunnel="tunnel0",
        underlay="br",
        own="10.0.0.1",
        tunnel_mtu=1600,
    )
    rules = tuple(Rule(protocol=6, source=f"2001:db8::{n}/128", destination_ports=(n, n)) for n in range(1, 9))
    specs: tuple[LegSpec, ...] = (
        SourceSpec(
            id="s",
            port="web",
            key=1,
            target="10.0.0.2",
            rules=rules,
            sample_one_in=7,
            rate_limit_kbps=1000,
            snap_bytes=96,
        ),
        SourceSpec(id="f", port="web", key=2, target="", sample_one_in=3, sample_by="flow"),
        RelaySpec(id="r", key=3, source="10.0.0.2", tunnel_port="in", sniffer_port="out", target="10.0.0.3"),
        DeliverySpec(id="d", key=4, source="10.0.0.2", port="probe"),
    )
    wanted = plan([Leg.of(spec, at, at) for at, spec in enumerate(specs)], known)
    programs = [[name, each.kind, each.code(NAMES_ONLY).hex()] for name, each in wanted.links.items()]
    assert len(programs) >= 7
    asked = {"do": "load", "maps": list(SHAPES.values()), "programs": programs}
    assert manager.ask(watcher, json.dumps(asked)) == "all loaded"


def _forged(lab: RealLab, mac: str, address: str) -> list[bytes]:
    """Return what somebody would try: ERSPAN with guessed keys to every tunnel, from its own and from others' addresses."""
    hosts = [host["observed"]["tunnel_address"] for host in lab.json("get", "host")["items"]]
    own = bytes.fromhex(mac.replace(":", ""))
    frames = []
    for to in hosts:
        for source in (address, *hosts):
            for key in (0, 0xFFFF, (1 << 58) - 1):
                for leg in (1, 2):
                    header = wire.own_header(key, source, 0, leg=leg)
                    packet = wire.encapsulate(header, own + own + b"\x08\x00" + b"forged")
                    packet = packet[:30] + bytes(int(part) for part in to.split(".")) + packet[34:]
                    for target in (b"\xff" * 6, bytes.fromhex("025000000001"), bytes.fromhex("027000000001")):
                        frames.append(target + own + packet[12:])
    return frames


def _is_exact(lab: RealLab, least: int) -> bool:
    """Tell whether all that was sent came and was delivered, and nothing else."""
    counts: dict[str, int] = lab.json("get", "session", "tap", "--account", "acme")["observed"]["counts"]
    return least <= counts["sent"] == counts["received"] == counts["delivered"]


def _tap_of_node(lab: RealLab, node: Json) -> str:
    vm = lab.json("get", "vm", node["assigned"]["vm"], "--account", node["account"])
    port = lab.json("get", "port", vm["assigned"]["ports"][0], "--account", node["account"])
    return str(port["observed"]["tap"])


def _is_open(manager: Manager, request: Json) -> bool:
    observed = manager.api.call("GET", f"/v1/fleet.request/{request['id']}")["observed"]
    return observed is None or observed["state"] == "queued"
