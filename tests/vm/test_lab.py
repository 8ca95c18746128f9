"""The data centre in a box: real hosts in namespaces, joined and cut off, killed and switched on, gone without a trace."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vm.realcloud import Json, Place, RealCloud, need_host, pids_naming, temporary, until

from pileus.drivers.host.paths import HostPaths
from pileus.lab import fabric, power
from pileus.lab.site import Site
from pileus.lab.topology import INTERNET_ADDRESS, Host
from pileus.local.up import Running

SILENT_S = 60.0
"""A host is silent after 15 s; this is for a machine where much else runs."""

ECHO = str(Path(__file__).with_name("echo.py"))
OPTIONS = ("--hosts", "3", "--pods", "2", "--port", "0", "--accelerator", "tcg", "--detach")


class Lab(RealCloud):
    """A lab of three hosts in two pods."""

    def lab(self, command: str, *arguments: str) -> str:
        """Return what a command of the lab printed."""
        return self.pileus("lab", command, *arguments)

    def start_lab(self) -> str:
        return self.pileus("lab", *OPTIONS, timeout_s=240)

    @property
    def site(self) -> Site:
        found = Site.load(self.data)
        assert found is not None
        return found

    def host(self, name: str) -> Host:
        return next(host for host in self.site.topology.hosts if host.name == name)

    def paths_of(self, name: str) -> HostPaths:
        return self.site.settings(self.host(name)).paths

    def namespace(self, machine: str) -> str:
        return self.site.fabric.namespace(machine)

    def ready(self, name: str) -> str:
        with self.client() as client:
            item: Json = client.get(f"/v1/infra.host/{name}")
            status: str = item["conditions"][0]["status"]
            return status

    def until_ready(self, name: str, status: str, limit_s: float = SILENT_S) -> None:
        until(f"{name} is {status}", lambda: self.ready(name) == status, limit_s)

    def hears(self, machine: str, address: str, size_bytes: int = 56) -> bool:
        """Tell whether a machine of the lab gets an echo from an address."""
        done = self.run("lab", "exec", machine, "--", sys.executable, ECHO, address, str(size_bytes))
        assert done.returncode in (0, 1), done.stderr
        return done.returncode == 0

    def left(self) -> dict[str, object]:
        """Return everything of the lab that is still on the machine."""
        runs = [HostPaths.under(self.data / "hosts" / f"host{number}" / "host").run for number in (1, 2, 3)]
        found: dict[str, object] = {
            "namespaces": fabric.namespaces(self.data),
            "processes": pids_naming(str(self.folder), *(str(run) for run in runs)),
            "sockets": [run for run in runs if run.exists()],
        }
        return {what: there for what, there in found.items() if there}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab that runs. Every test leaves its hosts on and its cables whole."""
    need_host()
    with temporary("pileus-lab-") as folder:
        made = Lab(folder)
        made.environment["PILEUS_LAB"] = str(made.data)
        try:
            made.start_lab()
            made.pileus("create", "account", "acme")
            yield made
        finally:
            made.run("lab", "stop", "--delete", timeout_s=90)
        assert not made.left()
        assert not made.data.exists()


def test_all_hosts_are_ready_with_their_uplinks_pods_and_zone(lab: Lab) -> None:
    with lab.client() as client:
        hosts = {host["name"]: host for host in client.get("/v1/infra.host")["items"]}
        zone = client.get("/v1/infra.zone/zone1")
    assert {name: host["conditions"][0]["status"] for name, host in hosts.items()} == dict.fromkeys(hosts, "true")
    assert {name: host["desired"]["pod"] for name, host in hosts.items()} == {
        "host1": "pod1", "host2": "pod1", "host3": "pod2"
    }  # fmt: skip
    assert zone["desired"]["public_range"] == "203.0.113.0/24"
    observed = hosts["host3"]["observed"]
    assert (observed["tunnel_address"], observed["has_trunk"], observed["has_public"]) == ("10.200.2.11", "yes", "yes")


def test_tunnel_ends_hear_each_other_between_pods_with_whole_vxlan_frames_and_nobody_outside_does(lab: Lab) -> None:
    assert lab.hears("host1", "10.200.1.1")
    assert lab.hears("host1", "10.200.1.12", 1572)
    assert lab.hears("host3", "10.200.1.11", 1572)
    assert lab.hears("core", INTERNET_ADDRESS)
    assert not lab.hears("internet", "10.200.1.11")


def test_the_test_host_answers_http_with_the_address_that_asks_and_the_lab_has_no_way_out(lab: Lab) -> None:
    assert lab.lab("exec", "core", "--", "curl", "-s", f"http://{INTERNET_ADDRESS}/") == "you are 192.0.2.1\n"
    # Whatever a host or the test host sends elsewhere ends at the core, which knows no way on.
    assert lab.lab("exec", "core", "--", "ip", "-4", "route", "show", "default") == ""
    assert lab.lab("exec", "core", "--", "ip", "-br", "link", "show", "type", "veth").count("\n") == 4


def test_a_host_whose_management_cable_is_cut_falls_silent_and_comes_back_when_it_is_healed(lab: Lab) -> None:
    assert "mgmt cut" in lab.lab("cut", "host2", "mgmt")
    lab.until_ready("host2", "unknown")
    row = next(line.split() for line in lab.lab("status").splitlines() if line.startswith("host2"))
    assert row[-2:] == ["unknown", "mgmt"]
    assert lab.hears("host1", "10.200.1.12")
    assert "connected" in lab.lab("heal", "host2")
    lab.until_ready("host2", "true")
    assert "mgmt" not in lab.lab("status").partition("CUT")[2].replace("-mgmt", "")


@pytest.mark.long
def test_a_cut_tunnel_carries_nothing_also_after_the_host_was_switched_off_and_on(lab: Lab) -> None:
    lab.lab("cut", "host3", "tunnel")
    assert not lab.hears("host1", "10.200.2.11")
    lab.lab("kill", "host3")
    lab.lab("start", "host3")
    lab.until_ready("host3", "true")
    assert not lab.hears("host1", "10.200.2.11")
    lab.lab("heal", "host3", "tunnel")
    until("the tunnel carries again", lambda: lab.hears("host1", "10.200.2.11"))


@pytest.mark.long
def test_a_vm_boots_on_every_host_and_hears_the_others_over_rack_and_tunnel(lab: Lab) -> None:
    lab.pileus("create", "network", "plain", "--account", "acme", "--range", "10.7.0.0/24", "--router", "none")
    for number in (1, 2, 3):
        lab.pileus("create", "vm", f"vm{number}", "--account", "acme", "--network", "plain",
                   "--address", f"10.7.0.{10 + number}")  # fmt: skip
    placed = {
        lab.until_vm(f"vm{number}", lambda vm: vm["observed"]["power"] == "running")[0]["host"] for number in (1, 2, 3)
    }
    assert len(placed) == 3
    script = lab.file("hear.sh", "#!/bin/sh\nfor i in 1 2 3; do ping -c 9 -s 1472 10.7.0.1$i | grep received; done\n")
    lab.pileus("create", "vm", "asker", "--account", "acme", "--network", "plain", "--user-data", script)
    lab.until_printed("asker", "PILEUS-USER-DATA exit 0")
    heard = [line for line in lab.console("asker").splitlines() if "received" in line]
    assert len(heard) == 3
    assert not any(" 0 packets received" in line for line in heard), heard


def test_a_killed_host_has_no_process_left_and_comes_back_with_its_vm(lab: Lab) -> None:
    lab.pileus("create", "network", "sole", "--account", "acme", "--range", "10.8.0.0/24", "--router", "none")
    lab.pileus("create", "vm", "victim", "--account", "acme", "--network", "sole")
    vm, _ = lab.until_vm("victim", lambda vm: vm["observed"]["power"] == "running")
    with lab.client() as client:
        name = client.get(f"/v1/infra.host/{vm['host']}")["name"]
    paths = lab.paths_of(name)
    assert power.machines(paths)
    assert power.inside([lab.namespace(name)])
    assert "processes killed" in lab.lab("kill", name)
    assert not power.machines(paths)
    assert not power.inside([lab.namespace(name)])
    assert not pids_naming(str(paths.state), str(paths.run))
    assert not lab.hears("mgmt", lab.host(name).management_address)
    assert "off already" in lab.lab("kill", name)
    assert " off " in lab.lab("status")
    lab.until_ready(name, "unknown")
    lab.lab("start", name)
    lab.until_ready(name, "true")
    lab.until_vm("victim", lambda vm: vm["observed"]["power"] == "running" and bool(power.machines(paths)))


def test_what_cannot_be_is_refused_in_words(lab: Lab) -> None:
    assert "a lab runs here already" in lab.pileus("lab", *OPTIONS)
    assert "no host 'host9'; its hosts: host1, host2, host3" in lab.refused("lab", "cut", "host9", code=4)
    assert "'fibre' is not one of 'mgmt', 'trunk', 'tunnel', 'public'" in lab.refused(
        "lab", "cut", "host1", "fibre", code=2
    )
    assert "host1 runs already" in lab.refused("lab", "start", "host1", code=3)
    assert "did you mean internet" in lab.refused("lab", "exec", "internett", "--", "ls", code=4)
    assert "no-such-program is not installed" in lab.refused("lab", "exec", "host1", "--", "no-such-program", code=3)
    other = str(lab.folder / "other")
    assert "no lab runs from" in lab.refused("lab", "cut", "host1", "--data", other, code=3)
    assert "every pod a host" in lab.refused("lab", "--hosts", "2", "--pods", "3", "--data", other, code=2)
    assert "goes with --simulated only" in lab.refused("lab", "--hosts", "2", "--instant", "--data", other, code=2)
    assert lab.run("lab", "exec", "core", "--", "false").returncode == 1


def test_a_port_in_use_is_said_and_nothing_of_the_second_lab_stays(lab: Lab) -> None:
    running = Running.load(lab.data)
    assert running is not None
    port = running.url.rpartition(":")[2]
    second = Place(lab.folder / "second")
    second.data.mkdir(parents=True)
    said = second.run("lab", "--hosts", "1", "--port", port, "--data", str(second.data), timeout_s=120)
    assert said.returncode != 0
    assert f"port {port} of 127.0.0.1 is in use" in said.stderr
    assert fabric.namespaces(second.data) == []


def test_a_lab_that_was_killed_is_removed_by_the_next_start_which_has_what_it_had(lab: Lab) -> None:
    running = Running.load(lab.data)
    assert running is not None
    os.kill(running.pid, signal.SIGKILL)
    until("the lab's first process is gone", lambda: Running.load(lab.data) is None)
    assert "`pileus lab stop` removes what is left" in lab.refused("lab", "status", code=3)
    assert lab.left()
    refused = lab.refused("lab", "--hosts", "5", "--port", "0", code=1)
    assert "was made with 3 hosts, 2 pods, 1 zone" in refused
    printed = lab.start_lab()
    assert "removed what was left of a lab that was killed" in printed
    assert "the lab is ready at" in printed
    assert "acme" in lab.pileus("get", "account")


def test_stop_leaves_nothing_but_the_state(lab: Lab) -> None:
    assert "lab stopped" in lab.pileus("lab", "stop", timeout_s=90)
    assert lab.left() == {}
    assert (lab.data / "pileus.db").exists()
    assert "no lab runs from" in lab.pileus("lab", "stop")
    lab.start_lab()
    assert "acme" in lab.pileus("get", "account")
