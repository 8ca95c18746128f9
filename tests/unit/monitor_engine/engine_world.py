"""What the tests of the engine say to it."""

from __future__ import annotations

from typing import Any

from pileus.node.monitor.engine import Engine, Work

START = 1_700_000_000.0
FAILED = {"field": "applications.*.state", "operator": "is", "value": "failed"}
HUNG = {"field": "execution.state", "operator": "is", "value": "hung"}


def policy(*when: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "keep", "when": list(when), "do": [{"do": "restart"}], "mode": "enforce", **more}


def document(policies: dict[str, Any] | None = None, vms: tuple[str, ...] = ("a",), **settings: Any) -> dict[str, Any]:
    return {
        "settings": settings,
        "appliances": {vm: {"name": vm, "epoch": 1} for vm in vms},
        "policies": policies or {},
    }


def engine(policies: dict[str, Any] | None = None, vms: tuple[str, ...] = ("a",), **settings: Any) -> Engine:
    made = Engine()
    made.configure(document(policies, vms, **settings))
    return made


def report(at: float, vm: str = "a", origin: str = "poll", **vitals: Any) -> dict[str, Any]:
    said = {
        "vm": vm,
        "process": "running",
        "boots": 1,
        "node": "ready",
        "heard_s": 0.0,
        "disk_bytes": 0,
        "net_bytes": 0,
    }
    return {"vm": vm, "origin": origin, "at": at, "vitals": {**said, **vitals}}


def applications(**states: str) -> dict[str, Any]:
    """Return a status; ``failed:2``: two exits."""
    told = {}
    for name, word in states.items():
        state, _, exits = word.partition(":")
        told[name] = {"state": state, "version": "1.0", "exits": int(exits or 0), "code": "", "since": 5}
    return {"role": "applications", "applications": told}


def hear(engine: Engine, at: float, **said: Any) -> Work:
    """Let it hear a report at once, and return what it makes of it."""
    engine.hear(report(at, **said), at)
    return engine.work(at)


def row(engine: Engine, vm: str = "a") -> dict[str, Any]:
    return next(row for row in engine.rows() if row["vm"] == vm)


def keys(work: Work) -> list[str]:
    return [action["key"] for action in work.actions]
