"""The appliance as a router: the real image under QEMU, its guests and the world outside as network namespaces."""

from __future__ import annotations

import itertools
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pileus.image.appliance_build import APPLIANCE
from pileus.image.build import build
from pileus.image.types import BuildError, BuiltImage

if TYPE_CHECKING:
    from tests.vm import appliance_rig, router_documents
    from tests.vm.appliance_rig import Appliance, Fabric, Host, until
    from tests.vm.router_documents import DB_MAC, WEB_MAC, balancer, forward, macs, router, rule
else:
    import appliance_rig
    import router_documents
    from appliance_rig import until
    from router_documents import DB_MAC, WEB_MAC, balancer, forward, macs, router, rule

GUESTS, PUBLIC = "guests", "public"


@pytest.fixture(scope="session")
def built() -> BuiltImage:
    return appliance_rig.appliance_image()


@pytest.fixture(scope="session")
def disk(built: BuiltImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return appliance_rig.disk_of_tests(built, tmp_path_factory.mktemp("disk"))


@pytest.fixture
def fabric(built: BuiltImage, disk: Path, tmp_path: Path) -> Iterator[Fabric]:
    with appliance_rig.fabric(tmp_path, disk, built) as made:
        yield made


def start(fabric: Fabric, number: int = 1, guests: str = GUESTS) -> Appliance:
    guest, public = macs(number)
    return fabric.appliance(f"r{number}", [(guests, guest), (PUBLIC, public)])


def web(fabric: Fabric) -> Host:
    return fabric.host("web", GUESTS, "10.1.1.10/24", "10.1.1.1", mac=WEB_MAC)


def outside(fabric: Fabric) -> Host:
    return fabric.host("out", PUBLIC, "203.0.113.1/24")


LEASE = "#!/bin/sh\n[ $1 = bound ] && echo lease $ip/$mask $router $dns $domain $hostname $lease\nexit 0\n"


def lease(host: Host, folder: Path) -> list[str]:
    """Return what a DHCP client in the host gets: address, router, DNS server, domain, host name, seconds."""
    script = folder / "lease"
    script.write_text(LEASE)
    script.chmod(0o755)
    done = host.run("busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q", "-t", "4", "-T", "1", "-s", str(script))
    return next((line.split()[1:] for line in done.stdout.splitlines() if line.startswith("lease ")), [])


def asks(host: Host, name: str, server: str = "10.1.1.1") -> str:
    done = host.run("busybox", "nslookup", name, server)
    return done.stdout.partition("\n\n")[2] + done.stderr


def test_guests_get_addresses_names_and_a_way_out(fabric: Fabric, tmp_path: Path) -> None:
    appliance, out = start(fabric), outside(fabric)
    guest = fabric.host("web", GUESTS, mac=WEB_MAC)
    stranger = fabric.host("who", GUESTS, mac="52:54:00:01:00:99")
    fabric.serve(out, 80, "out")
    appliance.apply(router())
    assert appliance.run("hostname").strip() == "router-1"
    got = lease(guest, tmp_path)
    assert got == ["10.1.1.10/24", "10.1.1.1", "10.1.1.1", "a.acme.internal", "web", "43200"]
    assert lease(stranger, tmp_path) == []
    guest.out("ip", "address", "add", "10.1.1.10/24", "dev", "eth0")
    guest.out("ip", "route", "add", "default", "via", "10.1.1.1")
    assert "10.1.1.11" in asks(guest, "db.a.acme.internal")
    assert "10.1.1.11" in asks(guest, "db")
    assert "db.a.acme.internal" in asks(guest, "10.1.1.11")
    assert "NXDOMAIN" in asks(guest, "none.a.acme.internal")
    assert "REFUSED" in asks(guest, "example.org")
    assert guest.fetch("http://203.0.113.1/") == "out to 203.0.113.5 for None"
    # An address that is none of the network's gets nowhere, and outside nobody is answered.
    guest.out("ip", "address", "add", "172.16.0.9/32", "dev", "eth0")
    assert guest.run("curl", "-s", "-m", "2", "--interface", "172.16.0.9", "http://203.0.113.1/").returncode != 0
    assert "203" not in asks(out, "web.a.acme.internal", "203.0.113.5").replace("203.0.113.5", "")
    # A guest that comes later, and one that goes, without a restart.
    document = router()
    del document["hosts"][DB_MAC]
    document["hosts"]["52:54:00:01:00:99"] = {"network": "n1", "address": "10.1.1.12", "names": ["late"]}
    appliance.apply(document)
    assert until("the new guest's lease", lambda: lease(stranger, tmp_path))[0] == "10.1.1.12/24"
    assert "NXDOMAIN" in asks(guest, "db")
    assert appliance.status()["starts"] == {"dnsmasq": 1}


def test_the_world_gets_in_where_it_may_and_nowhere_else(fabric: Fabric) -> None:
    appliance, guest, out = start(fabric), web(fabric), outside(fabric)
    other = fabric.host("other", PUBLIC, "203.0.113.77/24")
    for port in (80, 5001):
        fabric.serve(guest, port, f"web {port}")
    fabric.serve(out, 80, "out")
    forwards = {
        "moved": forward(8080, 80),
        "kept": forward(5000, 5000, last=5010),
        "shifted": forward(6000, 4999, last=6010),
        "limited": forward(8081, 80, sources=("203.0.113.77/32", "203.0.113.64/28", "192.0.2.0/24")),
    }
    appliance.apply(router(forwards=forwards))
    assert out.fetch("http://203.0.113.5:8080/") == "web 80 to 203.0.113.1 for None"
    assert out.fetch("http://203.0.113.5:5001/").startswith("web 5001")
    assert out.fetch("http://203.0.113.5:6002/").startswith("web 5001")
    assert out.fetch("http://203.0.113.5:8081/", limit_s=1) == ""
    assert other.fetch("http://203.0.113.5:8081/").startswith("web 80 to 203.0.113.77")
    assert out.fetch("http://203.0.113.5:80/", limit_s=1) == ""
    assert guest.fetch("http://203.0.113.5:8080/") == "web 80 to 10.1.1.1 for None"
    assert out.run("busybox", "ping", "-c", "1", "-W", "5", "203.0.113.5").returncode == 0
    # Straight to the guest's own address, by the router's MAC.
    out.out("ip", "route", "add", "10.1.1.0/24", "via", "203.0.113.5")
    assert out.fetch("http://10.1.1.10/", limit_s=1) == ""
    assert out.run("busybox", "ping", "-c", "1", "-W", "1", "10.1.1.10").returncode != 0

    rules = {
        "a,0000": rule("ingress", "accept", protocol="tcp", remotes=["203.0.113.77/32"], port_first=80, port_last=80),
        "a,0001": rule(
            "ingress", "drop", network="n1", locals=["10.1.1.8/29"], protocol="tcp", port_first=80, port_last=90
        ),
        "a,0002": rule("egress", "drop", protocol="icmp"),
    }
    appliance.apply(router(forwards=forwards, firewall=rules))
    assert out.fetch("http://203.0.113.5:8080/", limit_s=1) == ""
    assert other.fetch("http://203.0.113.5:8080/").startswith("web 80")
    assert out.fetch("http://203.0.113.5:5001/").startswith("web 5001")
    assert guest.run("busybox", "ping", "-c", "1", "-W", "1", "203.0.113.1").returncode != 0
    assert guest.fetch("http://203.0.113.1/").startswith("out")


def test_a_refused_document_changes_nothing(fabric: Fabric) -> None:
    appliance, guest, out = start(fabric), web(fabric), outside(fabric)
    fabric.serve(guest, 80, "web")
    appliance.apply(router(forwards={"a": forward(8080, 80)}))
    bad = router(forwards={"b": forward(8081, 80)})
    bad["hosts"][WEB_MAC]["names"] = ["web\ndhcp-script=/bin/sh"]
    assert "names" in appliance.refusal(bad)
    twice = router(forwards={"b": forward(8000, 8000, last=9000), "c": forward(8500, 8500)})
    assert "port 8500" in appliance.refusal(twice)
    assert out.fetch("http://203.0.113.5:8080/").startswith("web")
    assert out.fetch("http://203.0.113.5:8081/", limit_s=1) == ""


def test_a_balancer_spreads_and_leaves_out_a_member_that_is_dead(fabric: Fabric) -> None:
    appliance, guest, out = start(fabric), web(fabric), outside(fabric)
    db = fabric.host("db", GUESTS, "10.1.1.11/24", "10.1.1.1", mac=DB_MAC)
    fabric.serve(guest, 80, "web")
    dying = fabric.serve(db, 80, "db")
    appliance.apply(router(balancers={"b1": balancer(), "b2": balancer("tcp", 81)}))

    def answers() -> set[str]:
        return {out.fetch("http://203.0.113.5/").partition(" for ")[0] for _ in range(4)}

    both = {"web to 10.1.1.1", "db to 10.1.1.1"}
    until("both members answer", lambda: answers() == both)
    assert out.fetch("http://203.0.113.5/").endswith("for 203.0.113.1")
    assert out.fetch("http://203.0.113.5:81/").endswith("for None")
    up = {"b1": {"web:80": "up", "db:80": "up"}, "b2": {"web:80": "up", "db:80": "up"}}
    assert until("their health", lambda: appliance.status()["balancers"] == up)
    subprocess.run(["kill", "-9", str(dying.pid)], check=True)
    died = time.monotonic()
    until("the dead member is out", lambda: appliance.status()["balancers"]["b1"]["db:80"] == "down", limit_s=10)
    print(f"dead member out after {time.monotonic() - died:.1f} s")
    assert answers() == {"web to 10.1.1.1"}
    fabric.serve(db, 80, "db")
    until("the member is back", lambda: answers() == both)


SLOW = """
import socket, sys, time
wire = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
wire.settimeout(20)
print("connected", flush=True)
for line in sys.stdin:
    wire.sendall(line.encode())
    print(wire.recv(100).decode().strip(), flush=True)
"""

PULSE = """
import socket, sys, time
wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
wire.settimeout(0.05)
while True:
    try:
        wire.sendto(b"x", (sys.argv[1], 7))
        wire.recv(100)
        print(time.monotonic())
        time.sleep(0.05)
    except OSError:  # nobody answers, or nobody has the gateway's address
        pass
"""

ECHO = """
import contextlib, socket, threading
server = socket.create_server(("0.0.0.0", 7))
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("0.0.0.0", 7))
def answer():
    while True:
        got, who = datagrams.recvfrom(100)
        with contextlib.suppress(OSError):
            datagrams.sendto(got, who)
threading.Thread(target=answer, daemon=True).start()
print("up", flush=True)
def echo(wire):
    while got := wire.recv(100):
        wire.sendall(got)
while True:
    threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()
"""


class Talk:
    """A TCP connection from a host that says something now and then."""

    def __init__(self, fabric: Fabric, host: Host, address: str, port: int) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._child = fabric.spawn(host, "python3", "-u", "-c", SLOW, address, str(port), **pipes)
        assert self._line() == "connected"

    def says(self, text: str) -> str:
        """Return the echo."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{text}\n")
        self._child.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline().strip()


def echo(fabric: Fabric, host: Host) -> None:
    child = fabric.spawn(host, "python3", "-u", "-c", ECHO, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "up"


def test_connections_go_on_while_the_document_changes(fabric: Fabric) -> None:
    appliance, guest, out = start(fabric), web(fabric), outside(fabric)
    echo(fabric, out)
    echo(fabric, guest)
    spread = balancer("tcp", 81)
    spread["members"] = {"web:7": {"address": "10.1.1.10", "port": 7}}
    appliance.apply(router(forwards={"a": forward(70, 7)}, balancers={"b": spread}))
    until("the balancer runs", lambda: appliance.status()["balancers"].get("b"))
    talks = [
        Talk(fabric, guest, "203.0.113.1", 7),
        Talk(fabric, out, "203.0.113.5", 70),
        Talk(fabric, out, "203.0.113.5", 81),
    ]
    assert [talk.says("one") for talk in talks] == ["one"] * 3
    more = {"b": spread, "c": balancer("tcp", 82)}
    appliance.apply(router(forwards={"b": forward(71, 7)}, balancers=more, firewall={"a,0": rule("ingress", "drop")}))
    assert [talk.says("two") for talk in talks] == ["two"] * 3
    until("the balancer's new settings", lambda: len(appliance.status()["balancers"].get("c", {})) == 2)
    assert [talk.says("three") for talk in talks] == ["three"] * 3


def test_services_that_die_are_started_again_and_nics_may_come_later(fabric: Fabric) -> None:
    guest, out = web(fabric), outside(fabric)
    appliance = fabric.appliance("r1", [(GUESTS, macs()[0])])
    fabric.serve(out, 80, "out")
    appliance.apply(router(balancers={"b": balancer()}))
    assert [text for text in appliance.status()["waiting"] if macs()[1] in text]
    assert "10.1.1.11" in asks(guest, "db")
    appliance.plug(fabric.tap("late", PUBLIC), macs()[1])
    until("nothing waits", lambda: appliance.status()["waiting"] == [])
    assert until("the way out", lambda: guest.fetch("http://203.0.113.1/")).startswith("out")
    for service in ("dnsmasq", "haproxy"):
        appliance.run("killall", "-9", service)
    until("services again", lambda: appliance.status()["starts"] == {"dnsmasq": 2, "haproxy": 2}, limit_s=10)
    assert "10.1.1.11" in until("names again", lambda: asks(guest, "db"))


def test_services_go_on_when_the_program_that_started_them_is_started_again(fabric: Fabric) -> None:
    appliance, guest, out = start(fabric), web(fabric), outside(fabric)
    echo(fabric, guest)
    spread = balancer("tcp", 81)
    spread["members"] = {"web:7": {"address": "10.1.1.10", "port": 7}}
    appliance.apply(router(balancers={"b": spread}))
    until("the member is up", lambda: appliance.status()["balancers"] == {"b": {"web:7": "up"}})
    talk = Talk(fabric, out, "203.0.113.5", 81)
    assert talk.says("before") == "before"
    appliance.restart_program()
    assert appliance.status()["starts"] == {"dnsmasq": 0, "haproxy": 0}
    assert appliance.status()["services"] == {"dnsmasq": "running", "haproxy": "running"}
    assert talk.says("after") == "after"
    assert "10.1.1.11" in asks(guest, "db")


def test_after_a_power_cut_everything_is_there_again(fabric: Fabric) -> None:
    appliance, guest, out = start(fabric), web(fabric), outside(fabric)
    fabric.serve(guest, 80, "web")
    appliance.apply(router(forwards={"a": forward(8080, 80)}))
    appliance.run("sync")
    appliance.kill()
    appliance.start()
    assert out.fetch("http://203.0.113.5:8080/").startswith("web")


def test_a_large_document_in_little_memory(fabric: Fabric) -> None:
    appliance, guest = start(fabric), web(fabric)
    document = router_documents.large(guests=600, rules=500)
    seconds = {"boot": appliance.ready_s, "whole": appliance.apply(document)}
    document["firewall"]["r,9999"] = rule("ingress", "drop", protocol="tcp", port_first=7, port_last=7)
    seconds["one rule"] = appliance.apply(document)
    document["hosts"]["52:54:00:02:ff:ff"] = {"network": "n2", "address": "10.2.200.1", "names": ["last"]}
    seconds["one guest"] = appliance.apply(document)
    seconds["nothing"] = appliance.apply(document)
    assert "10.2.200.1" in asks(guest, "last")
    used = re.search(r"Mem:\s+(\d+)\s+(\d+)", appliance.run("free", "-m"))
    assert used is not None
    print({what: round(took, 2) for what, took in seconds.items()}, f"memory used {used[2]} of {used[1]} MiB")
    assert int(used[2]) <= 160


def keys(appliance: Appliance) -> tuple[str, str]:
    private = appliance.run("wg", "genkey").strip()
    return private, appliance.run("wg", "pubkey", text=f"{private}\n").strip()


def tunnel(private: str, peer: str, number: int, allowed: list[str]) -> dict[str, object]:
    peers = {peer: {"allowed": allowed, "endpoint": f"203.0.113.{8 - number}:51820", "keepalive_s": 5}}
    address = f"169.254.64.{number}/30"
    return {"interface": "wg0", "private_key": private, "port": 51820, "address": address, "peers": peers}


@pytest.mark.long
def test_two_sites_meet_through_a_tunnel(fabric: Fabric) -> None:
    first, second = start(fabric, 1), start(fabric, 2, guests="far")
    guest = web(fabric)
    far = fabric.host("far", "far", "10.1.2.10/24", "10.1.2.1", mac=WEB_MAC)
    fabric.serve(far, 80, "far")
    (one, one_public), (two, two_public) = keys(first), keys(second)
    # Numbers of addresses: router 1 has 203.0.113.7 and router 2 203.0.113.6, each other's endpoints.
    tunnels = {"t": tunnel(one, two_public, 2, ["10.1.2.0/24", "169.254.64.1/32"])}
    first.apply(router(1, public="203.0.113.7", tunnels=tunnels))
    tunnels = {"t": tunnel(two, one_public, 1, ["10.1.1.0/24", "169.254.64.2/32"])}
    second.apply(router(2, net=2, public="203.0.113.6", tunnels=tunnels))
    assert until("the other site", lambda: guest.fetch("http://10.1.2.10/")) == "far to 10.1.1.10 for None"
    assert first.status()["tunnels"]["t"][two_public] == "up"
    drop = {"a,0": rule("ingress", "drop", remotes=["10.1.1.0/24"])}
    second.apply(router(2, net=2, public="203.0.113.6", tunnels=tunnels, firewall=drop))
    assert guest.fetch("http://10.1.2.10/", limit_s=2) == ""


def stretch(local: int) -> dict[str, object]:
    ends = {"local": f"169.254.64.{local}", "remote": f"169.254.64.{3 - local}"}
    return {"network": "n1", "range": "10.1.1.0/24", "tunnel": "t", "vni": 4242, **ends}


@pytest.mark.long
def test_a_stretched_network_is_one_layer_two_with_a_gateway_on_each_side(fabric: Fabric, tmp_path: Path) -> None:
    first, second = start(fabric, 1), start(fabric, 2, guests="far")
    guest, out = web(fabric), outside(fabric)
    far = fabric.host("far", "far", "10.1.1.20/24", "10.1.1.1", mac="52:54:00:01:00:20")
    fabric.serve(far, 80, "far")
    fabric.serve(out, 80, "out")
    (one, one_public), (two, two_public) = keys(first), keys(second)
    tunnels = {"t": tunnel(one, two_public, 2, ["169.254.64.1/32"])}
    before = router(1, public="203.0.113.7", tunnels=tunnels)
    first.apply(before)
    first.apply({**before, "stretches": {"s": stretch(2)}})
    tunnels = {"t": tunnel(two, one_public, 1, ["169.254.64.2/32"])}
    second.apply(router(2, public="203.0.113.6", tunnels=tunnels, stretches={"s": stretch(1)}))
    assert until("the far guest", lambda: guest.fetch("http://10.1.1.20/")) == "far to 10.1.1.10 for None"
    assert "52:54:00:01:00:20" in guest.out("ip", "neighbour", "show", "10.1.1.20")
    assert guest.run("busybox", "ping", "-c", "1", "-W", "5", "-s", "1472", "10.1.1.20").returncode == 0
    # Each side keeps its own gateway and its own DHCP.
    assert guest.fetch("http://203.0.113.1/") == "out to 203.0.113.7 for None"
    assert far.fetch("http://203.0.113.1/") == "out to 203.0.113.6 for None"
    assert macs(1)[0] in guest.out("ip", "neighbour", "show", "10.1.1.1")
    assert macs(2)[0] in far.out("ip", "neighbour", "show", "10.1.1.1")
    # Only the near router knows this machine, and it must not hear it from the far side.
    second.apply(router(2, public="203.0.113.6", tunnels=tunnels, stretches={"s": stretch(1)}, hosts={}))
    assert lease(fabric.host("again", "far", mac=DB_MAC), tmp_path) == []
    first.apply(before)
    assert guest.fetch("http://10.1.1.20/", limit_s=2) == ""
    assert until("the way out without the stretch", lambda: guest.fetch("http://203.0.113.1/")).startswith("out")


@contextmanager
def pulse(fabric: Fabric, guest: Host) -> Iterator[list[float]]:
    """Let the guest ask the outside all the time; after the block the list has the seconds between the answers."""
    asking = fabric.spawn(guest, "python3", "-u", "-c", PULSE, "203.0.113.1", stdout=subprocess.PIPE)
    assert asking.stdout is not None
    first = asking.stdout.readline()
    gaps_s: list[float] = []
    yield gaps_s
    asking.terminate()
    times = [float(line) for line in (first + asking.communicate()[0]).split()]
    gaps_s += [later - earlier for earlier, later in itertools.pairwise(times)]


@pytest.mark.long
def test_the_other_one_of_a_pair_takes_over_with_the_connections(fabric: Fabric, tmp_path: Path) -> None:
    guest, out = web(fabric), outside(fabric)
    pair = [start(fabric, 1), start(fabric, 2)]
    echo(fabric, out)
    fabric.serve(guest, 80, "web")
    document = router(forwards={"a": forward(8080, 80)})
    for number, appliance in enumerate(pair, 1):
        appliance.apply(router_documents.redundant(document, number))

    def parts() -> list[str]:
        return [str(appliance.status()["redundancy"]) for appliance in pair]

    until("one is active", lambda: sorted(parts()) == ["active", "standby"])
    active = parts().index("active")
    standby = pair[1 - active]
    assert "10.1.1.1/" not in standby.run("ip", "address")
    assert until("the way in", lambda: out.fetch("http://203.0.113.5:8080/")).startswith("web")
    # A standby gives no leases: while the active one's DHCP is held, nobody answers.
    pair[active].run("killall", "-STOP", "dnsmasq")
    asking = fabric.host("db", GUESTS, mac=DB_MAC)
    assert lease(asking, tmp_path) == []
    pair[active].run("killall", "-CONT", "dnsmasq")
    assert until("a lease", lambda: lease(asking, tmp_path))[1] == "10.1.1.1"
    talk = Talk(fabric, guest, "203.0.113.1", 7)
    assert talk.says("before") == "before"
    until("the standby knows the connection", lambda: "dport=7 " in standby.run("conntrack", "-L"))
    assert out.fetch("http://203.0.113.5:8080/").startswith("web")

    with pulse(fabric, guest) as gaps_s:
        pair[active].kill()
        assert talk.says("after") == "after"
        assert until("the way in", lambda: out.fetch("http://203.0.113.5:8080/", limit_s=1)).startswith("web")
    print(f"takeover: {max(gaps_s):.2f} s without an answer")
    assert max(gaps_s) <= 3.0
    # The one that died comes back as the standby, and a change of the document moves nothing.
    pair[active].start()
    until("both", lambda: parts()[active] == "standby")
    assert parts()[1 - active] == "active"
    changed = router(forwards={"a": forward(8080, 80), "b": forward(8081, 80)})
    for number, appliance in enumerate(pair, 1):
        appliance.apply(router_documents.redundant(changed, number))
    assert out.fetch("http://203.0.113.5:8081/").startswith("web")
    # It hands over at once when it will be replaced.
    yielding = router_documents.redundant(changed, 2 - active)
    yielding["redundancy"]["pair"]["yields"] = True
    with pulse(fabric, guest) as gaps_s:
        standby.apply(yielding)
        assert talk.says("handed over") == "handed over"
    print(f"hand-over: {max(gaps_s):.2f} s without an answer")
    assert parts()[active] == "active"


@pytest.mark.long
def test_two_builds_give_the_same_bytes(built: BuiltImage, tmp_path: Path) -> None:
    try:
        again = build(APPLIANCE, tmp_path / "again", print)
    except BuildError as error:
        pytest.skip(str(error))
    if again.inputs != built.inputs:
        pytest.skip("the sources changed while the tests ran")
    assert again.sha256 == built.sha256
