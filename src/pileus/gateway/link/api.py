"""Admission of a link: two networks that can be one."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from pileus.gateway.admission import (
    claim_interface,
    claim_tunnel_port,
    require_public,
    require_router,
    routers_own,
    wake_router,
)
from pileus.gateway.keys import new_pair
from pileus.gateway.link.plan import LINKS_MAX, inner
from pileus.gateway.link.types import LinkAssigned, LinkSide
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import AlreadyClaimed, Exhausted, Transaction
from pileus.network.network.plan import host_range, offset, parse_range
from pileus.network.network.types import NetworkDesired

FIELD = "desired.peer_network"


class LinkAdmission(Admission):
    """Everything about a link is decided when it is made."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the link with both its sides. Raises: Invalid, Conflict."""
        new = change.new
        networks = [await tx.get(change.links[word]) for word in ("network", "peer_network")]
        if change.old is not None:
            change.links.update({"vdc": change.old.assigned.near.vdc, "peer_vdc": change.old.assigned.far.vdc})
            return new
        _check(new, *networks)
        change.links.update({"vdc": networks[0].vdc, "peer_vdc": networks[1].vdc})
        try:
            number = await tx.claim_number(f"link/{new.account_id}", 0, LINKS_MAX - 1, new.id)
        except Exhausted:
            raise Conflict(f"an account may have {LINKS_MAX} links, and has as many") from None
        addresses = inner(number)
        near, far = [await _side(tx, new, network, at) for network, at in zip(networks, addresses, strict=True)]
        assigned = LinkAssigned(zone=near.zone, vdc=near.vdc, vni=number + 1, near=near, far=far)
        return replace(new, assigned=assigned)


def _check(new: Resource, near: Resource, far: Resource) -> None:
    """Raises: Invalid, Conflict for two networks that cannot be one."""
    for network, field in ((near, "desired.network"), (far, FIELD)):
        require_router(network, new, field)
    if near.zone == far.zone:
        raise Invalid(f"{near} and {far} are in the same zone; a link joins two zones", field=FIELD)
    if near.desired.range != far.desired.range:
        raise Invalid(
            f"{near} has {near.desired.range}, {far} has {far.desired.range}; a link needs the same range on both sides",
            field=FIELD,
        )
    if near.assigned.gateway == far.assigned.gateway:
        raise Invalid(
            f"{near} and {far} have the same gateway, {near.assigned.gateway}; each side needs its own", field=FIELD
        )
    for own, other in ((near, far), (far, near)):
        _check_apart(own, other)


def _check_apart(own: Resource, other: Resource) -> None:
    """Raises: Invalid when ``own`` may give out an address that ``other`` may, or that is its gateway."""
    low, high = _pool(own)
    first, last = _pool(other)
    if low <= last and first <= high:
        raise Invalid(
            f"{own} and {other} give out the same addresses, {_said(own)} and {_said(other)}; make them with --first and "
            "--last so that they do not",
            field=FIELD,
        )
    gateway = offset(IPv4Address(other.assigned.gateway), parse_range(other.desired.range))
    if low <= gateway <= high:
        raise Invalid(
            f"{own} gives out {other.assigned.gateway}, which is the gateway of {other}; make them with --first and --last",
            field=FIELD,
        )


def _pool(network: Resource) -> tuple[int, int]:
    """Return the lowest and highest number that the network gives out, its own gateway apart."""
    desired: NetworkDesired = network.desired
    range_ = parse_range(desired.range)
    low, high = host_range(range_)
    gateway = offset(IPv4Address(network.assigned.gateway), range_)
    low = offset(IPv4Address(desired.first), range_) if desired.first else low + (gateway == low)
    high = offset(IPv4Address(desired.last), range_) if desired.last else high - (gateway == high)
    return low, high


def _said(network: Resource) -> str:
    base = parse_range(network.desired.range).network_address
    low, high = _pool(network)
    return f"{base + low} to {base + high}"


async def _side(tx: Transaction, new: Resource, network: Resource, address: str) -> LinkSide:
    zone = await tx.get(network.zone)
    require_public(zone)
    try:
        await tx.claim(f"stretch/{network.id}", "link", new.id)
    except AlreadyClaimed as error:
        raise Conflict(
            f"{network} is stretched already, by {await tx.get(error.holder)}", code="in-use", field="desired.network"
        ) from None
    private, public = new_pair()
    port = await claim_tunnel_port(tx, new, routers_own(new.account_id, zone), zone.id)
    await wake_router(tx, new.account_id, network.zone)
    return LinkSide(
        zone=network.zone,
        vdc=network.vdc,
        network=network.id,
        private_key=private,
        public_key=public,
        interface=await claim_interface(tx, new, network.zone),
        port=port,
        inner=address,
    )
