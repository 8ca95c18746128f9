"""An appliance that writes its disk all the time while its node is silent is never reset; one that does nothing is."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.vm import monitor_rig
    from tests.vm.monitor_rig import REVIVE, Watched, armed
    from tests.vm.realcloud import Json, until
else:
    import monitor_rig
    from monitor_rig import REVIVE, armed
    from realcloud import until

pytestmark = pytest.mark.long
SILENT_S = float(os.environ.get("PILEUS_TEST_SILENT_S", "300"))
"""How long the node is silent while its appliance writes; 3600 for the hour of docs/features.md."""
LOOK_S = 5.0
IDLE_S = 150.0
"""The last of its own that the kernel writes comes half a minute after its node stopped; then 30 s must be still."""
HEAVY_BYTES_PER_S = 4 << 20
"""What must at least have been written, on average, with a flush after each 8 MiB; the busy machine gives what it has."""
WRITER = (
    "head -c 8388608 /dev/urandom > /dev/shm/source; "
    "while :; do dd if=/dev/shm/source of=/var/heavy bs=1M conv=fsync,notrunc 2> /dev/null; sleep 0.5; done"
)
SILENCER = "node=$PPID; sleep 3; kill -STOP $node"
"""Stops who started it, the node, after that has answered."""
DOCUMENT = {
    "applications": {
        "writer": {"command": ["sh", "-c", WRITER], "version": "1", "stop_s": 1},
        "silencer": armed(SILENCER),
    }
}


def written(pid: int) -> int:
    """Return the bytes that a process has written to files."""
    with open(f"/proc/{pid}/io") as file:
        return int(dict(line.split(": ") for line in file)["write_bytes"])


def looked_at(made: Watched, node: Json, pid: int, end: float) -> tuple[list[Json], int]:
    """Return the different rows that were seen until ``end``, and the bytes written; nothing may happen to the appliance."""
    vm = node["assigned"]["vm"]
    rows: list[Json] = []
    begun = written(pid)
    while (now := time.monotonic()) < end:
        row = made.rows()[vm]["observed"]
        if not rows or row != rows[-1]:
            rows.append(row)
            about = f"{row['origin']} {row['execution']} {row['io']} {(written(pid) - begun) >> 20} MiB"
            print(f"measured: {end - now:.0f} s to go, load {os.getloadavg()[0]:.1f}: {about}", flush=True)
        assert made.cloud.qemus()[vm] == pid
        assert made.actions(vm, "restart") == []
        time.sleep(min(LOOK_S, max(0.0, end - now)))
    return rows, written(pid) - begun


def test_who_writes_while_its_node_is_silent_is_not_reset_and_who_does_nothing_is() -> None:
    with monitor_rig.watched(2, DOCUMENT) as made:
        made.make("monitor.policy", "revive", monitor="watch", **REVIVE)
        busy, idle = made.nodes
        vm = busy["assigned"]["vm"]
        made.manager.ask(idle, json.dumps({"do": "terminate", "application": "writer"}))
        pids, boots = made.cloud.qemus(), made.execution(busy)["boots"]
        made.start(busy, "silencer")
        until("its node is seen silent", lambda: made.execution(busy)["state"] == "silent", 90.0)
        silent_at = time.time()

        rows, count = looked_at(made, busy, pids[vm], time.monotonic() + SILENT_S)
        print(
            f"measured: {SILENT_S:.0f} s silent, {count / SILENT_S / 2**20:.1f} MiB/s written, {len(rows)} rows, 0 resets"
        )
        assert {row["execution"]["state"] for row in rows} == {"silent"}
        assert {row["execution"]["boots"] for row in rows} == {boots}
        assert {row["execution"]["misses"] for row in rows} == {0}
        assert max(row["execution"]["heard_at"] for row in rows) < silent_at
        assert count >= HEAVY_BYTES_PER_S * SILENT_S
        assert made.execution(idle)["boots"] == 1

        made.start(idle, "silencer")
        began = time.monotonic()
        until("who does nothing is reset", lambda: made.execution(idle)["boots"] == 2, IDLE_S)
        print(f"measured: the node stopped, nothing read or written, reset {time.monotonic() - began:.1f} s later")
        assert made.cloud.qemus()[vm] == pids[vm]
        assert len(made.everything("monitor.action")) == 1
