"""An infrastructure manager: a program that runs nodes in the accounts that consented, through this cloud's API."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.kind import Column, Kind, Resource

Word = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,62}$(?!\n)")]


class ManagerDesired(Struct, frozen=True, kw_only=True):
    """Who it is, what it serves, and where it is told. Its keys: ``pileus create key --manager``."""

    description: Annotated[str, Meta(max_length=200, description="For people.")] = ""
    serves: Annotated[
        tuple[Word, ...], Meta(max_length=16, description="What its nodes are, such as firewall or dns.")
    ] = ()
    callback_url: Annotated[
        str,
        Meta(max_length=500, description="https URL that gets answers and changes, signed; empty: it watches instead."),
    ] = ""
    callback_ca: Annotated[
        str,
        Meta(max_length=16_384, description="PEM of an authority that the callback's certificate may come from, too."),
    ] = ""
    state: Annotated[
        Literal["active", "disabled"],
        Meta(description="A disabled manager's keys stop working within 5 seconds; its nodes run on."),
    ] = "active"


class ManagerAssigned(Struct, frozen=True, kw_only=True):
    """How far the callback may lead: an operator's into the cloud's own networks, too."""

    reach: Literal["public", "any"] = "public"


class ManagerObserved(Struct, frozen=True, kw_only=True):
    """How its callback is doing."""

    webhook_key: str = ""
    """Public key that its notices are signed with (Ed25519, base64, Standard Webhooks ``whpk_``)."""
    waiting: int = 0
    """Notices that its callback has not taken yet."""
    failing_since: str = ""
    """RFC 3339; empty: the last one was taken."""
    message: str = ""
    """Why the callback did not take the last one."""


ROUTERS = "routers"
"""The manager whose nodes the platform's own routers are: no account need consent to what it asked for."""

MIRRORS = "mirrors"
MONITORS = "monitors"
"""The manager whose nodes the platform's own decapsulators are."""

BUILTIN: dict[str, ManagerDesired] = {
    ROUTERS: ManagerDesired(description="The cloud's own: the routing appliances of all accounts.", serves=("router",)),
    MIRRORS: ManagerDesired(
        description="The cloud's own: decapsulators, on the way of mirrored packets.", serves=("decapsulator",)
    ),
    MONITORS: ManagerDesired(description="The cloud's own: appliances that watch others.", serves=("monitor",)),
}
"""Managers that every cluster has from the first start."""


def _ready(resource: Resource) -> Condition:
    desired: ManagerDesired = resource.desired
    observed: ManagerObserved | None = resource.observed
    if desired.state == "disabled":
        return unready("Disabled", "the manager is disabled; set state to active to let its keys work again")
    if observed is not None and observed.failing_since:
        since = observed.failing_since
        return unready(
            "CallbackFails", f"notices waiting: {observed.waiting}, since {since}; its observed message says why"
        )
    return ready()


KIND = Kind(
    name="fleet.manager",
    summary="A program that runs nodes in accounts that consented: of the cluster for all accounts, or of one account.",
    desired=ManagerDesired,
    assigned=ManagerAssigned,
    observed=ManagerObserved,
    ready=_ready,
    scope="either",
    discreet=frozenset({"desired.callback_url", "desired.callback_ca", "assigned", "observed.message"}),
    columns=(
        Column("SERVES", "desired.serves"),
        Column("STATE", "desired.state"),
        Column("CALLBACK", "desired.callback_url", wide=True),
        Column("WAITING", "observed.waiting", wide=True),
        Column("FAILING_SINCE", "observed.failing_since", wide=True),
    ),
)
