"""The contract of the mirror of one host: copies of ports' packets, carried to decapsulators and delivered to sniffers.

See docs/decisions/0016-mirror.md for the way of a packet and its header. Frames that stay on the host have 0.0.0.0 as both
addresses of that header.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal, Protocol

from msgspec import Struct

from pileus.drivers.host.errors import DriverError
from pileus.node.mirror.rules import SESSIONS_PER_PORT_MAX, BadRules, Rule, check


class SourceSpec(Struct, frozen=True, kw_only=True):
    """Copies are taken at a port of this host.

    ``number`` 0: it gets every packet that it wants. Others of a port are asked in the order of their numbers, then by id,
    and of these the first that wants a packet gets it alone. ``rules``: the first that fits decides; none at all: every packet
    is wanted; otherwise what no rule fits is not. ``snap_bytes`` 0: whole frames; less than SNAP_BYTES_MIN is as much as that.
    ``sample_one_in`` 1: every packet. ``rate_limit_kbps``: of the frames' own bytes, as copied; 0: none. ``target``: tunnel
    address of the decapsulator's host; "": this host.

    ``session``: of several sources of one session at a port the newest copies, from the very packet on that is the first
    not copied by the one before; that one stays in force with the counts that it has. Empty: it takes nobody's place.
    """

    id: str
    port: str
    key: int
    target: str
    session: str = ""
    number: int = 0
    direction: Literal["ingress", "egress", "both"] = "both"
    rules: tuple[Rule, ...] = ()
    snap_bytes: int = 0
    sample_one_in: int = 1
    sample_by: Literal["packet", "flow"] = "packet"
    rate_limit_kbps: int = 0


class RelaySpec(Struct, frozen=True, kw_only=True):
    """Copies with ``key`` from ``source`` (tunnel address; "": this host) go to a decapsulator's VM on this host.

    ``tunnel_port``, ``sniffer_port``: ports of its two NICs. What it gives back goes to ``target`` (tunnel address of the
    sniffer's host; "": this host); ``target`` None: it keeps the packets, and gives nothing back.
    """

    id: str
    key: int
    source: str
    tunnel_port: str
    sniffer_port: str
    target: str | None = None


class DeliverySpec(Struct, frozen=True, kw_only=True):
    """Copies with ``key`` from the decapsulator's host ``source`` (tunnel address; "": this host) go into a sniffer's port."""

    id: str
    key: int
    source: str
    port: str


LegSpec = SourceSpec | RelaySpec | DeliverySpec
"""What a session has on one host. Ids are of legs, and unique over all three."""


class SourceCounts(Struct, frozen=True, kw_only=True):
    """Of packets, but for ``sent_bytes`` (of frames as copied). ``seen``: passed the port in the session's direction.

    ``matched``: its rules took. ``sampled``: of these, its sampling too. ``limited``: over the rate cap. ``failed``: could not
    be copied or sent. ``sent`` = next sequence number = sampled - limited - failed, but for packets between two counters.
    """

    seen: int = 0
    matched: int = 0
    sampled: int = 0
    limited: int = 0
    failed: int = 0
    sent: int = 0
    sent_bytes: int = 0
    truncated: int = 0


class RelayCounts(Struct, frozen=True, kw_only=True):
    """``arrived``: for the decapsulator, ``dropped``: of these, its NIC could not take. ``relayed``: given back and sent on."""

    arrived: int = 0
    dropped: int = 0
    relayed: int = 0


class DeliveryCounts(Struct, frozen=True, kw_only=True):
    """``arrived`` = ``delivered`` + ``dropped``; what was dropped the sniffer's NIC could not take."""

    arrived: int = 0
    delivered: int = 0
    dropped: int = 0
    delivered_bytes: int = 0


LegCounts = SourceCounts | RelayCounts | DeliveryCounts


class LegFact(Struct, frozen=True, kw_only=True):
    """A leg in force: its spec, and its counts since it was made. A changed spec with the same key keeps its counts."""

    spec: LegSpec
    counts: LegCounts


class Mirror(Protocol):
    """The mirror of one host. Every call is idempotent; what is in force outlives the agent."""

    async def open(self) -> None:
        """Adopt what is in force. A host that cannot mirror is no error: ``problem`` says why."""

    async def close(self) -> None:
        """Let go; copies go on."""

    def problem(self) -> str:
        """Return why this host cannot mirror (no root, kernel without TCX or XDP, no bpffs); "" when it can."""

    async def observe(self) -> dict[str, LegFact]:
        """Return every leg in force, by id. One whose tap is gone or was made anew since is not in force."""

    async def known(self) -> Collection[str]:
        """Return the ids of all legs that were put and not removed since, in force or not."""

    async def put(self, spec: LegSpec) -> None:
        """Make the leg be as ``spec`` says; packets of other sessions of the port are neither lost nor doubled by it.

        Raises: DriverError (MirrorUnsupported; NoPort: the port has no tap; NoTunnel: this host has no tunnel and
        ``target`` or ``source`` is another's; TooManySessions: more than SESSIONS_PER_PORT_MAX at the port; BadRules).
        """

    async def remove(self, id: str) -> None:
        """Take the leg out of force; with the last one all programs, maps, devices and pins go. None: nothing."""

    async def tear_down(self) -> None:
        """Remove everything, whoever made it."""


def refuse_source(spec: SourceSpec, there: Iterable[LegSpec]) -> None:
    """Raises: DriverError (TooManySessions, BadRules) for a source that cannot be besides the legs that are there."""
    here = [each for each in there if isinstance(each, SourceSpec) and each.port == spec.port]
    others = {each.session or each.id for each in here} - {spec.session or spec.id}
    if len(others) >= SESSIONS_PER_PORT_MAX:
        message = f"port {spec.port} has {SESSIONS_PER_PORT_MAX} mirror sessions already; remove one"
        raise DriverError("TooManySessions", message)
    try:
        check(spec.rules)
    except BadRules as exc:
        raise DriverError("BadRules", f"leg {spec.id} of a mirror session: {exc}") from exc
