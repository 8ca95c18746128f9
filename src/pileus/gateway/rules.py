"""What all gateway kinds say of themselves: whether the router of their zone runs them. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.kind import Resource

Protocol = Literal["tcp", "udp"]
Cidr = Annotated[str, Meta(max_length=18)]
Sources = Annotated[tuple[Cidr, ...], Meta(max_length=100, description="Who may use it, as CIDRs; empty: everybody.")]


class RuleObserved(Struct, frozen=True, kw_only=True):
    """What the router's nodes run; ``generation`` is that of the wish which was looked at."""

    state: Literal["pending", "in-force"]
    reason: str = ""
    message: str = ""
    generation: int = 0


def rule_ready(resource: Resource) -> Condition:
    """Return Ready: the wish as it is now is in force."""
    observed: RuleObserved | None = resource.observed
    if observed is None:
        return unready("Deciding", "no decision yet")
    if observed.state == "pending":
        return unready(observed.reason, observed.message)
    if observed.generation != resource.generation:
        return unready("Configuring", "the router gets the newest wish")
    return ready(observed.reason or "InForce", observed.message)
