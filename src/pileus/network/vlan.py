"""The VLAN of an account in a zone: claimed with its first port, joined between hosts, given back with the last port.

Each host that has ports of it and a way to others has a segment for it.
"""

from __future__ import annotations

from pileus.infra.zone.types import ZoneDesired, vlan_space
from pileus.kernel.kind import Resource
from pileus.kernel.outcome import Waiting
from pileus.kernel.store.lists import Filter
from pileus.kernel.transaction import Exhausted, Transaction
from pileus.network.port.types import APART, PUBLIC_VLAN, PortAssigned
from pileus.network.segment.plan import has_uplinks, placed, with_peers
from pileus.network.segment.types import ACCOUNT_LABEL, VLANS, ZONE_NUMBERS, SegmentAssigned, SegmentDesired

PORT, SEGMENT = "network.port", "network.segment"
HOSTS_MAX = 100_000


async def claim_vlan(tx: Transaction, account_id: str, zone: Resource) -> int:
    """Return the account's VLAN ID in the zone, claimed now if it has none. Raises: Waiting (NoVlan)."""
    space = vlan_space(zone.id)
    held = await tx.claims(space, account_id)
    if held:
        return int(held[0])
    desired: ZoneDesired = zone.desired
    try:
        return await tx.claim_number(space, desired.vlan_first, desired.vlan_last, account_id)
    except Exhausted as error:
        raise Waiting(
            "NoVlan",
            f"no VLAN ID is left in {zone}: all {error.capacity} of {desired.vlan_first}-{desired.vlan_last} are in use "
            "by other accounts; it starts as soon as one is given back",
            10.0,
        ) from None


async def ensure_segment(tx: Transaction, port: Resource, vlan: int, zone: Resource, host: Resource) -> None:
    """Make the segment of a port's VLAN on its host, and wake those that it meets. Raises: Waiting while one leaves."""
    if vlan in (PUBLIC_VLAN, APART) or not has_uplinks(host):
        return
    name = f"{host.name}-vlan{vlan}"
    found = await tx.find(SEGMENT, "", name)
    if found is not None and found.deleting:
        raise Waiting("SegmentLeaving", "the VLAN is just being taken off its host; it comes back at once", 0.5)
    if found is not None:
        return
    others = [other.assigned for other in await segments_of(tx, zone.id, port.account) if not other.deleting]
    own = placed(zone, host, vlan, await _zone_number(tx, zone) * VLANS + vlan)
    segment = Resource(
        id="",
        kind=SEGMENT,
        name=name,
        desired=SegmentDesired(),
        assigned=with_peers(own, others),
        labels={ACCOUNT_LABEL: port.account},
    )
    made = await tx.create(segment, {"account": port.account_id, "host": host.id})
    if own.tunnel_address:
        await wake_peers(tx, made)


async def leave_host(tx: Transaction, port: Resource) -> None:
    """Let the VLAN of a port that goes leave its host, or go back to its zone, when no other port needs it there."""
    assigned: PortAssigned = port.assigned
    here = Filter(kind=PORT, account_id=port.account_id, host=assigned.host)
    if assigned.vlan in (PUBLIC_VLAN, APART) or await _is_used(tx, here, assigned.vlan, but=port.id):
        return
    host = await tx.find_id(assigned.host)
    segment = await tx.find(SEGMENT, "", f"{host.name}-vlan{assigned.vlan}") if host is not None else None
    if segment is not None:
        await tx.mark_deleting(segment)  # its host lets go of it first
    else:
        await _give_back(tx, port.account_id, port.account, assigned, but=port.id)


async def forget_segment(tx: Transaction, segment: Resource) -> None:
    """Let those that a segment met go on without it; its VLAN goes back to the zone with the last."""
    account = await tx.get((await tx.links(segment.id))["account"])
    await wake_peers(tx, segment)
    await _give_back(tx, account.id, account.name, segment.assigned, but=segment.id)


async def wake_peers(tx: Transaction, segment: Resource) -> None:
    """Let the other segments of the VLAN look again at whom they meet."""
    for other in await segments_of(tx, segment.assigned.zone, segment.labels[ACCOUNT_LABEL]):
        await tx.enqueue(other.id)


async def segments_of(tx: Transaction, zone: str, account: str) -> list[Resource]:
    """Return the segments of an account in a zone, those that leave among them."""
    return await tx.matching(Filter(kind=SEGMENT, zone=zone, labels=((ACCOUNT_LABEL, account),)), limit=HOSTS_MAX)


async def _give_back(
    tx: Transaction, account_id: str, account: str, gone: PortAssigned | SegmentAssigned, *, but: str
) -> None:
    """Give the VLAN back when the account has no port and no segment of it any more, ``but`` for one that goes."""
    used = await _is_used(tx, Filter(kind=PORT, account_id=account_id, zone=gone.zone), gone.vlan, but=but)
    if not used and all(segment.id == but for segment in await segments_of(tx, gone.zone, account)):
        await tx.release(account_id, vlan_space(gone.zone))


async def _is_used(tx: Transaction, where: Filter, vlan: int, *, but: str) -> bool:
    """Tell whether a port there, ``but`` for one, has the VLAN."""
    for limit in (2, HOSTS_MAX):  # nearly always the first two show one
        found = await tx.matching(where, limit=limit)
        if any(port.id != but and port.assigned and port.assigned.vlan == vlan for port in found):
            return True
        if len(found) < limit:
            break
    return False


async def _zone_number(tx: Transaction, zone: Resource) -> int:
    held = await tx.claims(ZONE_NUMBERS, zone.id)
    return int(held[0]) if held else await tx.claim_number(ZONE_NUMBERS, 0, VLANS - 1, zone.id)
