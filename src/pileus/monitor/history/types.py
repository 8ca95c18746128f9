"""A history: where a monitor's state table and its log of actions go, in order and once, whatever breaks in between."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import MonitorRef
from pileus.kernel.kind import Column, Kind, Resource


class HistoryDesired(Struct, frozen=True, kw_only=True):
    """A PostgreSQL database of the customer's, or a file of theirs. See the concept page for tables and views."""

    monitor: Annotated[MonitorRef, Meta(description="Whose history.")]
    form: Annotated[
        Literal["postgresql", "sqlite"],
        Meta(
            description="postgresql: the cloud writes into that database; sqlite: `pileus history pull` fetches it into a file."
        ),
    ] = "postgresql"
    host: Annotated[str, Meta(max_length=253, description="Name or address of the database's server.")] = ""
    port: Annotated[int, Meta(ge=1, le=65_535, description="Its port.")] = 5432
    database: Annotated[str, Meta(max_length=63, description="The database.")] = ""
    user: Annotated[str, Meta(max_length=63, description="Who writes there.")] = ""
    password: Annotated[
        str,
        Meta(
            max_length=1000,
            description="With which password; a line's end after it is none of it.",
            extra={"file": True},
        ),
    ] = ""
    tls: Annotated[
        Literal["verify", "off"], Meta(description="off: unencrypted, which only an operator may choose.")
    ] = "verify"
    ca: Annotated[
        str,
        Meta(
            max_length=65_536,
            description="PEM of an authority that its certificate may come from, too.",
            extra={"file": True},
        ),
    ] = ""
    waiting_max: Annotated[
        int, Meta(ge=1000, le=10_000_000, description="How many entries may wait; of more the oldest go.")
    ] = 1_000_000


class HistoryAssigned(Struct, frozen=True, kw_only=True):
    """``reach``: an operator's word may lead into the cloud's own networks, a tenant's to public addresses only."""

    reach: Literal["public", "any"] = "public"
    dropped: int = 0
    begun: str = ""
    """Id of the last row of the state table that was noted because it was there before the history; then ``all``."""
    taken: int = 0
    """The last entry that whoever pulls has said to keep; the cloud forgot it then."""


class HistoryObserved(Struct, frozen=True, kw_only=True):
    """How far it is. ``since``: RFC 3339, of the oldest entry that waits; empty: none does."""

    waiting: int = 0
    since: str = ""
    failures: int = 0
    message: str = ""
    """What the last try failed with."""


def history_space() -> str:
    """Return the claim space of monitors that have a history: value the monitor's id, owner the history."""
    return "monitor/history"


def _ready(resource: Resource) -> Condition:
    observed: HistoryObserved | None = resource.observed
    if observed is None:
        return unready("Starting", "nothing was delivered yet")
    if observed.failures:
        return unready("Failing", f"{observed.waiting} entries wait since {observed.since}: {observed.message}")
    dropped = resource.assigned.dropped
    desired: HistoryDesired = resource.desired
    if desired.form == "sqlite":
        return _kept(observed, desired.waiting_max, dropped)
    words = f"{dropped} entries were dropped: more than waiting_max waited" if dropped else ""
    return ready("Delivering", words)


def _kept(observed: HistoryObserved, most: int, dropped: int) -> Condition:
    """Return how a history is that is pulled."""
    lost = f"; {dropped} were dropped" if dropped else ""
    if observed.waiting >= most:
        return unready(
            "Full", f"{observed.waiting} entries wait, and the oldest of more go{lost}: `pileus history pull`"
        )
    since = f" since {observed.since}" if observed.waiting else ""
    return ready("Kept", f"{observed.waiting} entries wait{since} for `pileus history pull`{lost}")


KIND = Kind(
    name="monitor.history",
    summary="Where a monitor's states and actions go: a PostgreSQL database outside the cloud, or a file.",
    desired=HistoryDesired,
    assigned=HistoryAssigned,
    observed=HistoryObserved,
    ready=_ready,
    aliases=("histories",),
    private=frozenset({"desired.password"}),
    immutable=frozenset({"monitor"}),
    columns=(
        Column("MONITOR", "desired.monitor"),
        Column("FORM", "desired.form", wide=True),
        Column("HOST", "desired.host"),
        Column("WAITING", "observed.waiting"),
        Column("SINCE", "observed.since"),
    ),
)
