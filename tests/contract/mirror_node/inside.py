"""Runs inside a test's network namespace: the role, called by lines of JSON; arguments: its port, xdp or packets, its notes."""

from __future__ import annotations

import json
import select
import sys
import time
from pathlib import Path
from typing import Any

from pileus.node.mirror.role import Decapsulator
from pileus.node.role import RoleRefused

TICK_S = 0.2


def answer(role: Decapsulator, asked: dict[str, Any]) -> object:
    if asked["op"] == "apply":
        try:
            role.apply(asked["document"])
        except RoleRefused as refused:
            return {"refused": refused.message}
    return role.status()


def main() -> None:
    role = Decapsulator(int(sys.argv[1]), can_xdp=sys.argv[2] == "xdp", counts=Path(sys.argv[3]))
    tick_at = 0.0
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], TICK_S)
        if time.monotonic() >= tick_at:
            role.tick()
            tick_at = time.monotonic() + TICK_S
        if readable:
            line = sys.stdin.readline()
            if not line:
                role.close()
                return
            print(json.dumps(answer(role, json.loads(line))), flush=True)


main()
