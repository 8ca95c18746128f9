"""The server half of a VPN: whether the router has it, and what the other sides must know."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from pileus.gateway.facts import Facts
from pileus.gateway.rule import Force, RuleController
from pileus.gateway.vpn.plan import endpoint, entries, not_routed, ranges, remotes
from pileus.gateway.vpn.types import VpnAccess, VpnAssigned, VpnDesired, VpnObserved
from pileus.kernel.kind import Resource


class VpnController(RuleController):
    """Needs a public address, and for a site another side."""

    def __init__(self) -> None:
        super().__init__(entries)

    def lacking(self, rule: Resource, facts: Facts) -> Force:
        """Return whether the public address or the other side is missing."""
        desired: VpnDesired = rule.desired
        if not endpoint(rule, facts):
            return Force(reason="NoPublicAddress", message="the router has no public address yet")
        if desired.mode == "site" and desired.outside is None and not facts.joined(rule):
            message = f"no other side yet: make a site VPN in another zone with --peer {rule.name}"
            return Force(reason="NoPeer", message=message)
        return Force()

    def observed(self, rule: Resource, facts: Facts, statuses: Sequence[Any]) -> VpnObserved:
        """Return key, endpoint, ranges and the clients' addresses, and what could not be routed."""
        assigned: VpnAssigned = rule.assigned
        return VpnObserved(
            state="pending",
            message=not_routed(rule, facts),
            public_key=assigned.public_key,
            endpoint=endpoint(rule, facts),
            allowed=ranges(facts, assigned.zone),
            clients=tuple(VpnAccess(name=name, address=f"{at}/32") for name, at in assigned.clients.items()),
            remotes=remotes(rule, facts),
        )

    def others(self, rule: Resource, facts: Facts) -> Collection[str]:
        """Return the VPNs of the other side: this one's key and endpoint are in their tunnels."""
        return [other.id for other in facts.joined(rule)]
