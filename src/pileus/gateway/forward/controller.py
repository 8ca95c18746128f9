"""The server half of a forward: whether the router has it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from pileus.gateway.facts import Facts
from pileus.gateway.forward.plan import ends, entries
from pileus.gateway.forward.types import ForwardObserved
from pileus.gateway.rule import Force, RuleController
from pileus.kernel.kind import Resource


class ForwardController(RuleController):
    """Needs its VM's address, and a public one."""

    def __init__(self) -> None:
        super().__init__(entries)

    def vms(self, rule: Resource) -> Collection[str]:
        """Return the VM."""
        return (rule.assigned.vm,)

    def lacking(self, rule: Resource, facts: Facts) -> Force:
        """Return which end has no address yet."""
        public, to_address = ends(rule, facts)
        if not to_address:
            return Force(reason="NoAddress", message=f"vm {rule.desired.vm} has no address yet")
        return Force() if public else Force(reason="NoPublicAddress", message="the router has no public address yet")

    def observed(self, rule: Resource, facts: Facts, statuses: Sequence[Any]) -> ForwardObserved:
        """Return its two ends."""
        public, to_address = ends(rule, facts)
        return ForwardObserved(state="pending", public_address=public, to_address=to_address)
