"""Admission of a firewall: rules that say something that can be."""

from __future__ import annotations

from dataclasses import replace

from pileus.gateway.admission import check_cidrs, require_router, vdc_of, wake_router
from pileus.gateway.firewall.types import FirewallAssigned, FirewallDesired, FirewallRule
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction


class FirewallAdmission(Admission):
    """Names the first rule that is wrong."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the firewall. Raises: Invalid."""
        new = change.new
        desired: FirewallDesired = new.desired
        for position, rule in enumerate(desired.rules):
            _check(rule, f"desired.rules[{position}]")
        network = await tx.get(change.links["network"]) if "network" in change.links else None
        if network is not None:
            require_router(network, new, "desired.network")
            if change.old is None:
                change.links.setdefault("vdc", network.vdc)
        vdc = await vdc_of(tx, change)
        if network is not None and network.zone != vdc.zone:
            raise Invalid(f"{network} is in another zone than {vdc}", field="desired.network")
        change.links["vdc"] = vdc.id
        await wake_router(tx, new.account_id, vdc.zone)
        id = network.id if network is not None else ""
        return replace(new, assigned=FirewallAssigned(zone=vdc.zone, vdc=vdc.id, network=id))


def _check(rule: FirewallRule, field: str) -> None:
    check_cidrs(rule.remotes, f"{field}.remotes")
    check_cidrs(rule.locals, f"{field}.locals")
    if not rule.port_first and not rule.port_last:
        return
    if rule.protocol not in ("tcp", "udp"):
        raise Invalid(f"{field}: ports belong to tcp and udp, not to {rule.protocol}", field=f"{field}.protocol")
    if not rule.port_first:
        raise Invalid(f"{field}: port_last needs a port_first", field=f"{field}.port_first")
    if rule.port_last and rule.port_last < rule.port_first:
        raise Invalid(
            f"{field}: port_last {rule.port_last} is below port_first {rule.port_first}", field=f"{field}.port_last"
        )
