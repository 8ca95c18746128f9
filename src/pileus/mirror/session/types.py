"""A mirror session: copies of the packets of a VM's NIC, given to a sniffer or kept by the platform."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import FilterRef, SnifferRef, VmRef
from pileus.kernel.kind import Column, Kind, Resource
from pileus.mirror.sniffer.types import NicNumber

SESSIONS_PER_ACCOUNT_MAX = 100


class SessionDesired(Struct, frozen=True, kw_only=True):
    """What is watched, how much of it, and where it goes."""

    vm: Annotated[VmRef, Meta(description="The VM whose packets are copied.")]
    nic: Annotated[NicNumber, Meta(description="Which of its NICs, in their order; 0 is the first.")] = 0
    direction: Annotated[
        Literal["ingress", "egress", "both"], Meta(description="As the VM sees it: ingress is what it receives.")
    ] = "both"
    filter: Annotated[FilterRef, Meta(description="A filter of the account; empty: every packet.")] = ""
    expression: Annotated[
        str, Meta(max_length=2000, description="Instead of a filter: as of tcpdump, such as 'tcp port 443'.")
    ] = ""
    number: Annotated[
        int,
        Meta(
            ge=0,
            le=32_766,
            description="0: it gets all that it wants. Of the NIC's sessions with a number, the first in their order that "
            "wants a packet gets it, and no other of these.",
        ),
    ] = 0
    snap_bytes: Annotated[int, Meta(ge=0, le=9_000, description="Bytes kept of each packet; 0: all of it.")] = 0
    sample_one_in: Annotated[int, Meta(ge=1, le=1_000_000, description="Takes one of so many; 1: each.")] = 1
    sample_by: Annotated[
        Literal["packet", "flow"], Meta(description="Whether packets are drawn, or flows with all their packets.")
    ] = "packet"
    rate_limit_kbps: Annotated[
        int, Meta(ge=0, le=100_000_000, description="The most that is copied, in kilobits per second; 0: no limit.")
    ] = 100_000
    duration_s: Annotated[
        int, Meta(ge=0, le=31_536_000, description="How long it runs, in seconds; 0: until it is deleted.")
    ] = 3_600
    sniffer: Annotated[
        SnifferRef, Meta(description="Where the packets go; empty: the platform keeps them, for `pileus mirror watch`.")
    ] = ""
    store_mib: Annotated[
        int, Meta(ge=1, le=64, description="Without a sniffer: how much is kept, in MiB; the oldest goes first.")
    ] = 8
    approval: Annotated[
        Literal["", "granted"], Meta(description="Set by an operator, in zones where mirroring needs an approval.")
    ] = ""


class SessionAssigned(Struct, frozen=True, kw_only=True):
    """The decisions. Hosts are not in the column ``host``: agents are told of the session's legs only."""

    zone: str
    vdc: str
    vm: str
    sniffer: str = ""
    port: str = ""
    """Of the NIC that is watched; ``delivery_port``: of the sniffer's. They stay: another NIC is never taken instead."""
    delivery_port: str = ""
    decapsulator: str = ""
    node: str = ""
    """The decapsulator's node."""
    slot: int = -1
    key: str = ""
    """15 hexadecimal digits: random, and the slot. Copies carry it; another decapsulator means another key."""
    source_host: str = ""
    source_address: str = ""
    """Of the tunnel that the copies come from; 0.0.0.0: the decapsulator's own host."""
    began_at: float = 0.0
    """Unix seconds when it first ran."""
    ends_at: float = 0.0
    """Unix seconds; 0: it has no end."""
    ended: Literal["no", "expired"] = "no"
    closed: dict[str, int] = {}
    """Counts of legs and keys that are over."""


class SessionCounts(Struct, frozen=True, kw_only=True):
    """Packets, but for ``*_bytes``; counters, no estimates. ``lost``: between VM and decapsulator, by sequence numbers.

    ``seen`` passed the NIC, ``matched`` the filter took, ``sampled`` sampling too; ``limited`` were over the rate limit,
    ``failed`` could not be copied, ``sent`` were; ``truncated`` were cut. ``received`` came to the decapsulator, ``forwarded``
    it passed on; ``delivered`` the sniffer's NIC took, ``dropped`` it (or the way to it) could not.
    """

    seen: int = 0
    matched: int = 0
    sampled: int = 0
    limited: int = 0
    failed: int = 0
    sent: int = 0
    sent_bytes: int = 0
    truncated: int = 0
    received: int = 0
    received_bytes: int = 0
    lost: int = 0
    forwarded: int = 0
    delivered: int = 0
    delivered_bytes: int = 0
    dropped: int = 0


class AtDecapsulator(Struct, frozen=True, kw_only=True):
    """What the decapsulator said last of a key in one boot of its VM. ``before``: received in earlier boots."""

    key: str = ""
    boot_id: str = ""
    received: int = 0
    received_bytes: int = 0
    highest: int = -1
    forwarded: int = 0
    dropped: int = 0
    before: int = 0


class SessionObserved(Struct, frozen=True, kw_only=True):
    """What the controller found."""

    state: Literal["waiting", "starting", "running", "ended"]
    reason: str = ""
    message: str = ""
    counts: SessionCounts = SessionCounts()
    at_decapsulator: AtDecapsulator = AtDecapsulator()
    at_legs: dict[str, dict[str, int]] = {}
    """What each leg had counted when it was looked at last."""


PRIVATE = ("port", "delivery_port", "decapsulator", "node", "slot", "key", "source_host", "source_address", "closed")
"""Decisions that are the provider's, not the tenant's."""


def account_space(account_id: str) -> str:
    """Return the claim space of an account's sessions that have not ended."""
    return f"mirror/account/{account_id}"


def slot_space(decapsulator: str) -> str:
    """Return the claim space of the places in a decapsulator; owners are sessions."""
    return f"mirror/slot/{decapsulator}"


def _ready(resource: Resource) -> Condition:
    observed: SessionObserved | None = resource.observed
    if observed is None:
        return unready("Deciding", "no decision yet")
    match observed.state:
        case "running":
            return ready()
        case "ended":
            return ready("Ended", observed.message)
        case _:
            return unready(observed.reason, observed.message)


KIND = Kind(
    name="mirror.session",
    summary="Copies of the packets of a VM's NIC, given to a sniffer or kept for `pileus mirror watch`.",
    desired=SessionDesired,
    assigned=SessionAssigned,
    observed=SessionObserved,
    ready=_ready,
    immutable=frozenset({"vm", "nic", "sniffer", "store_mib"}),
    private=frozenset({*(f"assigned.{word}" for word in PRIVATE), "observed.at_decapsulator", "observed.at_legs"}),
    name_prefix="session",
    columns=(
        Column("VM", "desired.vm"),
        Column("DIRECTION", "desired.direction"),
        Column("SNIFFER", "desired.sniffer"),
        Column("STATE", "observed.state"),
        Column("MATCHED", "observed.counts.matched"),
        Column("LOST", "observed.counts.lost"),
        Column("SENT", "observed.counts.sent", wide=True),
        Column("DELIVERED", "observed.counts.delivered", wide=True),
        Column("ZONE", "zone", wide=True, ref="infra.zone"),
    ),
)
