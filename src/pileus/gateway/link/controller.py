"""The server half of a link: whether both routers have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pileus.gateway.facts import Facts
from pileus.gateway.link.plan import entries
from pileus.gateway.link.types import LinkAssigned, LinkObserved
from pileus.gateway.rule import Force, RuleController
from pileus.kernel.kind import Resource


class LinkController(RuleController):
    """In force when both sides are."""

    def __init__(self) -> None:
        super().__init__(entries)

    def zones(self, rule: Resource) -> Sequence[str]:
        """Return both zones."""
        assigned: LinkAssigned = rule.assigned
        return (assigned.near.zone, assigned.far.zone)

    def lacking(self, rule: Resource, facts: Facts) -> Force:
        """Return whether the public address of the router on this side is missing."""
        if facts.here.public_address:
            return Force()
        return Force(reason="NoPublicAddress", message="the router has no public address yet")

    def observed(self, rule: Resource, facts: Facts, statuses: Sequence[Any]) -> LinkObserved:
        """Return nothing besides the state."""
        return LinkObserved(state="pending")
