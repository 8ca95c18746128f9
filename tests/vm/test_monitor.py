"""Monitors over real VMs: what ended in an appliance is started again, what hangs is reset, and another monitor takes over."""

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
    from tests.vm.fleet_rig import Manager, add_image
    from tests.vm.realcloud import Json, SplitCloud, until
else:
    import realcloud
    from fleet_rig import Manager, add_image
    from realcloud import SplitCloud, until

ACME = ("--account", "acme")
WEB = "echo $$ > /run/web.pid; while :; do sleep 1000; done"
DROPPER = (
    "mkdir -p /var/dropped; cd /var/dropped; [ -e /run/armed ] || { touch /run/armed; exit 0; }; "
    "printf %s%s%s%s 'X5O!P%@AP[4\\PZX54(P^)7CC)7}$' EICAR-STANDARD- ANTIVIRUS-TEST '-FILE!$H+H*' > dropped"
)
"""Writes the test file of scanners when it is started the second time; in parts, so that no scanner finds it here."""
SNIPER = "read pid < /run/web.pid && kill -9 $pid"
DOCUMENT = {
    "applications": {
        "web": {"command": ["sh", "-c", WEB], "version": "1", "stop_s": 1},
        "dropper": {"command": ["sh", "-c", DROPPER], "version": "1", "stop_s": 1},
        "sniper": {"command": ["sh", "-c", SNIPER], "version": "1", "stop_s": 1},
    }
}
MEND = {
    "when": [{"field": "applications.web.state", "value": "failed"}],
    "do": [{"do": "restart-application", "application": "web"}],
    "mode": "enforce",
}
REVIVE = {
    "when": [{"field": "execution.state", "value": "hung"}],
    "do": [{"do": "restart"}],
    "mode": "enforce",
}
QUARANTINE = {
    "when": [{"field": "other.findings.*.state", "value": "found"}],
    "do": [{"do": "isolate"}, {"do": "snapshot"}, {"do": "suspend"}],
    "mode": "enforce",
}
pytestmark = pytest.mark.long
MENDED_S = 5.0
"""From the death of an application to the end of the action; each step takes milliseconds, but under emulation."""
HUNG_S = 40.0
TAKEN_S = 15.0


class Watched:
    """A cloud with nodes that have applications, and a monitor."""

    def __init__(self, cloud: SplitCloud) -> None:
        self.cloud = cloud
        self.manager = Manager(cloud, "software", "acme")
        wish = ["apps", "--manager", "software", "--version", "1", "--image", "appliance", "--role", "applications"]
        cloud.pileus("create", "package", *wish, "--vcpus", "1", "--memory-mib", "192", "--nics", "0", *ACME)
        self.nodes = [self.manager.node(f"n{number}", "acme", package="apps") for number in range(2)]
        self.manager.ready(*self.nodes)
        self.nodes = [self.manager.told(node, DOCUMENT) for node in self.nodes]

    def make(self, kind: str, name: str, **desired: object) -> None:
        body = {"kind": kind, "name": name, "account": "acme", "desired": desired}
        self.cloud.pileus("apply", "-f", self.cloud.file(f"{name}.json", json.dumps(body)))

    def everything(self, kind: str, **query: str) -> list[Json]:
        """Return the account's resources of a kind."""
        with self.cloud.client() as client:
            pages = client.pages(f"/v1/{kind}", [("account", "acme"), *query.items()])
            return [dict(item) for page in pages for item in page["items"]]

    def vm(self, id: str) -> Json:
        with self.cloud.client() as client:
            return dict(client.get(f"/v1/compute.vm/{id}")["observed"])

    def rows(self) -> dict[str, Json]:
        """Return the appliance state table, by VM."""
        return {row["assigned"]["vm"]: row for row in self.everything("monitor.state") if row.get("observed")}

    def actions(self, vm: str, verb: str) -> list[Json]:
        found = [each for each in self.everything("monitor.action") if each["assigned"]["vm"] == vm]
        return [each for each in found if each["desired"]["do"][0]["do"] == verb]

    def state(self, vm: str, application: str = "web") -> str:
        return str(
            self.rows().get(vm, {}).get("observed", {}).get("applications", {}).get(application, {}).get("state")
        )

    def snipe(self, node: Json) -> float:
        """Kill the node's application inside it, and return when that was."""
        vm = node["assigned"]["vm"]
        until(f"{node['name']} is seen running", lambda: self.state(vm) == "running")
        self.manager.ask(node, json.dumps({"do": "start", "application": "sniper"}))
        return time.monotonic()

    def mended(self, node: Json, count: int, began: float) -> Json:
        """Return the newest action, done, once there are so many."""
        vm = node["assigned"]["vm"]

        def look() -> Json | None:
            found = self.actions(vm, "restart-application")
            return found[-1] if len(found) == count and found[-1]["observed"]["state"] == "done" else None

        action = until("the application is restarted", look)
        print(f"measured: killed in the appliance, restarted by its monitor {time.monotonic() - began:.2f} s later")
        return action


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with realcloud.split() as cloud:
        cloud.pileus("patch", "zone", "one", "--router", "none")
        add_image(cloud, "appliance")
        made = Watched(cloud)
        made.make("monitor.monitor", "watch", form="appliance", replicas=2, actions_per_hour=100, labels={})
        made.make("monitor.policy", "mend", monitor="watch", **MEND)
        made.make("monitor.policy", "revive", monitor="watch", **REVIVE)
        cloud.pileus("wait", "monitor", "watch", *ACME, "--timeout", "120", timeout_s=130)
        until("both watchers work", lambda: len(_working(made)) == 2, 120.0)
        yield made


def _working(watched: Watched) -> list[Json]:
    return [
        each for each in watched.everything("monitor.watcher") if (each.get("observed") or {}).get("state") == "working"
    ]


def test_an_application_that_dies_in_an_appliance_is_restarted_at_once(watched: Watched) -> None:
    node = watched.nodes[0]
    began = watched.snipe(node)
    action = watched.mended(node, 1, began)
    cause = action["assigned"]["cause"]
    assert cause["actor"] == "monitor watch"
    assert cause["clauses"][0]["seen"] == "failed"
    step = action["assigned"]["steps"][0]
    print(f"measured: written {step['ended_at'] - cause['at']:.2f} s before the restart was done")
    assert step["ended_at"] - cause["at"] < MENDED_S
    until("it runs again", lambda: watched.state(node["assigned"]["vm"]) == "running")


def test_a_hung_guest_is_reset(watched: Watched) -> None:
    vm = watched.nodes[1]["assigned"]["vm"]
    until("it is watched", lambda: watched.rows()[vm]["observed"]["execution"]["state"] == "running")
    pid = watched.cloud.qemus()[vm]
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    until("it is reset", lambda: watched.cloud.qemus().get(vm, pid) != pid, HUNG_S)
    print(f"measured: hung, reset {time.monotonic() - began:.1f} s later")
    until("the reset is done", lambda: watched.actions(vm, "restart")[-1]["observed"]["state"] == "done")
    assert len(watched.actions(vm, "restart")) == 1
    until("it runs again", lambda: watched.rows()[vm]["observed"]["execution"]["state"] == "running", 60.0)


def test_another_monitor_takes_over_for_one_that_is_killed(watched: Watched) -> None:
    node = watched.nodes[0]
    vm = node["assigned"]["vm"]
    row = watched.rows()[vm]
    before = len(watched.actions(vm, "restart-application"))
    watcher = row["assigned"]["watcher"]
    (monitor,) = watched.everything("fleet.node", owner=watcher)
    monitor_vm = monitor["assigned"]["vm"]
    assert monitor_vm not in watched.rows(), "the monitor watches itself"
    os.kill(watched.cloud.qemus()[monitor_vm], signal.SIGKILL)
    began = time.monotonic()

    def is_taken() -> bool:
        now = watched.rows()[vm]["assigned"]
        return bool(now["watcher"] not in ("", watcher) and now["epoch"] > row["assigned"]["epoch"])

    until("the other has its appliances", is_taken, TAKEN_S)
    print(f"measured: a monitor's VM killed, the other has its appliances {time.monotonic() - began:.1f} s later")
    shot = watched.snipe(node)
    watched.mended(node, before + 1, shot)
    until("both watchers work", lambda: len(_working(watched)) == 2, 120.0)


def test_malicious_software_in_an_appliance_is_isolated_kept_as_evidence_and_suspended(watched: Watched) -> None:
    node, clean = watched.nodes
    vm = node["assigned"]["vm"]
    watched.make("monitor.policy", "quarantine", monitor="watch", **QUARANTINE)
    watched.make("monitor.signature", "eicar", monitor="watch", every_s=0, scan_serial=1, paths=["/var/dropped"])

    def scans() -> dict[str, Json] | None:
        found = {each["assigned"]["vm"]: each for each in watched.everything("monitor.scan")}
        is_over = all(
            (each.get("observed") or {}).get("state") in ("clean", "found", "unknown") for each in found.values()
        )
        return found if len(found) == 2 and is_over else None

    first = until("both are scanned", scans, 120.0)
    assert [each["observed"]["state"] for each in first.values()] == ["clean", "clean"]
    watched.manager.ask(node, json.dumps({"do": "start", "application": "dropper"}))
    watched.cloud.pileus("patch", "signature", "eicar", *ACME, "--scan-serial", "2")
    until("it is held", lambda: next(iter(watched.actions(vm, "isolate")), None), 120.0)
    until("it is over", lambda: watched.actions(vm, "isolate")[0]["observed"]["state"] in ("done", "failed"), 60.0)
    (action,) = watched.actions(vm, "isolate")
    assert action["observed"]["state"] == "done", action
    steps = action["assigned"]["steps"]
    scan = until("the other is over, too", scans, 60.0)[vm]
    ended = scan["assigned"]["ended_at"]
    held_s = [step["ended_at"] - ended for step in steps]
    print(f"measured: after the scan isolated {held_s[0]:.2f} s, kept {held_s[1]:.2f} s, suspended {held_s[2]:.2f} s")
    assert scan["observed"]["findings"][0]["path"] == "/var/dropped/dropped"
    assert steps[0]["ended_at"] - ended < 5.0
    (snapshot,) = watched.everything("storage.snapshot")
    assert "quarantine" in snapshot["desired"]["reason"]
    held, other = watched.vm(vm), watched.vm(clean["assigned"]["vm"])
    assert (held["power"], held["isolated"]) == ("paused", "yes")
    assert (other["power"], other.get("isolated", "no")) == ("running", "no")
