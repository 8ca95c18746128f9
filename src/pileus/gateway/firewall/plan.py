"""The entries of a firewall in its router's document. Pure."""

from __future__ import annotations

from pileus.gateway.facts import Facts, cidrs
from pileus.gateway.firewall.types import FirewallAssigned, FirewallDesired
from pileus.kernel.kind import Resource
from pileus.node.document import Document


def prefix(name: str) -> str:
    """Return how the keys of a firewall's rules begin; the comma sorts before all that a name may go on with."""
    return f"{name},"


def is_served(firewall: Resource, facts: Facts) -> bool:
    """Tell whether the router serves the network that the firewall is about."""
    assigned: FirewallAssigned = firewall.assigned
    return assigned.network in ("", *(network.id for network in facts.here.networks))


def entries(firewall: Resource, facts: Facts) -> Document:
    """Return an entry per rule; their keys sort by the firewall's name, then in the order of the list."""
    desired: FirewallDesired = firewall.desired
    assigned: FirewallAssigned = firewall.assigned
    if not is_served(firewall, facts):
        return {}
    rules = {
        f"{prefix(firewall.name)}{position:04d}": {
            "direction": rule.direction,
            "action": rule.action,
            "network": assigned.network,
            "protocol": rule.protocol,
            "remotes": cidrs(rule.remotes),
            "locals": cidrs(rule.locals),
            "port_first": rule.port_first,
            "port_last": max(rule.port_first, rule.port_last),
        }
        for position, rule in enumerate(desired.rules)
    }
    return {"firewall": rules} if rules else {}
