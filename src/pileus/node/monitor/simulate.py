"""What policies would have done over a history. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pileus.node.monitor.contents import is_number
from pileus.node.monitor.engine import Engine


def simulate(document: Mapping[str, Any], history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the actions that the document's policies would have asked for, each as if nothing had come of it.

    History: reports in the order in which they came, taken at their ``at``; those of other appliances are passed over.
    One of origin ``miss`` is a poll without an answer. What rows the document resumes is no part of it.
    Raises: ValueError for a document that is refused.
    """
    engine = Engine(is_polling=False)
    appliances = document.get("appliances", {})
    if isinstance(appliances, dict):
        appliances = {
            vm: {**entry, "resume": None} if isinstance(entry, dict) else entry for vm, entry in appliances.items()
        }
    engine.configure({**document, "appliances": appliances})
    actions: list[dict[str, Any]] = []
    now, due = 0.0, math.inf
    for report in history:
        at = report.get("at")
        if is_number(at) and now < at < math.inf:
            while due < at:
                work = engine.work(due)
                actions += work.actions
                due = work.next_at
            now = float(at)
        if report.get("origin") == "miss":
            engine.miss(str(report.get("vm")), now)
        else:
            engine.hear(report, now)
        work = engine.work(now)
        actions += work.actions
        due = work.next_at
    return actions
