"""The role applications over real processes, for tests: documents, requests, and waiting for what it sees."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pileus.node.applications.role import Applications

LIMIT_S = 20.0
FOREVER = ["/bin/sh", "-c", "echo began; exec sleep 1000"]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHxVJ0sXJ0v8 one@host"

Make = Callable[..., Applications]


def entry(command: list[str] | None = None, **more: Any) -> dict[str, Any]:
    return {"command": command or FOREVER, "version": "1", "stop_s": 2, "settle_s": 0, **more}


def document(**applications: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"applications": applications}


def told(role: Applications, name: str = "web") -> dict[str, Any]:
    role.tick()
    return dict(role.status()["applications"][name])


def state(role: Applications, name: str = "web") -> str:
    return str(told(role, name)["state"])


def ask(role: Applications, id: str = "r", again: bool = False, **asked: Any) -> dict[str, Any]:
    return dict(json.loads(role.request(id, json.dumps(asked).encode(), again)))


def pid_of(role: Applications, name: str = "web") -> int:
    return role._kept.notes[name].pid


def until(role: Applications, met: Callable[[], bool]) -> None:
    """Look whenever the role wants it, or a tick's time is over."""
    end = time.monotonic() + LIMIT_S
    while not met():
        assert time.monotonic() < end, role.status()
        select.select([role.wake_fd()], [], [], 0.05)


def kill(role: Applications, name: str = "web") -> None:
    os.kill(pid_of(role, name), signal.SIGKILL)
    assert select.select([role.wake_fd()], [], [], LIMIT_S)[0], "its end is told"


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
