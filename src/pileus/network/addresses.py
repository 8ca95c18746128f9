"""Addresses that a wish names: checked, and held until the ports that get them are made."""

from __future__ import annotations

from collections.abc import Iterable

from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.network.network.plan import offset, parse_address, parse_range, pool
from pileus.network.network.types import address_space


async def claim_addresses(
    tx: Transaction, holder: Resource, zone: str, network_id: str, wished: Iterable[str], field: str
) -> None:
    """Claim the addresses that one of ``holder.desired.nics`` names for it: a VM, or the node whose VM is to be.

    Raises: Invalid, Conflict (address-in-use).
    """
    if not network_id:
        raise Invalid(f"{field}: say which network it is on", field=f"{field}.network")
    network = await tx.get(network_id)
    if network.zone != zone:
        raise Invalid(f"{network} is in another zone than {holder}", field=f"{field}.network")
    range_ = parse_range(network.desired.range)
    low, high = pool(network.desired)
    for text in wished:
        number = offset(parse_address(text, range_, f"{field}.address"), range_)
        if not low <= number <= high:
            raise Invalid(f"{text} is outside of {_span(network)}, which {network} gives out", field=f"{field}.address")
        taken_by = await tx.holder(address_space(network.id), str(number))
        if taken_by is not None:
            raise _in_use(text, network, holder, field, own=taken_by == holder.id)
        await tx.claim(address_space(network.id), str(number), holder.id, number)


def _in_use(text: str, network: Resource, holder: Resource, field: str, *, own: bool) -> Conflict | Invalid:
    given = [each for nic in holder.desired.nics for each in (nic.address, *nic.extra_addresses)]
    if own and given.count(text) > 1:
        return Invalid(f"{text} is given twice", field=f"{field}.address")
    if own:
        message = f"{holder} still has {text} of {network}, on another NIC; detach that first, then repeat this"
    else:
        message = (
            f"{text} of {network} is in use; choose another of {_span(network)}, or leave the address out to get a free "
            "one"
        )
    return Conflict(message, code="address-in-use", field=f"{field}.address")


def _span(network: Resource) -> str:
    """Return the addresses that a network gives out, for a message."""
    low, high = pool(network.desired)
    base = parse_range(network.desired.range).network_address
    return f"{base + low} to {base + high}"
