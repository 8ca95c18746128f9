"""The lab as its user has it: real processes, real joins and streams over TLS on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from pileus.cli.client import Client
from pileus.cli.contexts import Config, Context
from pileus.local.up import Running

PILEUS = (sys.executable, "-m", "pileus.cli.main")
LIMIT_S = 120.0


class Lab:
    """A lab of three hosts in two processes, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "lab"
        self.config = folder / "config.json"

    def run(self, *arguments: str) -> str:
        """Return what a command printed."""
        done = subprocess.run(
            [*PILEUS, *arguments],
            env={**os.environ, "PILEUS_CONFIG": str(self.config)},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self) -> str:
        return self.run("lab", "--simulated", "3", "--processes", "2", "--data", str(self.data), "--port", "0",
                        "--instant", "--detach")  # fmt: skip

    @property
    def context(self) -> Context:
        return msgspec.json.decode(self.config.read_bytes(), type=Config).contexts["lab"]

    def processes(self) -> list[int]:
        """Return the processes whose command line or parent's pipe names this lab's folder."""
        running = Running.load(self.data)
        return [] if running is None else [running.pid, *children(running.pid)]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end, f"not so within {LIMIT_S} s: {what}"
        time.sleep(0.05)


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() and not _is_zombie(pid) for pid in pids)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.run("lab", "stop", "--data", str(made.data), "--delete")


def test_a_vm_runs_on_a_simulated_host_and_nothing_of_the_lab_is_left_after_stop(lab: Lab) -> None:
    assert "hosts attached" in lab.start()
    assert "3 of 3 hosts ready" in lab.run("lab", "status", "--data", str(lab.data))
    lab.run("create", "account", "acme")
    lab.run("create", "vm", "web", "--account", "acme", "--wait", "--timeout", "60")
    with Client(lab.context) as client:
        vm = client.get("/v1/compute.vm/web", [("account", "acme")])
        host = client.get(f"/v1/infra.host/{vm['host']}")
        assert len(client.get("/v1/infra.pod")["items"]) == 1
    assert vm["observed"]["power"] == "running"
    assert host["name"].startswith("host-0000")
    processes = lab.processes()
    assert len(processes) == 4
    lab.run("lab", "stop", "--data", str(lab.data))
    until(lambda: gone(processes), "the lab's processes ended")


@pytest.mark.long
def test_a_lab_whose_first_process_is_killed_leaves_none_and_starts_again_with_what_it_had(lab: Lab) -> None:
    lab.start()
    lab.run("create", "account", "acme")
    first, *others = lab.processes()
    os.kill(first, signal.SIGKILL)
    until(lambda: gone([first, *others]), "the others ended with it")
    assert "ready" in lab.start()
    assert "acme" in lab.run("get", "account")
    with Client(lab.context) as client:
        assert [host["conditions"][0]["status"] for host in client.get("/v1/infra.host")["items"]] == ["true"] * 3


@pytest.mark.long
def test_a_port_in_use_is_said_and_nothing_stays(lab: Lab, tmp_path: Path) -> None:
    lab.start()
    port = lab.context.server.rpartition(":")[2]
    other = tmp_path / "other"
    done = subprocess.run(
        [*PILEUS, "lab", "--simulated", "1", "--data", str(other), "--port", port],
        env={**os.environ, "PILEUS_CONFIG": str(lab.config)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is in use" in done.stderr
    assert Running.load(other) is None
