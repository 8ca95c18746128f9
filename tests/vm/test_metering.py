"""What real VMs use, against what /proc, the test's own clock and the guests say."""

from __future__ import annotations

import os
import re
import select
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pileus.agent.agent import SAMPLE_EVERY_S
from pileus.drivers.host.qemu.real import WATCHED_EVERY_S

if TYPE_CHECKING:
    from tests.vm import realcloud
    from tests.vm.realcloud import LIMIT_S, SplitCloud, until
    from tests.vm.terminal import Terminal
else:
    import realcloud
    from realcloud import LIMIT_S, SplitCloud, until
    from terminal import Terminal

BOUNDARY_S = 0.5
"""A start is noted just before QEMU is launched, and an end when its agent gets a CPU: some ten milliseconds of an idle
machine, more of one where much else runs."""
MEMORY_GIB = 128 / 1024
"""Of a VM of the offering tiny, which has one CPU."""
RUNS_S = 2.0
SENT_BYTES = 8 << 20
HEADERS = 1.10
"""Frames of 1,514 octets carry 1,448 of TCP; that leaves as much again for what was sent twice."""
OTHER_BYTES = 5_000
"""ARP, and what guests tell and ask when they boot: what a tap takes before the guest has a driver is in its count only."""
PORT = 5001
ADDRESSES = {"here": "10.1.1.10", "there": "10.1.1.20"}
AWAY_S = 4 * WATCHED_EVERY_S
LATE_S = 1.2 * SAMPLE_EVERY_S + 10.0
"""A host tells its counters at least so often; and the command takes its time."""
ROUNDED = 2e-6
ROUNDED_BYTES = 1000
"""What is shown has six decimals."""

Json = dict[str, Any]


@pytest.fixture(scope="module")
def cloud() -> Iterator[SplitCloud]:
    """Server and agent as processes of their own, so that each can be killed."""
    with realcloud.split() as running:
        yield running


class Process:
    """A QEMU process: since when it is there, by /proc, and when the kernel said that it ended, by the test's clock."""

    def __init__(self, cloud: SplitCloud, id: str) -> None:
        self.pid = until("a QEMU process", lambda: cloud.qemus().get(id))
        ticks = int(Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        self.began = time.time() - age_s
        self._ended = 0.0
        self._watcher = threading.Thread(target=self._watch, args=(os.pidfd_open(self.pid),), daemon=True)
        self._watcher.start()

    @property
    def ended(self) -> float:
        """When it ended; waits for that."""
        self._watcher.join(LIMIT_S)
        assert self._ended, f"the process {self.pid} did not end"
        return self._ended

    @property
    def on_s(self) -> float:
        """How long it was there."""
        return self.ended - self.began

    def run_for(self, seconds: float) -> None:
        """Let it become so old."""
        time.sleep(max(self.began + seconds - time.time(), 0.0))

    def kill(self) -> None:
        """End it as the kernel does when memory is short."""
        os.kill(self.pid, signal.SIGKILL)

    def _watch(self, pidfd: int) -> None:
        with os.fdopen(pidfd):
            select.select([pidfd], [], [])
            self._ended = time.time()


def _make(cloud: SplitCloud, name: str, *options: str) -> str:
    """Make a VM that is ended without asking its guest, which may not have booted yet, and return its id."""
    at_once = ("--shutdown-timeout-s", "0", "--wait", "--timeout", "60")
    cloud.pileus("create", "vm", name, "--account", "acme", *at_once, *options)
    return str(cloud.vm(name)["id"])


def _stop(cloud: SplitCloud, name: str) -> None:
    cloud.pileus("stop", "vm", name, "--account", "acme", "--wait", "--timeout", "60")


def _used(cloud: SplitCloud, name: str) -> Json:
    total: Json = cloud.json("usage", "vm", name, "--account", "acme")["total"]
    return total


def _used_with(cloud: SplitCloud, name: str, received: int) -> Json:
    """Return what the VM used as soon as that has so many octets received."""

    def look() -> Json | None:
        used = _used(cloud, name)
        return used if used["received_gb"] * 1e9 >= received - ROUNDED_BYTES else None

    return until(f"the traffic of {name} is in", look, LATE_S)


def _metered_s(cloud: SplitCloud, name: str) -> float:
    """Return how long the VM was on by its CPU; its memory must say the same, and it had its disk for longer."""
    used = _used(cloud, name)
    assert used["memory_gib_hours"] == pytest.approx(used["vcpu_hours"] * MEMORY_GIB, abs=ROUNDED)
    assert used["disk_gib_hours"] > used["vcpu_hours"]
    return float(used["vcpu_hours"]) * 3600


def test_a_vm_is_metered_from_the_start_of_its_process_to_its_end(cloud: SplitCloud) -> None:
    id = _make(cloud, "web")
    stopped = Process(cloud, id)
    stopped.run_for(RUNS_S)
    _stop(cloud, "web")
    wanted_s, metered_s = stopped.on_s, _metered_s(cloud, "web")
    print(f"measured: stopped: on for {wanted_s:.3f} s, metered {metered_s:.3f} s")
    assert abs(metered_s - wanted_s) <= 2 * BOUNDARY_S

    cloud.pileus("start", "vm", "web", "--account", "acme", "--wait", "--timeout", "60")
    killed = Process(cloud, id)
    killed.run_for(RUNS_S)
    killed.kill()
    wanted_s += killed.on_s
    last = Process(cloud, id)  # started again at once
    last.run_for(RUNS_S)
    _stop(cloud, "web")
    wanted_s += last.on_s
    metered_s = _metered_s(cloud, "web")
    print(f"measured: stopped, killed and stopped: on for {wanted_s:.3f} s, metered {metered_s:.3f} s")
    assert abs(metered_s - wanted_s) <= 6 * BOUNDARY_S
    assert _metered_s(cloud, "web") == metered_s  # off, it uses its disk only


def test_a_vm_that_died_while_its_agent_was_dead_is_metered_until_the_agent_saw_it_last(cloud: SplitCloud) -> None:
    id = _make(cloud, "two")
    first = Process(cloud, id)
    first.run_for(2 * WATCHED_EVERY_S)
    cloud.kill(cloud.agent)
    watched_s = time.time() - first.began
    first.kill()
    died = first.ended
    time.sleep(AWAY_S)
    cloud.start_agent()
    second = Process(cloud, id)
    second.run_for(RUNS_S)
    _stop(cloud, "two")
    metered_s = _metered_s(cloud, "two") - second.on_s
    print(f"measured: on for {died - first.began:.3f} s, watched for {watched_s:.3f} s, metered {metered_s:.3f} s")
    assert watched_s - WATCHED_EVERY_S - 3 * BOUNDARY_S <= metered_s <= first.on_s + 3 * BOUNDARY_S


def _counts(terminal: Terminal) -> tuple[int, int]:
    """Return the octets of all frames that the guest's NIC sent and received, as the guest counts them."""
    said = terminal.shell("cd /sys/class/net/eth0/statistics; cat tx_bytes rx_bytes; cd /")
    sent, received = re.findall(r"^\d+$", said, re.MULTILINE)
    return int(sent), int(received)


@pytest.mark.long
def test_traffic_is_what_the_guests_sent_and_received(cloud: SplitCloud) -> None:
    for name, address in ADDRESSES.items():
        _make(cloud, name, "--address", address)
    for name in ADDRESSES:
        cloud.until_printed(name, "^PILEUS-READY")
    with Terminal(cloud, "here") as here, Terminal(cloud, "there") as there:
        there.shell(f"(nc -l -p {PORT} | wc -c >/tmp/got) >/dev/null 2>&1 & true")
        send = f"head -c {SENT_BYTES} /dev/zero | nc {ADDRESSES['there']} {PORT}"
        here.shell(f"until {send}; do sleep 0.1; done")  # nobody may listen yet
        assert there.shell("wait; cat /tmp/got").strip() == str(SENT_BYTES)
        counts = {"here": _counts(here), "there": _counts(there)}
    began = time.monotonic()
    for name, (sent, received) in counts.items():
        used = _used_with(cloud, name, received)
        print(
            f"measured: {name} sent {sent} and received {received}; metered {used['sent_gb']} and {used['received_gb']}"
        )
        assert sent - ROUNDED_BYTES <= used["sent_gb"] * 1e9 <= sent + OTHER_BYTES
        assert received - ROUNDED_BYTES <= used["received_gb"] * 1e9 <= received + OTHER_BYTES
    print(f"measured: all of it was in after {time.monotonic() - began:.1f} s")
    for sent in (counts["here"][0], counts["there"][1]):
        assert SENT_BYTES < sent < SENT_BYTES * HEADERS
