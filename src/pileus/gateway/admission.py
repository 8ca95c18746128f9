"""Checks that several gateway kinds share: routers, public addresses and their ports, ranges, keys."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterable
from ipaddress import IPv4Network

from msgspec import Struct

from pileus.gateway.router.types import router_space
from pileus.infra.zone.plan import PublicPool, public_pool
from pileus.kernel.admission import Change, only
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import AlreadyClaimed, Exhausted, Transaction

FIRST_TUNNEL_PORT = 51_820
"""WireGuard's usual port; the next ones are taken in turn."""
TUNNELS_MAX = 1000
ROUTERS_OWN_PORTS = frozenset({53, 67, 3780, 4789})
"""UDP: DNS, DHCP, synchronised connections, VXLAN."""


class Published(Struct, frozen=True, kw_only=True):
    """Ports of a public address: which claim space they are in, and what the address is called."""

    space: str
    title: str


def publish_space(account_id: str, zone: str, address: str) -> str:
    """Return the claim space of the ports of a public address, or of the account's router in a zone for "".

    Values are such as ``tcp/80``; owners what is reached there.
    """
    return f"publish/{address}" if address else f"publish/{zone}/{account_id}"


async def vdc_of(tx: Transaction, change: Change) -> Resource:
    """Return the vdc that was said, else the account's only one. Raises: Invalid."""
    if change.old is not None:
        return await tx.get(change.old.vdc)
    return await tx.get(change.links.get("vdc") or (await only(tx, "tenancy.vdc", change.new.account_id, "vdc")).id)


async def wake_router(tx: Transaction, account_id: str, zone: str) -> None:
    """Make the account's router in a zone due, if there is one."""
    router = await tx.holder(router_space(zone), account_id)
    if router is not None:
        await tx.enqueue(router)


def require_router(network: Resource, what: Resource, field: str) -> None:
    """Raises: Invalid for a network that no router serves."""
    if network.assigned.router == "none":
        raise Invalid(
            f"{network} has no router, which a {what.kind.partition('.')[2]} needs; "
            f"`pileus patch network {network.name} --router single` gives it one",
            field=field,
        )


def require_public(zone: Resource) -> PublicPool:
    """Return the zone's public addresses. Raises: Conflict when it has none."""
    pool = public_pool(zone.desired)
    if pool is None:
        raise Conflict(
            f"{zone} has no public addresses; its operator gives it some with "
            f"`pileus patch zone {zone.name} --public-range`",
            code="no-public-range",
        )
    return pool


def routers_own(account_id: str, zone: Resource) -> Published:
    """Return the ports of the public address of the account's router in a zone."""
    return Published(space=publish_space(account_id, zone.id, ""), title=f"the public address of the router in {zone}")


async def published(tx: Transaction, change: Change, zone: Resource) -> Published:
    """Return the ports of the address that the wish names, or of the router's own. Raises: Invalid, Conflict."""
    require_public(zone)
    id = change.links.get("address", "")
    if not id:
        return routers_own(change.new.account_id, zone)
    address = await tx.get(id)
    if address.zone != zone.id:
        raise Invalid(f"{address} is in another zone than what it shall lead to", field="desired.address")
    space = publish_space(change.new.account_id, zone.id, id)
    return Published(space=space, title=f"{address} ({address.assigned.address})")


async def claim_ports(
    tx: Transaction, rule: Resource, place: Published, before: str, ports: Collection[tuple[str, int]]
) -> None:
    """Hold exactly these (protocol, port) for ``rule``, in place of those in the space ``before``.

    Raises: Conflict (port-taken) naming who has one.
    """
    if before:
        await tx.release(rule.id, before)
    for protocol, port in ports:
        try:
            await tx.claim(place.space, f"{protocol}/{port}", rule.id)
        except AlreadyClaimed as error:
            holder = await tx.get(error.holder)
            raise Conflict(
                f"{protocol} port {port} of {place.title} is used by {holder}; choose another port or another address",
                code="port-taken",
                field="desired.port",
            ) from None


async def claim_tunnel_port(tx: Transaction, rule: Resource, place: Published, zone: str, wished: int = 0) -> int:
    """Hold a UDP port for a tunnel, the lowest free one from WireGuard's usual one on for 0. Raises: Conflict, Invalid.

    A tunnel listens on all addresses of its router, so no two of a router have the same port.
    """
    space = f"tunnel-port/{zone}/{rule.account_id}"
    if wished in ROUTERS_OWN_PORTS:
        raise Invalid(f"udp port {wished} is the router's own; choose another", field="desired.port")
    port = wished or await _free_tunnel_port(tx, space, place.space)
    try:
        await tx.claim(space, str(port), rule.id)
    except AlreadyClaimed as error:
        raise Conflict(
            f"udp port {port} of the router is used by {await tx.get(error.holder)}, on all its addresses; choose another",
            code="port-taken",
            field="desired.port",
        ) from None
    await claim_ports(tx, rule, place, "", [("udp", port)])
    return port


async def _free_tunnel_port(tx: Transaction, tunnels: str, published: str) -> int:
    for port in range(FIRST_TUNNEL_PORT, FIRST_TUNNEL_PORT + TUNNELS_MAX):
        taken = await tx.holder(tunnels, str(port)) or await tx.holder(published, f"udp/{port}")
        if taken is None:
            return port
    raise Conflict("no port is left for another tunnel on the public address; say one", code="port-taken")


async def claim_interface(tx: Transaction, rule: Resource, zone: str) -> int:
    """Hold a number for a tunnel's interface on the router of a zone. Raises: Conflict when all are taken."""
    try:
        return await tx.claim_number(f"tunnel/{zone}/{rule.account_id}", 0, TUNNELS_MAX - 1, rule.id)
    except Exhausted as error:
        raise Conflict(f"the router has {error.capacity} tunnels, which is the most it may have") from None


def check_cidrs(texts: Iterable[str], field: str) -> None:
    """Raises: Invalid for the first that is no IPv4 range, with the field's position."""
    for position, text in enumerate(texts):
        where = f"{field}[{position}]"
        try:
            IPv4Network(text)
        except ValueError as error:
            hint = _suggested(text)
            raise Invalid(
                f"{where}: {text!r} is not a range such as 203.0.113.0/24 or an IPv4 address: {error}{hint}",
                field=where,
            ) from None


def _suggested(text: str) -> str:
    try:
        return f"; did you mean {IPv4Network(text, strict=False)}?"
    except ValueError:
        return ""


def check_key(text: str, field: str) -> None:
    """Raises: Invalid unless ``text`` is 32 bytes in base64, as ``wg pubkey`` prints them."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if len(decoded) != 32 or base64.b64encode(decoded).decode() != text:
        raise Invalid(f"{field}: this is no WireGuard public key; `wg pubkey` prints one", field=field)
