"""The walk's steps with mirrors: filters, sniffers and sessions come and go, and packets pass that say whose they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pileus.drivers.host.mirror.base import SourceSpec
from pileus.kernel.store.lists import Filter
from pileus.lab.simulated import SimulatedHost
from pileus.node.mirror.wire import FIRST_LEG, SECOND_LEG, Arrived, parse
from tests.cloud.invariants_mirror import MirrorLedger, check_mirrors, note_keys, tagged

if TYPE_CHECKING:
    from tests.cloud.walk import Walk

FILTERS, SNIFFERS, SESSIONS = 2, 2, 4
"""Names that there are of each in an account."""
IDLE_S = 20
EXPRESSIONS = ("tcp port 443", "udp", "not arp", "inbound and tcp", "tcp or udp port 53")


class MirrorSteps:
    """Steps of a walk."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._random = walk.random
        self.ledger = MirrorLedger()
        walk.world.tunnel.lose = _is_lost

    async def check(self) -> None:
        """Check what must hold of mirrors. Raises: Broken."""
        await check_mirrors(self._walk.world, self._walk.ledger, self.ledger)

    async def filter(self) -> None:
        """Make a filter, change one, or let one go."""
        account, name = self._walk.one("mirror.filter", "x", FILTERS)
        wish = {"expression": self._random.choice(EXPRESSIONS)}
        work = self._random.random()
        if work < 0.4:
            await self._walk.create("mirror.filter", self._walk.name("x", FILTERS), account, **wish)
        elif work < 0.7:
            await self._walk.patch("mirror.filter", name, account, **wish)
        else:
            await self._walk.delete("mirror.filter", name, account)

    async def sniffer(self) -> None:
        """Make a NIC a sniffer, or let one go."""
        if self._random.random() < 0.7:
            account, vm = self._walk.one("compute.vm", "v", 14)
            nic = self._random.choice((0, 0, 0, 1))
            await self._walk.create("mirror.sniffer", self._walk.name("s", SNIFFERS), account, vm=vm, nic=nic)
        else:
            account, name = self._walk.one("mirror.sniffer", "s", SNIFFERS)
            await self._walk.delete("mirror.sniffer", name, account)

    async def session(self) -> None:
        """Watch a VM of the account, for long or not."""
        account, vm = self._walk.one("compute.vm", "v", 14)
        wish = {
            "vm": vm,
            "nic": self._random.choice((0, 0, 0, 0, 0, 1)),
            "direction": self._random.choice(("both", "both", "ingress", "egress")),
            "duration_s": self._random.choice((0, 2, 10, 60, 600)),
            "snap_bytes": self._random.choice((0, 0, 128)),
            "sample_one_in": self._random.choice((1, 1, 1, 3)),
            **self._takes(account),
            **self._course(account),
        }
        await self._walk.create("mirror.session", self._walk.name("m", SESSIONS), account, **wish)

    def _takes(self, account: str) -> dict[str, Any]:
        """Return what says which packets: nothing, an expression, or a filter."""
        work = self._random.random()
        if work < 0.4:
            return {}
        if work < 0.7:
            return {"expression": self._random.choice(EXPRESSIONS)}
        return {"filter": self._own("mirror.filter", account) or self._walk.name("x", FILTERS)}

    def _course(self, account: str) -> dict[str, Any]:
        """Return what says where packets go."""
        sniffer = self._own("mirror.sniffer", account)
        if sniffer and self._random.random() < 0.6:
            return {"sniffer": sniffer}
        return {"store_mib": self._random.choice((1, 8))}

    def _own(self, kind: str, account: str) -> str:
        """Return the name of one that the account had lately; empty for none."""
        names = [name for owner, name in self._walk.known.get(kind, ()) if owner == account]
        return self._random.choice(names) if names else ""

    async def session_changes(self) -> None:
        """Change what a session takes and how long it runs, or let an operator approve it."""
        account, name = self._walk.one("mirror.session", "m", SESSIONS)
        change: dict[str, Any] = self._random.choice(
            (
                {"filter": "", "expression": self._random.choice(EXPRESSIONS)},
                {"expression": "", "filter": ""},
                {"rate_limit_kbps": self._random.choice((0, 64, 100_000))},
                {"duration_s": self._random.choice((0, 5, 120))},
                {"number": self._random.randrange(1, 300)},
                {"approval": "granted"},
                {"approval": "granted"},
            )
        )
        await self._walk.patch("mirror.session", name, account, **change)

    async def session_goes(self) -> None:
        """Stop watching."""
        account, name = self._walk.one("mirror.session", "m", SESSIONS)
        await self._walk.delete("mirror.session", name, account)

    async def zone(self) -> None:
        """Let tenants watch, with or without an approval; have one decapsulator, or two."""
        wish: dict[str, Any] = self._random.choice(
            (
                *({"mirroring": "allowed"} for _ in range(5)),
                {"mirroring": "approval"},
                {"mirroring": "forbidden"},
                {"decapsulators": 1},
                {"decapsulators": 2},
            )
        )
        await self._walk.patch("infra.zone", "local", "", **wish)

    async def frames(self) -> None:
        """Let packets pass NICs, most of them watched ones. Each says whose it is."""
        places = [(host, port) for host in self._walk.world.hosts.values() for port in sorted(host.switch.ports)]
        watched = [(host, port) for host, port in places if _is_watched(host, port)]
        if not places:
            return
        await note_keys(self._walk.world, self.ledger)
        for _ in range(self._random.randrange(1, 4)):
            host, port = self._random.choice(watched if watched and self._random.random() < 0.9 else places)
            rows = await self._walk.world.store.list(Filter(kind="network.port", ids=(port,)))
            if not rows:
                continue  # it is just going
            for _ in range(self._random.randrange(1, 12)):
                frame = tagged(
                    rows[0].account_id, self._random.choice(("tcp", "udp")), self._random.choice((53, 80, 443))
                )
                host.mirror.pass_frame(port, frame, self._random.choice(("ingress", "egress")))


def _is_lost(packet: bytes) -> bool:
    """Let every seventh packet of a session get lost between hosts, wherever it goes."""
    arrived = [parse(packet, leg=leg) for leg in (FIRST_LEG, SECOND_LEG)]
    return any(isinstance(one, Arrived) and one.header.sequence % 7 == 3 for one in arrived)


def _is_watched(host: SimulatedHost, port: str) -> bool:
    return any(isinstance(kept.spec, SourceSpec) and kept.spec.port == port for kept in host.mirror.legs.values())
