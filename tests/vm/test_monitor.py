"""Five real appliances and a monitor appliance: what ends, hangs or is malicious in one is acted on, and only there."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pileus.node import serve

if TYPE_CHECKING:
    from tests.vm import monitor_rig
    from tests.vm.monitor_rig import ACME, MEND, REVIVE, Watched, armed, told, webs
    from tests.vm.realcloud import Json, until
else:
    import monitor_rig
    from monitor_rig import ACME, MEND, REVIVE, Watched, armed, told, webs
    from realcloud import until

PUSHED, POLLED = range(3), range(3, 7)
"""Which of an appliance's applications die while it pushes, and while it does not."""
PUSHED_S = 1.0
"""From the push to the end of the restart."""
POLLED_S = 10.0
"""From the death of an application to the end of its restart, when only polls tell of it."""
HUNG_S = 40.0
HELD_S = 5.0
DROPPER = (
    "mkdir -p /var/dropped; cd /var/dropped; "
    "printf %s%s%s%s 'X5O!P%@AP[4\\PZX54(P^)7CC)7}$' EICAR-STANDARD- ANTIVIRUS-TEST '-FILE!$H+H*' > dropped"
)
"""Writes the test file of scanners; in parts, so that no scanner finds it here."""
MUTED = (
    Path(serve.__file__).read_text()
    .replace("self._send(b'{\"report\":%b}' % self._reported)", "pass")
    .replace('"version": __version__', '"version": __version__ + ".muted"')
)  # fmt: skip
"""The node's own program, except that it sends no pushes and says so; it answers polls as ever."""
MUTE = "cp serve.py /usr/lib/python3.11/pileus/node/; sleep 1; kill -9 $PPID; exec sleep 100000"
"""Lets the appliance run that: the source goes before the bytecode. Init starts the node again; what ended meanwhile failed."""
DOCUMENT = {
    "applications": {
        **webs(len(PUSHED) + len(POLLED)),
        "dropper": armed(DROPPER),
        "mute": {**armed(MUTE), "files": {"serve.py": MUTED}},
    }
}
QUARANTINE = {
    "when": [{"field": "other.findings.*.state", "value": "found"}],
    "do": [{"do": "isolate"}, {"do": "snapshot"}, {"do": "suspend"}],
    "mode": "enforce",
}
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with monitor_rig.watched(5, DOCUMENT) as made:
        made.make("monitor.policy", "mend", monitor="watch", **MEND)
        made.make("monitor.policy", "revive", monitor="watch", **REVIVE)
        yield made


def others(watched: Watched, node: Json) -> list[Json]:
    return [each for each in watched.nodes if each is not node]


def killed(watched: Watched, node: Json, number: int) -> tuple[float, float]:
    """Kill an application inside its appliance; return the seconds until its restart, from then and from the report."""
    name = f"web{number}"
    until(f"{name} is seen running", lambda: watched.state(node, name) == "running")
    with watched.untouched(*others(watched, node)):
        began = time.time()
        watched.start(node, "sniper")
        action = watched.mended(node, name)
        until("it runs again", lambda: watched.state(node, name) == "running")
    reported, ended = watched.times(node, action)
    assert watched.observed(node)["applications"][name]["exits"] == 1
    assert action["assigned"]["cause"]["actor"] == "monitor watch"
    assert action["assigned"]["cause"]["clauses"][0]["seen"] == "failed"
    return ended - began, ended - reported


def test_an_application_that_dies_is_restarted_as_soon_as_its_node_says_so(watched: Watched) -> None:
    took = [killed(watched, node, number) for number in PUSHED for node in watched.nodes]
    told("the kill was asked for, its application restarted", [one for one, _ in took])
    told(f"after the push (load {os.getloadavg()[0]:.1f})", after := [one for _, one in took])
    assert max(after) <= PUSHED_S


def test_an_application_that_dies_is_restarted_by_a_poll_when_its_node_cannot_say_so(watched: Watched) -> None:
    node = watched.nodes[4]
    with watched.untouched(*watched.nodes):
        watched.start(node, "mute")
        until("it is mute", lambda: watched.observed(node)["configuration"]["version"].endswith(".muted"))
    took = [killed(watched, node, number)[0] for number in POLLED]
    told(f"no push, restarted after the kill (load {os.getloadavg()[0]:.1f})", took)
    assert max(took) <= POLLED_S


@pytest.mark.parametrize("number", [1, 2])
def test_a_hung_guest_is_reset(watched: Watched, number: int) -> None:
    node = watched.nodes[number]
    vm = node["assigned"]["vm"]
    until("it is watched", lambda: watched.execution(node).get("state") == "running")
    pid = watched.cloud.qemus()[vm]
    with watched.untouched(*others(watched, node)):
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        until("it is reset", lambda: watched.cloud.qemus().get(vm, pid) != pid, HUNG_S)
        took_s = time.monotonic() - began
        until("the reset is done", lambda: watched.actions(vm, "restart")[-1]["observed"]["state"] == "done")
    print(f"measured: hung, reset {took_s:.1f} s later (load {os.getloadavg()[0]:.1f})")
    assert len(watched.actions(vm, "restart")) == 1
    until("it runs again", lambda: watched.execution(node)["state"] == "running", 60.0)


def scans(watched: Watched) -> dict[str, Json] | None:
    """Return the scan of each appliance, once all are over."""
    found = {each["assigned"]["vm"]: each for each in watched.everything("monitor.scan")}
    states = [(each.get("observed") or {}).get("state") for each in found.values()]
    is_over = len(found) == len(watched.nodes) and all(state in ("clean", "found", "unknown") for state in states)
    return found if is_over else None


def test_malicious_software_in_an_appliance_is_isolated_kept_as_evidence_and_suspended(watched: Watched) -> None:
    node = watched.nodes[3]
    vm = node["assigned"]["vm"]
    watched.make("monitor.policy", "quarantine", monitor="watch", **QUARANTINE)
    watched.make("monitor.signature", "eicar", monitor="watch", every_s=0, scan_serial=1, paths=["/var/dropped"])
    first = until("all are scanned", lambda: scans(watched), 180.0)
    assert {each["observed"]["state"] for each in first.values()} == {"clean"}
    with watched.untouched(*others(watched, node)):
        watched.start(node, "dropper")
        watched.cloud.pileus("patch", "signature", "eicar", *ACME, "--scan-serial", "2")
        until("it is held", lambda: next(iter(watched.actions(vm, "isolate")), None), 180.0)
        until("it is over", lambda: watched.actions(vm, "isolate")[0]["observed"]["state"] in ("done", "failed"), 60.0)
        (action,) = watched.actions(vm, "isolate")
        assert action["observed"]["state"] == "done", action
        found = until("the others are over, too", lambda: scans(watched), 180.0)
    scan = found.pop(vm)
    held_s = [step["ended_at"] - scan["assigned"]["ended_at"] for step in action["assigned"]["steps"]]
    print(f"measured: after the scan isolated {held_s[0]:.2f} s, kept {held_s[1]:.2f} s, suspended {held_s[2]:.2f} s")
    assert scan["observed"]["findings"][0]["path"] == "/var/dropped/dropped"
    assert {each["observed"]["state"] for each in found.values()} == {"clean"}
    (snapshot,) = watched.everything("storage.snapshot")
    assert "quarantine" in snapshot["desired"]["reason"]
    held = watched.vm(vm)
    assert (held["power"], held["isolated"]) == ("paused", "yes")
    for other in others(watched, node):
        seen = watched.vm(other["assigned"]["vm"])
        assert (seen["power"], seen.get("isolated", "no")) == ("running", "no")
    assert max(held_s) <= HELD_S
