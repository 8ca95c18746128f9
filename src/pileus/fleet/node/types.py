"""A node: an appliance VM that is configured over the backchannel, by a document with a hash."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from pileus.compute.vm.types import VmNic
from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import ImageRef, Problem
from pileus.kernel.kind import Column, Kind, Resource

Document = dict[str, dict[str, Any]]


class NodeDesired(Struct, frozen=True, kw_only=True):
    """The VM and the document, written by the controller of the node's owner."""

    image: Annotated[ImageRef, Meta(description="Image of the appliance.")]
    role: Annotated[str, Meta(description="What the appliance is, such as router.")]
    vdc: str
    nics: Annotated[tuple[VmNic, ...], Meta(description="NICs, in the order the appliance sees them.")] = ()
    channel: Annotated[Literal["serial", "nic"], Meta(description="Form of the backchannel.")] = "serial"
    vcpus: int = 1
    memory_mib: int = 192
    apart_from: Annotated[str, Meta(description="Node whose host it avoids when it can.")] = ""
    document: Annotated[Document, Meta(description="Section, key, entry.")] = {}


class NodeAssigned(Struct, frozen=True, kw_only=True):
    """Its VM, where that is, and the hash of the wished document."""

    zone: str
    vdc: str
    vm: str = ""
    host: str = ""
    hash: str = ""
    channel: str = "serial"


class NodeObserved(Struct, frozen=True, kw_only=True):
    """What the host knows of the node over the backchannel."""

    state: Literal["absent", "silent", "ready"]
    hash: str = ""
    """Of the document it runs."""
    version: str = ""
    boot_id: str = ""
    status: dict[str, Any] = {}
    """What its role says of itself; untrusted."""
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
    if assigned is None or not assigned.host:
        return unready("Starting", "its VM has no host yet")
    if observed is None or observed.state == "absent":
        return unready("Starting", "its VM has not started yet")
    if observed.problem is not None:
        return unready(observed.problem.reason, observed.problem.message)
    if observed.state == "silent":
        return unready("Silent", "its VM runs, and says nothing over the backchannel")
    return ready() if in_force(resource) else unready("Configuring", "it does not run its newest document yet")


KIND = Kind(
    name="fleet.node",
    summary="An appliance VM that is configured over the backchannel.",
    desired=NodeDesired,
    assigned=NodeAssigned,
    observed=NodeObserved,
    ready=_ready,
    host_bound=True,
    created_by="kernel",
    private=frozenset({"desired"}),
    columns=(
        Column("STATE", "observed.state"),
        Column("OWNER", "owner", ref="gateway.router"),
        Column("HASH", "observed.hash", wide=True),
        Column("VM", "assigned.vm", wide=True, ref="compute.vm"),
        Column("HOST", "host", wide=True, ref="infra.host"),
    ),
)
