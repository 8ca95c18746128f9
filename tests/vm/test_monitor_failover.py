"""The VM of a monitor is killed ten times: the other one has its appliances, and what happens meanwhile is done once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pileus.compute.vm.plan import STABLE_S

if TYPE_CHECKING:
    from tests.vm import monitor_rig
    from tests.vm.monitor_rig import MEND, Watched, told, webs
    from tests.vm.realcloud import Json, until
else:
    import monitor_rig
    from monitor_rig import MEND, told, webs
    from realcloud import until

pytestmark = pytest.mark.long
FAILOVERS = 10
TAKEN_S = 15.0
BACK_S = 240.0


def of_another(made: Watched, last: str) -> Json | None:
    """Return a node that another watcher has than ``last``, once both work and have one, and that one's VM runs well."""
    found = {row["assigned"]["watcher"]: vm for vm, row in made.rows().items()}
    if len(found) < 2 or len(made.working()) < 2:
        return None
    watcher, vm = next((watcher, vm) for watcher, vm in found.items() if watcher != last)
    # Of a VM that ends sooner than that again and again, the start waits longer each time.
    if ran_s(made.cloud.qemus()[made.monitor_vm(watcher)]) <= STABLE_S:
        return None
    return next(node for node in made.nodes if node["assigned"]["vm"] == vm)


def ran_s(pid: int) -> float:
    """Return for how long a process runs."""
    began_ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began_ticks / os.sysconf("SC_CLK_TCK")


def failed_over(made: Watched, node: Json, name: str) -> tuple[float, float]:
    """Kill the monitor that has the node, and then an application in it; return when another had it, and mended it."""
    vm = node["assigned"]["vm"]
    before = made.rows()[vm]["assigned"]
    monitor_vm = made.monitor_vm(before["watcher"])
    assert monitor_vm not in made.rows(), "the monitor watches itself"
    os.kill(made.cloud.qemus()[monitor_vm], signal.SIGKILL)
    began, began_at = time.monotonic(), time.time()
    made.start(node, "sniper")

    def is_taken() -> bool:
        now = made.rows()[vm]["assigned"]
        return bool(now["watcher"] not in ("", before["watcher"]) and now["epoch"] > before["epoch"])

    until("the other has its appliances", is_taken, TAKEN_S)
    taken_s = time.monotonic() - began
    _, ended_at = made.times(node, made.mended(node, name))
    until("it runs again", lambda: made.state(node, name) == "running")
    return taken_s, ended_at - began_at


def test_another_monitor_takes_over_ten_times_and_does_everything_once() -> None:
    with monitor_rig.watched(2, {"applications": webs(FAILOVERS)}, replicas=2) as made:
        made.make("monitor.policy", "mend", monitor="watch", **MEND)
        for node in made.nodes:
            until("all runs", lambda node=node: made.state(node, f"web{FAILOVERS - 1}") == "running")  # type: ignore[misc]
        died: dict[str, list[str]] = {node["name"]: [] for node in made.nodes}
        last, times = "", []
        for _ in range(FAILOVERS):
            node = until("both work, and share", lambda last=last: of_another(made, last), BACK_S)  # type: ignore[misc]
            last = made.rows()[node["assigned"]["vm"]]["assigned"]["watcher"]
            died[node["name"]].append(f"web{len(died[node['name']])}")
            with made.untouched(*(each for each in made.nodes if each is not node)):
                times.append(failed_over(made, node, died[node["name"]][-1]))
            taken_s, mended_s = times[-1]
            words = f"killed {last[-4:]}, the other took over {taken_s:.2f} s and mended {mended_s:.2f} s later"
            print(f"measured: {words}, load {os.getloadavg()[0]:.1f}", flush=True)
        told("a monitor's VM killed, the other has its appliances", [taken for taken, _ in times])
        told("a monitor's VM killed, what died then is restarted", [mended for _, mended in times])
        is_once(made, died)
        assert max(taken for taken, _ in times) <= TAKEN_S


def is_once(made: Watched, died: dict[str, list[str]]) -> None:
    """Look that each application that died ended and was restarted once, and none else."""
    for node in made.nodes:
        names = died[node["name"]]
        actions = made.actions(node["assigned"]["vm"], "restart-application")
        assert sorted(each["assigned"]["cause"]["subject"] for each in actions) == sorted(names)
        assert {each["observed"]["state"] for each in actions} == {"done"}
        ends = {name: each["exits"] for name, each in made.observed(node)["applications"].items() if "web" in name}
        assert ends == {name: int(name in names) for name in ends}
    actions = made.everything("monitor.action")
    assert len({each["assigned"]["cause"]["key"] for each in actions}) == len(actions) == FAILOVERS
