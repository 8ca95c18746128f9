"""Admission of a VPN: its keys and port, and ranges that meet no other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from msgspec import Struct
from msgspec.structs import replace as changed

from pileus.gateway.admission import (
    check_cidrs,
    check_key,
    claim_interface,
    claim_tunnel_port,
    published,
    require_public,
    vdc_of,
    wake_router,
)
from pileus.gateway.keys import new_pair
from pileus.gateway.link.types import LinkAssigned
from pileus.gateway.vpn.plan import client_addresses, meeting
from pileus.gateway.vpn.types import VpnAssigned, VpnDesired, VpnOutside
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.transaction import Transaction
from pileus.network.network.plan import parse_range


class Used(Struct, frozen=True):
    """A range that is spoken for, and by whom."""

    range: str
    title: str


class VpnAdmission(Admission):
    """Keys are made here, once; the private one is in no answer."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the VPN with keys, port and the clients' addresses. Raises: Invalid, Conflict (port-taken, overlap)."""
        new = change.new
        desired: VpnDesired = new.desired
        vdc = await vdc_of(tx, change)
        change.links["vdc"] = vdc.id
        zone = await tx.get(vdc.zone)
        if desired.mode == "remote-access":
            await _check_remote_access(tx, change, zone)
        else:
            await _check_site(tx, change, zone)
        assigned = change.old.assigned if change.old is not None else await _made(tx, change, zone)
        peer = change.links.get("peer", "")
        for other in {peer, assigned.peer} - {""}:
            await tx.enqueue(other)
        await wake_router(tx, new.account_id, zone.id)
        return replace(new, assigned=changed(assigned, peer=peer, clients=_clients(desired, assigned)))


async def _made(tx: Transaction, change: Change, zone: Resource) -> VpnAssigned:
    new = change.new
    desired: VpnDesired = new.desired
    place = await published(tx, change, zone)
    private, public = new_pair()
    return VpnAssigned(
        zone=zone.id,
        vdc=change.links["vdc"],
        private_key=private,
        public_key=public,
        interface=await claim_interface(tx, new, zone.id),
        port=await claim_tunnel_port(tx, new, place, zone.id, desired.port),
        address=change.links.get("address", ""),
    )


def _clients(desired: VpnDesired, assigned: VpnAssigned) -> dict[str, str]:
    if desired.mode != "remote-access":
        return {}
    names = [client.name for client in desired.clients]
    found = client_addresses(IPv4Network(desired.range), names, assigned.clients)
    if found is None:
        raise Invalid(
            f"{desired.range} has too few addresses for {len(names)} clients and the router; make a VPN with a larger one",
            field="desired.clients",
        )
    return found


async def _check_remote_access(tx: Transaction, change: Change, zone: Resource) -> None:
    """Raises: Invalid, Conflict (overlap)."""
    desired: VpnDesired = change.new.desired
    for word in ("peer", "outside"):
        if getattr(desired, word):
            raise Invalid(f"a remote-access VPN has clients, and no {word}", field=f"desired.{word}")
    if not desired.range:
        raise Invalid(
            "a remote-access VPN needs a range for its clients, such as --range 10.99.0.0/24", field="desired.range"
        )
    range_ = parse_range(desired.range)
    if change.old is None:
        used = [*await _used(tx, change, zone), *await _used_by_networks(tx, change)]
        _refuse_meeting([str(range_)], used, "desired.range")
    seen: dict[str, str] = {}
    for position, client in enumerate(desired.clients):
        field = f"desired.clients[{position}]"
        check_key(client.public_key, f"{field}.public_key")
        if client.name in seen.values():
            raise Invalid(f"{field}: there are two clients {client.name!r}", field=f"{field}.name")
        if client.public_key in seen:
            message = f"{field}: {client.name} has the same key as {seen[client.public_key]}; each needs its own"
            raise Invalid(message, field=f"{field}.public_key")
        seen[client.public_key] = client.name


async def _check_site(tx: Transaction, change: Change, zone: Resource) -> None:
    """Raises: Invalid, Conflict (overlap)."""
    desired: VpnDesired = change.new.desired
    for word in ("range", "clients"):
        if getattr(desired, word):
            raise Invalid(f"a site VPN has a peer or an outside, and no {word}", field=f"desired.{word}")
    if desired.peer and desired.outside is not None:
        raise Invalid("a site VPN joins one peer or one site outside; make a VPN for each", field="desired.outside")
    if desired.outside is not None:
        await _check_outside(tx, change, zone, desired.outside)
    elif desired.peer:
        await _check_peer(tx, change, zone, await tx.get(change.links["peer"]))


async def _check_outside(tx: Transaction, change: Change, zone: Resource, outside: VpnOutside) -> None:
    field = "desired.outside.ranges"
    check_key(outside.public_key, "desired.outside.public_key")
    if not outside.ranges:
        raise Invalid("say what is reached at the site outside, such as --outside-ranges 10.8.0.0/16", field=field)
    check_cidrs(outside.ranges, field)
    _check_endpoint(outside.endpoint)
    used = [*await _used(tx, change, zone), *await _used_by_networks(tx, change)]
    _refuse_meeting(outside.ranges, used, field)


def _check_endpoint(text: str) -> None:
    address, _, port = text.rpartition(":")
    try:
        fits = not text or (str(IPv4Address(address)) == address and 0 < int(port) < 65_536)
    except ValueError:
        fits = False
    if not fits:
        raise Invalid(f"{text!r} is not an endpoint such as 203.0.113.9:51820", field="desired.outside.endpoint")


async def _check_peer(tx: Transaction, change: Change, zone: Resource, peer: Resource) -> None:
    new = change.new
    field = "desired.peer"
    if peer.desired.mode != "site" or peer.desired.outside is not None:
        raise Invalid(f"{peer} joins no zones; name a site VPN without an outside", field=field)
    if peer.zone == zone.id:
        raise Invalid(f"{peer} is in the same zone, {zone}; its networks are joined already", field=field)
    for other in await tx.matching(Filter(kind=new.kind, account_id=new.account_id, zone=zone.id)):
        theirs = await tx.links(other.id)
        if other.id != new.id and theirs.get("peer") and (await tx.get(theirs["peer"])).zone == peer.zone:
            raise Conflict(f"{other} joins the two zones already", code="already-exists", field=field)
    far = await _used_by_networks(tx, change, peer.zone)
    near = await _used_by_networks(tx, change, zone.id)
    stretched = await _stretched(tx, new.account_id)
    for left in near:
        for right in far:
            if {left.title, right.title} not in stretched and meeting([left.range], [right.range]) is not None:
                raise Conflict(
                    f"{left.title} ({left.range}) overlaps {right.title} ({right.range}) of the other zone: "
                    "guests could not tell which is meant; a link joins two networks of the same range",
                    code="overlap",
                    field=field,
                )


async def _stretched(tx: Transaction, account_id: str) -> list[set[str]]:
    """Return the pairs of networks that links stretch: they have the same range on purpose."""
    pairs = []
    for link in await tx.matching(Filter(kind="gateway.link", account_id=account_id)):
        assigned: LinkAssigned = link.assigned
        ends = (assigned.near.network, assigned.far.network)
        pairs.append({str(await tx.get(network)) for network in ends})
    return pairs


async def _used_by_networks(tx: Transaction, change: Change, zone: str = "") -> list[Used]:
    """Return the networks of a zone, or of all: those may be joined later."""
    networks = await tx.matching(Filter(kind="network.network", account_id=change.new.account_id, zone=zone))
    return [Used(network.desired.range, str(network)) for network in networks]


async def _used(tx: Transaction, change: Change, zone: Resource) -> list[Used]:
    """Return the public range of the zone and what other VPNs of the account there reach."""
    new = change.new
    found = [Used(str(require_public(zone).network), f"the public range of {zone}")]
    for other in await tx.matching(Filter(kind=new.kind, account_id=new.account_id, zone=zone.id)):
        found += _reached(other) if other.id != new.id else []
    return found


def _reached(vpn: Resource) -> list[Used]:
    """Return what the VPN reaches by its own wish."""
    desired: VpnDesired = vpn.desired
    found = [Used(desired.range, str(vpn))] if desired.range else []
    return found + [Used(text, str(vpn)) for text in (desired.outside.ranges if desired.outside is not None else ())]


async def refuse_range_of_vpn(tx: Transaction, network: Resource) -> None:
    """Raises: Conflict (overlap) for a new network whose range a VPN of the account reaches."""
    vpns = await tx.matching(Filter(kind="gateway.vpn", account_id=network.account_id))
    _refuse_meeting([network.desired.range], [used for vpn in vpns for used in _reached(vpn)], "desired.range")


def _refuse_meeting(ranges: Iterable[str], used: Iterable[Used], field: str) -> None:
    """Raises: Conflict (overlap) for a range that meets one in use."""
    for text in ranges:
        for each in used:
            if meeting([text], [each.range]) is not None:
                raise Conflict(
                    f"{text} overlaps {each.range} of {each.title}; choose another range", code="overlap", field=field
                )
