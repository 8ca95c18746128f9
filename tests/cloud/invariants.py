"""What must hold at every moment of a cloud's life: checked in its tables and on its hosts. Knows no operation.

Numbers (I1 …) are those of the project's list of invariants; each check raises ``Broken`` with the evidence.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from pileus.drivers.host.ovs.base import PortFact
from pileus.kernel import records
from pileus.kernel.store import statements as sql
from pileus.kernel.store.tables import resource, usage
from pileus.network.port.types import APART, MAC_SPACE, PUBLIC_VLAN, PortAssigned
from pileus.network.segment.types import SegmentAssigned
from pileus.registry import KINDS
from tests.cloud.world import Cloud, Server
from tests.virtual_time import clock

ORPHAN_LIMIT_S = 200.0
"""Quarantine, sweeps and some patience: longer than this nothing without an owner stays on a host with an agent."""

SHARED = (PUBLIC_VLAN, APART)
"""Numbers of ports on no account's VLAN."""

CHANGED = sa.text(
    "SELECT id, kind, name, generation, observed_generation, revision FROM resource WHERE revision > :after"
)
BUDGETS = sa.text(
    "SELECT b.space, b.capacity, b.used, COALESCE(SUM(c.amount), 0) FROM budget b LEFT JOIN charge c ON c.space = b.space"
    " GROUP BY b.space, b.capacity, b.used HAVING b.used <> COALESCE(SUM(c.amount), 0) OR b.used > b.capacity"
)
CHARGES_WITHOUT_BUDGET = sa.text(
    "SELECT c.space, c.owner FROM charge c WHERE NOT EXISTS (SELECT 1 FROM budget b WHERE b.space = c.space)"
)
DANGLING = {
    "claim": sa.text(
        "SELECT space, value, owner FROM claim WHERE NOT EXISTS (SELECT 1 FROM resource r WHERE r.id = claim.owner)"
    ),
    "charge": sa.text(
        "SELECT space, owner FROM charge WHERE NOT EXISTS (SELECT 1 FROM resource r WHERE r.id = charge.owner)"
    ),
    "budget": sa.text(
        "SELECT space FROM budget WHERE NOT EXISTS (SELECT 1 FROM resource r WHERE r.id = substr(budget.space, 1, 36))"
    ),
    "link": sa.text(
        "SELECT source, field FROM link WHERE NOT EXISTS (SELECT 1 FROM resource r WHERE r.id = link.source)"
    ),
    "link target": sa.text(
        "SELECT source, field, target FROM link WHERE NOT EXISTS (SELECT 1 FROM resource r WHERE r.id = link.target)"
    ),
    "label": sa.text("SELECT id, key FROM label WHERE NOT EXISTS (SELECT 1 FROM resource r WHERE r.id = label.id)"),
    "credential": sa.text("SELECT id FROM credential WHERE NOT EXISTS (SELECT 1 FROM resource r WHERE r.id = credential.id)"),
    "content": sa.text("SELECT id, part FROM content WHERE NOT EXISTS (SELECT 1 FROM resource r WHERE r.id = content.id)"),
    "sample": sa.text("SELECT id FROM sample WHERE NOT EXISTS (SELECT 1 FROM resource r WHERE r.id = sample.id)"),
    "presence": sa.text(
        "SELECT host FROM presence WHERE NOT EXISTS (SELECT 1 FROM resource r WHERE r.id = presence.host)"
    ),
    "owner": sa.text(
        "SELECT id, kind, name, owner FROM resource r WHERE owner <> ''"
        " AND NOT EXISTS (SELECT 1 FROM resource o WHERE o.id = r.owner)"
    ),
    "host": sa.text(
        "SELECT id, kind, name, host FROM resource r WHERE host <> ''"
        " AND NOT EXISTS (SELECT 1 FROM resource h WHERE h.id = r.host)"
    ),
    "account": sa.text(
        "SELECT id, kind, name FROM resource r WHERE account_id <> ''"
        " AND NOT EXISTS (SELECT 1 FROM resource a WHERE a.id = r.account_id)"
    ),
}  # fmt: skip
IDLE_DELETIONS = sa.text(
    "SELECT id, kind, name FROM resource r WHERE deleting_at IS NOT NULL"
    " AND NOT EXISTS (SELECT 1 FROM work w WHERE w.id = r.id)"
)
SILENT_REFUSALS = sa.text("SELECT id, kind, name FROM resource WHERE ready <> 'true' AND reason = ''")
PORTS = sa.text(
    "SELECT id, account_id, owner, assigned FROM resource WHERE kind = 'network.port' AND assigned IS NOT NULL"
)
NETWORK_CLAIMS = sa.text(
    "SELECT space, value, owner FROM claim WHERE space = 'mac' OR space LIKE 'vlan/%' OR space LIKE 'address/%'"
)
SEGMENTS = sa.text("SELECT id, host, assigned, deleting_at FROM resource WHERE kind = 'network.segment'")
SEGMENT_LINKS = sa.text("SELECT source, target FROM link WHERE field = 'account'")
PLACED = sa.text("SELECT id, host, kind FROM resource WHERE host <> ''")
AUDIT_RUNS = sa.text("SELECT server, COUNT(*), MIN(seq), MAX(seq) FROM audit GROUP BY server")
AUDIT_TWICE = sa.text("SELECT request, COUNT(*) FROM audit WHERE request <> '' GROUP BY request HAVING COUNT(*) > 1")
COUNTS = sa.text(
    "SELECT vdc, SUM(CASE WHEN kind IN ('compute.vm', 'fleet.node') AND owner = account_id THEN 1 ELSE 0 END),"
    " SUM(CASE WHEN kind IN ('compute.vm', 'storage.volume', 'fleet.node') AND owner = account_id THEN 1 ELSE 0 END),"
    " SUM(CASE WHEN kind = 'network.network' THEN 1 ELSE 0 END) FROM resource WHERE vdc <> '' GROUP BY vdc"
)
USED = sa.text("SELECT space, used, capacity FROM budget")
USED_SINGLY = sa.text(
    "SELECT c.space, SUM(c.amount) FROM charge c JOIN resource r ON r.id = c.owner"
    " WHERE r.kind NOT IN ('compute.set', 'compute.request') GROUP BY c.space"
)
"""Without what sets and requests hold for members that come or go."""
METERED = (
    sa.select(resource, usage.c.amounts, usage.c.host.label("metered_on"))
    .select_from(resource.outerjoin(usage, sa.and_(usage.c.id == resource.c.id, usage.c.until == 0)))
    .where(
        sa.or_(*(resource.c.kind == kind.name for kind in KINDS if kind.meter is not None)), resource.c.account_id != ""
    )
)
RUNS_OF_NOTHING = sa.text(
    "SELECT id, kind, name, since FROM usage WHERE until = 0 AND NOT EXISTS (SELECT 1 FROM resource r WHERE r.id = usage.id)"
)
RUNS_OVERLAPPING = sa.text(
    "SELECT a.id, a.kind, a.since, a.until FROM usage a WHERE (a.until <> 0 AND a.until <= a.since) OR EXISTS"
    " (SELECT 1 FROM usage b WHERE b.id = a.id AND b.since > a.since AND (a.until = 0 OR a.until > b.since))"
)


class Broken(AssertionError):
    """An invariant does not hold."""


class Ledger:
    """What earlier checks saw, to compare with."""

    def __init__(self) -> None:
        self.versions: dict[str, tuple[int, int, int]] = {}
        self.newest = 0
        self.port_of: dict[str, tuple[str, str, str]] = {}
        """Account, zone and network of every port ever seen: a port may outlive its row on a host."""
        self.orphans: dict[tuple[str, str, str], float] = {}
        self.orphans_seen = 0
        self.overfull: dict[str, int] = {}
        """Spaces whose capacity was lowered below what is used: allowed, as long as no more is taken."""
        self.checks = Counter[str]()

    def lowered(self, prefix: str) -> None:
        """Say that limits of a resource may have been lowered."""
        self.overfull[prefix] = -1


async def check(world: Cloud, ledger: Ledger, *, full: bool) -> None:
    """Check everything cheap, or everything."""
    server = world.servers[0]
    await _versions(server, ledger)
    await _budgets(server, ledger)
    await _ports(world, server, ledger)
    await _hosts(world, server, ledger)
    await _references(server)
    await _meter(server)
    ledger.checks["quick"] += 1
    if full:
        _refuse("metered twice, or backwards", await server.store.fetch(RUNS_OVERLAPPING))
        await _audit(server)
        await _recount(server)
        ledger.checks["full"] += 1


def _refuse(name: str, rows: Iterable[Any]) -> None:
    found = list(rows)
    if found:
        raise Broken(f"{name}: {found[:5]}" + (f" and {len(found) - 5} more" if len(found) > 5 else ""))


async def _versions(server: Server, ledger: Ledger) -> None:
    """I7."""
    newest = (await server.store.fetch(sql.NEWEST))[0][0]
    if newest < ledger.newest:
        raise Broken(f"I7: the cluster's revision went from {ledger.newest} to {newest}")
    for id, kind, name, generation, observed, revision in await server.store.fetch(CHANGED, after=ledger.newest):
        before = ledger.versions.get(id, (0, 0, 0))
        heard = observed or before[1]  # 0: its host was silent, came back, and has not said it anew
        now = (generation, heard, revision)
        if any(new < old for new, old in zip(now, before, strict=True)) or observed > generation:
            raise Broken(f"I7: {kind} {name} {id}: {before} became {now}")
        ledger.versions[id] = now
    ledger.newest = newest


async def _budgets(server: Server, ledger: Ledger) -> None:
    """I3, I4: what is used is what was charged, and no more than there is."""
    overfull: dict[str, int] = {}
    for space, capacity, used, charged in await server.store.fetch(BUDGETS):
        if used != int(charged):
            raise Broken(f"I4: {space} says {used} used, the charges say {charged}")
        allowed = ledger.overfull.get(space)
        if allowed is None and ledger.overfull.get(space[:36]) is None:
            raise Broken(f"I4: {space} has {used} used of {capacity}")
        if allowed is not None and used > allowed and ledger.overfull.get(space[:36]) is None:
            raise Broken(f"I4: {space} is overfull and took more: {allowed}, then {used} of {capacity}")
        overfull[space] = used
    ledger.overfull = overfull
    _refuse("I4: charged without a budget", await server.store.fetch(CHARGES_WITHOUT_BUDGET))


async def _ports(world: Cloud, server: Server, ledger: Ledger) -> None:
    """I1: VLAN, MAC and address of every port are owned once, by whom the claim says."""
    claims = {(space, value): owner for space, value, owner in await server.store.fetch(NETWORK_CLAIMS)}
    vlans: dict[tuple[str, int], str] = {}
    addresses: dict[tuple[str, str], str] = {}
    macs: dict[str, str] = {}
    for id, account, vm, text in await server.store.fetch(PORTS):
        port = msgspec.json.decode(text, type=PortAssigned)
        ledger.port_of[id] = (account, port.zone, port.network)
        if port.vlan not in SHARED and vlans.setdefault((port.zone, port.vlan), account) != account:
            raise Broken(f"I1: VLAN {port.vlan} is used by two accounts, {account} and {vlans[port.zone, port.vlan]}")
        if port.vlan not in SHARED and claims.get((f"vlan/{port.zone}", str(port.vlan))) != account:
            raise Broken(f"I1: port {id} has VLAN {port.vlan} without a claim of its account")
        if macs.setdefault(port.mac, id) != id:
            raise Broken(f"I1: MAC {port.mac} is given twice")
        if claims.get((MAC_SPACE, str(int(port.mac.replace(":", "")[-8:], 16)))) != id:
            raise Broken(f"I1: port {id} has MAC {port.mac} without a claim")
        for address in (port.address, *port.extra_addresses) if port.network else ():
            if addresses.setdefault((port.network, address), id) != id:
                raise Broken(f"I1: {address} of network {port.network} is given twice")
            number = _offset(address, port.prefix_length)
            if claims.get((f"address/{port.network}", str(number))) != vm:
                raise Broken(f"I1: port {id} has {address} without a claim of its VM")
    _plugged(world, ledger)
    await _segments(world, server, claims)


async def _segments(world: Cloud, server: Server, claims: dict[tuple[str, str], str]) -> None:
    """I1 across hosts: a VLAN that is joined or has ports is its account's, a tunnel number is one VLAN's."""
    accounts: dict[str, str] = dict(await server.store.fetch(SEGMENT_LINKS))
    used: set[tuple[str, str]] = set()
    here: set[tuple[str, int]] = set()
    numbers: dict[int, tuple[str, int]] = {}
    for _, _, _, text in await server.store.fetch(PORTS):
        port = msgspec.json.decode(text, type=PortAssigned)
        used.add((f"vlan/{port.zone}", str(port.vlan)))
        here.add((port.host, port.vlan))
    for id, host, text, deleting in await server.store.fetch(SEGMENTS):
        segment = msgspec.json.decode(text, type=SegmentAssigned)
        claim = (f"vlan/{segment.zone}", str(segment.vlan))
        used.add(claim)
        if claims.get(claim) != accounts.get(id):
            raise Broken(
                f"I1: VLAN {segment.vlan} is joined on {host} for {accounts.get(id)}, not for {claims.get(claim)}"
            )
        if numbers.setdefault(segment.vni, (segment.zone, segment.vlan)) != (segment.zone, segment.vlan):
            raise Broken(f"I1: the tunnel number {segment.vni} is used by two VLANs")
        if not deleting and (host, segment.vlan) not in here:
            raise Broken(f"I5: VLAN {segment.vlan} is to be joined on {host}, which has no port of it")
        here.add((host, segment.vlan))
    _refuse(
        "I5: a VLAN that nobody uses is claimed", (key for key in claims if key[0][:5] == "vlan/" and key not in used)
    )
    for host_id, host in world.hosts.items():
        _refuse(f"I5: joined on {host_id}", (vlan for vlan in host.switch.segments if (host_id, vlan) not in here))


def _offset(address: str, prefix_length: int) -> int:
    parts = [int(part) for part in address.split(".")]
    number = parts[0] << 24 | parts[1] << 16 | parts[2] << 8 | parts[3]
    return int(number & ((1 << (32 - prefix_length)) - 1))


def _plugged(world: Cloud, ledger: Ledger) -> None:
    """I1 on the hosts: no VLAN carries two accounts, no address of a network and no MAC is plugged twice."""
    vlans: dict[tuple[str, int], set[str]] = defaultdict(set)
    taken: dict[tuple[str, str], list[str]] = defaultdict(list)
    for host in world.hosts.values():
        for id, fact in host.switch.ports.items():
            if id in ledger.port_of:
                account, zone, network = ledger.port_of[id]
                if fact.vlan not in SHARED:
                    vlans[zone, fact.vlan].add(account)
                _note_plugged(taken, id, network or id, fact)
    _refuse("I1: a VLAN with ports of two accounts plugged", (item for item in vlans.items() if len(item[1]) > 1))
    _refuse("I1: plugged twice", (item for item in taken.items() if len(item[1]) > 1))


def _note_plugged(taken: dict[tuple[str, str], list[str]], id: str, network: str, fact: PortFact) -> None:
    taken["mac", fact.mac].append(id)
    for address in fact.addresses:
        taken[network, address].append(id)


async def _hosts(world: Cloud, server: Server, ledger: Ledger) -> None:
    """I2, I3, I5 on the hosts."""
    placed = {(id, host) for id, host, _ in await server.store.fetch(PLACED)}
    machines: dict[str, list[str]] = defaultdict(list)
    disks: dict[str, list[str]] = defaultdict(list)
    for host_id, host in world.hosts.items():
        for id, machine in host.machines.machines.items():
            if machine.state != "stopped":
                machines[id].append(host_id)
                for disk in machine.spec.disks:
                    disks[disk.id].append(id)
    _refuse("I2: a VM runs on two hosts", (item for item in machines.items() if len(item[1]) > 1))
    _refuse("I2: a disk is open in two machines", (item for item in disks.items() if len(item[1]) > 1))
    _requests(world)
    await _memory(world, server, ledger)
    _orphans(world, placed, ledger)


def _requests(world: Cloud) -> None:
    """No node did a request twice."""
    for host_id, host in world.hosts.items():
        for vm, node in host.guests.nodes.items():
            counts = Counter(id for id, _ in node.applied)
            _refuse(f"node {vm} of host {host_id} did a request twice", (id for id in counts if counts[id] > 1))


async def _memory(world: Cloud, server: Server, ledger: Ledger) -> None:
    capacities = {space: capacity for space, _, capacity in await server.store.fetch(USED)}
    for host_id, host in world.hosts.items():
        capacity = capacities.get(f"{host_id}/memory_mib")
        used = host.machines.used_mib()
        if capacity is not None and used > capacity and f"{host_id}/memory_mib" not in ledger.overfull:
            raise Broken(f"I3: machines on host {host_id} have {used} MiB of {capacity}")


def _orphans(world: Cloud, placed: set[tuple[str, str]], ledger: Ledger) -> None:
    """I5: everything on a host has a living owner, or is in quarantine."""
    now = clock()
    found: dict[tuple[str, str, str], float] = {}
    for host_id, host in world.hosts.items():
        things: dict[str, Iterable[str]] = {
            "machine": host.machines.machines,
            "port": host.switch.ports,
            "volume": host.pool.volumes,
            "seed": host.guests.seeds,
            "note": host.notes.ids(),
            "volume note": host.volume_notes.ids(),
            "snapshot": host.pool.snapshots,
            "snapshot note": host.snapshot_notes.ids(),
            "leg note": host.leg_notes.ids(),
            "mirror leg": host.mirror.legs,
        }
        for word, ids in things.items():
            for id in ids:
                if (id, host_id) not in placed:
                    key = (host_id, word, id)
                    reachable = host_id in world.agents and host_id not in world.cut
                    found[key] = ledger.orphans.get(key, now) if reachable else now
    ledger.orphans_seen += len(found.keys() - ledger.orphans.keys())
    ledger.orphans = found
    _refuse("I5: left on a host", (key for key, since in found.items() if now - since > ORPHAN_LIMIT_S))


async def _references(server: Server) -> None:
    """I6 and I13: nothing refers to what is gone; what is to go is due; what is not ready says why."""
    for word, statement in DANGLING.items():
        _refuse(f"I13: a {word} that refers to nothing", await server.store.fetch(statement))
    _refuse("I6: to be deleted and not due", await server.store.fetch(IDLE_DELETIONS))
    _refuse("I6: not ready without a reason", await server.store.fetch(SILENT_REFUSALS))


async def _meter(server: Server) -> None:
    """What goes on to be counted is what is used now, and of something that is there."""
    _refuse("metered and not there", await server.store.fetch(RUNS_OF_NOTHING))
    for *row, amounts, host in await server.store.fetch(METERED):
        found = records.decode(KINDS, row)
        meter = KINDS[found.kind].meter
        use = meter(found) if meter is not None else None
        if use is None:
            continue  # nobody knows: what was known goes on
        counted = msgspec.json.decode(amounts) if amounts is not None else {}
        if (counted, host or "") != (use.amounts, use.host if use.amounts else ""):
            raise Broken(f"metered wrongly: {found} {found.id} uses {use}, and {counted} is counted on {host!r}")


async def _audit(server: Server) -> None:
    """I10, I11."""
    for name, count, first, last in await server.store.fetch(AUDIT_RUNS):
        if first != 1 or last != count:
            raise Broken(f"I11: the audit log of {name} has {count} entries from {first} to {last}")
    _refuse("I10: logged twice", await server.store.fetch(AUDIT_TWICE))


async def _recount(server: Server) -> None:
    """I4: what the quota counts is what is there."""
    known = {space for space, *_ in await server.store.fetch(USED)}
    used: dict[str, int] = dict(await server.store.fetch(USED_SINGLY))
    for vdc, vms, volumes, networks in await server.store.fetch(COUNTS):
        for word, count in (("vms", vms), ("volumes", volumes), ("networks", networks)):
            space = f"{vdc}/{word}"
            if space in known and used.get(space, 0) != count:
                raise Broken(f"I4: vdc {vdc} counts {used.get(space, 0)} {word}, there are {count}")


def logged(server_audit: Sequence[Any]) -> Counter[str]:
    """Return how many audit entries each outcome has."""
    return Counter(row[0] for row in server_audit)
