"""A real VM that is isolated: its NIC is cut at once, its console goes on, and it goes on where it was afterwards."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.vm.realcloud import RealCloud, until
    from tests.vm.terminal import Terminal
else:
    from realcloud import RealCloud, until
    from terminal import Terminal

BAD, PEER = "10.1.1.60", "10.1.1.61"
CUT_S = 2.0


def answers(terminal: Terminal, log: str) -> int:
    """Return how many answers a ping that goes on has had, by its log."""
    return int(terminal.shell(f"grep -c 'bytes from' {log}; true"))


def test_an_isolated_vm_reaches_nobody_and_its_console_and_run_go_on(cloud: RealCloud) -> None:
    for name, address in (("bad", BAD), ("peer", PEER)):
        cloud.pileus("create", "vm", name, "--account", "acme", "--address", address)
    cloud.pileus("wait", "vm", "bad", "peer", "--account", "acme", "--for", "ready", "--timeout", "120", timeout_s=130)
    for name in ("bad", "peer"):
        cloud.until_printed(name, r"PILEUS-READY (\S+) [0-9.]+$")
    with Terminal(cloud, "bad") as bad, Terminal(cloud, "peer") as peer:
        for terminal, other in ((bad, PEER), (peer, BAD)):
            terminal.shell(f"(ping -i 0.2 {other} >/tmp/pings 2>&1 &)")
            until("pings are answered", lambda t=terminal: answers(t, "/tmp/pings") > 3)  # type: ignore[misc]

        began = time.monotonic()
        with cloud.client() as client:
            client.send("PATCH", "/v1/compute.vm/bad", [("account", "acme")], {"desired": {"isolated": "yes"}})
        cloud.until_vm("bad", lambda vm: vm["conditions"][0]["reason"] == "Isolated")
        took_s = time.monotonic() - began
        last = {terminal: answers(terminal, "/tmp/pings") for terminal in (bad, peer)}
        print(f"measured: isolated, as the API says, after {took_s:.2f} s")
        assert took_s <= CUT_S
        for terminal, other in ((bad, PEER), (bad, "10.1.1.1"), (peer, BAD)):
            assert "100% packet loss" in terminal.shell(f"ping -c 3 -i 0.3 -W 1 {other}")
        assert "isolated by operator" in cloud.pileus("describe", "vm", "bad", "--account", "acme")
        assert {terminal: answers(terminal, "/tmp/pings") for terminal in (bad, peer)} == last

        cloud.pileus("patch", "vm", "bad", "--account", "acme", "--isolated", "no", "--wait", "--timeout", "10")
        for terminal in (bad, peer):
            until("pings go on", lambda t=terminal: answers(t, "/tmp/pings") > last[t] + 3)  # type: ignore[misc]
    assert len(re.findall("PILEUS-READY", cloud.console("bad"))) == 1
    cloud.pileus("delete", "vm", "bad", "peer", "--account", "acme", "-y", "--wait")
