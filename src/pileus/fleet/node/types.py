"""A node: an appliance VM that is configured over the backchannel, by a document with a hash."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from pileus.compute.vm.types import Power, VmNic
from pileus.fleet.package.types import ChannelForm, PackageGuestAgent
from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import ManagerRef, PackageRef, Problem, VdcRef, VmRef
from pileus.kernel.kind import Column, Kind, Resource
from pileus.kernel.notice import Notice

Document = dict[str, dict[str, Any]]


class NodeBefore(Struct, frozen=True, kw_only=True):
    """What a rollout changed of the node, so that it can go back, and so that a change by somebody else is noticed."""

    rollout: str
    package: str
    """Name of the package it had; ``package_id`` is the id."""
    package_id: str = ""
    document: Document
    """As it was."""
    turned: Literal["forward", "back"] = "forward"
    """Which of the two the rollout wrote last."""
    generation: int = 0
    """Of the node when it was written."""
    hash: str = ""
    """Of the document that was written."""
    made_of: str = ""
    """Id of the package that was written."""
    boot_id: str = ""
    """Of the boot that ends with the old disk; empty: the disk stays."""


BEFORE = "before"
"""The link of a node to the package it had before a rollout: that one stays as long as the node can go back."""


class NodeDesired(Struct, frozen=True, kw_only=True):
    """The wish: of a user or manager, or of the controller of the node's owner (a router)."""

    manager: Annotated[ManagerRef, Meta(description="The manager that runs the node.")]
    package: Annotated[PackageRef, Meta(description="What it is made of; left out: the newest of the manager.")] = ""
    vm: Annotated[
        VmRef, Meta(description="A VM of the account that becomes the node; empty: one is made of the package.")
    ] = ""
    nics: Annotated[
        tuple[VmNic, ...], Meta(max_length=8, description="NICs, in the order the appliance sees them.")
    ] = ()
    document: Annotated[Document, Meta(description="Its configuration: section, key, entry.")] = {}
    properties: Annotated[dict[str, str], Meta(description="Values of the package's OVF properties.")] = {}
    power: Annotated[Power, Meta(description="What the node's VM shall be.")] = "running"
    readmit_serial: Annotated[int, Meta(ge=0, description="Raising it lets a quarantined node speak again.")] = 0
    apart_from: Annotated[
        str, Meta(description="Id of a node whose host it avoids when it can.", extra={"internal": True})
    ] = ""
    vdc: Annotated[VdcRef, Meta(description="The account's vdc; left out: the only one.")] = ""


class Footprint(Struct, frozen=True, kw_only=True):
    """What a node's VM is, from its package."""

    image: str = ""
    role: str = ""
    channel: ChannelForm = "serial"
    vcpus: int = 1
    memory_mib: int = 192
    guest_agent: PackageGuestAgent | None = None


class NodeAssigned(Struct, frozen=True, kw_only=True):
    """Its VM, where that is, what it is made of, and the hash of the wished document."""

    zone: str
    vdc: str
    manager: str = ""
    """Id of its manager."""
    package: str = ""
    """Id of its package."""
    footprint: Footprint = Footprint()
    vm: str = ""
    host: str = ""
    hash: str = ""
    quarantined: str = ""
    """Why nothing is said to it any more, and nothing heard of it."""
    readmit_serial: int = 0
    before: NodeBefore | None = None


class NodeLast(Struct, frozen=True, kw_only=True):
    """What a node said last, before it answered no more."""

    boot_id: str
    status: dict[str, Any]


class NodeObserved(Struct, frozen=True, kw_only=True):
    """What the host knows of the node over the backchannel."""

    state: Literal["absent", "silent", "ready", "quarantined"]
    hash: str = ""
    """Of the document it runs."""
    version: str = ""
    boot_id: str = ""
    status: dict[str, Any] = {}
    """What its role says of itself; untrusted."""
    last: NodeLast | None = None
    """As long as it does not answer."""
    problem: Problem | None = None


def answers(resource: Resource) -> bool:
    """Tell whether the node answers over the backchannel, as far as is known: its host reports."""
    observed: NodeObserved | None = resource.observed
    is_known = resource.ready is None or resource.ready.status != "unknown"
    return is_known and observed is not None and observed.state == "ready"


def in_force(resource: Resource) -> bool:
    """Tell whether the node runs the document that is wished."""
    assigned: NodeAssigned | None = resource.assigned
    observed: NodeObserved | None = resource.observed
    if assigned is None or observed is None or observed.problem is not None:
        return False
    return bool(assigned.hash) and observed.hash == assigned.hash


def _ready(resource: Resource) -> Condition:
    assigned: NodeAssigned | None = resource.assigned
    observed: NodeObserved | None = resource.observed
    if assigned is not None and assigned.quarantined:
        return unready("Quarantined", assigned.quarantined)
    if resource.desired.power != "running":
        return ready(resource.desired.power.capitalize(), f"its VM is {resource.desired.power}, as wished")
    if assigned is None or not assigned.host:
        return unready("Starting", "its VM has no host yet")
    if observed is None or observed.state == "absent":
        return unready("Starting", "its VM has not started yet")
    if observed.problem is not None:
        return unready(observed.problem.reason, observed.problem.message)
    if observed.state == "silent":
        return unready("Silent", "its VM runs, and says nothing over the backchannel")
    return ready() if in_force(resource) else unready("Configuring", "it does not run its newest document yet")


def _notice(old: Resource | None, new: Resource | None) -> Notice | None:
    """Return what the node's manager is told: how the node is now, when that changed."""
    node = new or old
    if node is None or (old is not None and new is not None and _shown(old) == _shown(new)):
        return None
    about = {"node": node.id, "node_name": node.name}
    if new is None:
        return Notice(type="node.deleted", subject=node.id, keep="newest", about=about)
    return Notice(type="node.changed", subject=node.id, keep="newest", about=about, data=_shown(new))


def _shown(node: Resource) -> dict[str, Any]:
    """Return what of a node its manager is told; its role's own words are read by the API."""
    assigned: NodeAssigned | None = node.assigned
    observed: NodeObserved | None = node.observed
    condition = node.ready
    return {
        "state": observed.state if observed is not None else "absent",
        "version": observed.version if observed is not None else "",
        "hash": observed.hash if observed is not None else "",
        "wished_hash": assigned.hash if assigned is not None else "",
        "quarantined": assigned.quarantined if assigned is not None else "",
        "host": node.host,
        "power": node.desired.power,
        "deleting": "yes" if node.deleting else "no",
        "ready": condition.status if condition is not None else "unknown",
        "reason": condition.reason if condition is not None else "",
        "message": condition.message if condition is not None else "",
    }


KIND = Kind(
    name="fleet.node",
    summary="An appliance VM that a manager configures, and asks things of, over the backchannel.",
    desired=NodeDesired,
    assigned=NodeAssigned,
    observed=NodeObserved,
    ready=_ready,
    notice=_notice,
    host_bound=True,
    immutable=frozenset({"manager", "vm", "vdc"}),
    lists="own",
    private=frozenset({"desired.document", "assigned.before"}),
    columns=(
        Column("MANAGER", "desired.manager"),
        Column("PACKAGE", "assigned.package", ref="fleet.package"),
        Column("STATE", "observed.state"),
        Column("OWNER", "owner", wide=True, ref="gateway.router"),
        Column("HASH", "observed.hash", wide=True),
        Column("VM", "assigned.vm", wide=True, ref="compute.vm"),
        Column("HOST", "host", wide=True, ref="infra.host"),
    ),
)
