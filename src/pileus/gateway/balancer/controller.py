"""The server half of a balancer: whether the router has it, and how its members are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from pileus.gateway.balancer.plan import entries, health
from pileus.gateway.balancer.types import BalancerAssigned, BalancerObserved
from pileus.gateway.facts import Facts
from pileus.gateway.rule import Force, RuleController
from pileus.kernel.kind import Resource


class BalancerController(RuleController):
    """Needs a public address; members without one join when they have it."""

    again_s = 5.0
    """Members' health comes and goes without anybody's wish."""

    def __init__(self) -> None:
        super().__init__(entries)

    def vms(self, rule: Resource) -> Collection[str]:
        """Return the members."""
        assigned: BalancerAssigned = rule.assigned
        return assigned.members

    def lacking(self, rule: Resource, facts: Facts) -> Force:
        """Return whether the public address is missing."""
        assigned: BalancerAssigned = rule.assigned
        if facts.public(assigned.zone, assigned.address):
            return Force()
        return Force(reason="NoPublicAddress", message="the router has no public address yet")

    def observed(self, rule: Resource, facts: Facts, statuses: Sequence[Any]) -> BalancerObserved:
        """Return where it is reached, and its members' health as the nodes report it."""
        assigned: BalancerAssigned = rule.assigned
        members = health(rule, facts, statuses)
        return BalancerObserved(
            state="pending",
            public_address=facts.public(assigned.zone, assigned.address),
            up=sum(member.health == "up" for member in members),
            members=members,
        )
