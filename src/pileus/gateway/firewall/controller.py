"""The server half of a firewall: whether the router has its rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pileus.gateway.facts import Facts
from pileus.gateway.firewall.plan import entries, is_served, prefix
from pileus.gateway.firewall.types import FirewallObserved
from pileus.gateway.rule import Force, RuleController
from pileus.kernel.kind import Resource


class FirewallController(RuleController):
    """Needs nothing but the router."""

    def __init__(self) -> None:
        super().__init__(entries)

    def owns(self, rule: Resource, section: str, key: str) -> bool:
        """Tell whether it is one of the firewall's rules."""
        return section == "firewall" and key.startswith(prefix(rule.name))

    def lacking(self, rule: Resource, facts: Facts) -> Force:
        """Return whether its network has lost its router."""
        if is_served(rule, facts):
            return Force()
        return Force(reason="NoRouter", message=f"network {rule.desired.network} has no router")

    def observed(self, rule: Resource, facts: Facts, statuses: Sequence[Any]) -> FirewallObserved:
        """Return how many rules there are."""
        return FirewallObserved(state="pending", rules=len(rule.desired.rules))
